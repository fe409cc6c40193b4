package kernel

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseVersion(t *testing.T) {
	for release, want := range map[string]Version{
		"6.18.44":               {6, 18, 44},
		"6.12.5-amd64":          {6, 12, 5},
		"5.10":                  {5, 10, 0},
		"6.1-rc3":               {6, 1, 0},
		"6.6.87.2-microsoft":    {6, 6, 87},
		"4.18.0-553.el8.x86_64": {4, 18, 0},
		"6.8.0+":                {6, 8, 0},
	} {
		if got, err := ParseVersion(release); got != want || err != nil {
			t.Errorf("%s: %v, %v; want %v", release, got, err, want)
		}
	}
	for _, release := range []string{"", "6", "6.", "x.1", "linux", ".1", "99999999999999999999.1"} {
		if got, err := ParseVersion(release); err == nil {
			t.Errorf("%q: %v, want an error", release, got)
		}
	}
}

func TestVersionLess(t *testing.T) {
	ascending := []Version{{}, {5, 10, 200}, {6, 1, 0}, {6, 1, 9}, {6, 7, 0}, {7, 0, 0}}
	for i, v := range ascending {
		for j, w := range ascending {
			if v.Less(w) != (i < j) {
				t.Errorf("%v < %v is %v", v, w, v.Less(w))
			}
		}
	}
}

func TestRelease(t *testing.T) {
	if v, err := Release(); err != nil || v.Less(Version{3, 0, 0}) {
		t.Errorf("%v, %v", v, err)
	}
}

func TestNotSupportedError(t *testing.T) {
	for want, err := range map[string]*NotSupportedError{
		"PAGEMAP_SCAN (finds private pages) needs Linux 6.7; this is 6.1.0": {
			"PAGEMAP_SCAN", "finds private pages", Version{6, 7, 0}, Version{6, 1, 0},
		},
		"X (does y) needs Linux 6.7; this is 6.8.1, configured without it or forbidding it": {
			"X", "does y", Version{6, 7, 0}, Version{6, 8, 1},
		},
		"X (does y) needs Linux 6.7": {"X", "does y", Version{6, 7, 0}, Version{}},
	} {
		if err.Error() != want {
			t.Errorf("%q, want %q", err, want)
		}
		if !errors.Is(err, ErrNotSupported) {
			t.Errorf("%v is not ErrNotSupported", err)
		}
	}
}

func TestFeatureIsTriedOnce(t *testing.T) {
	tried := 0
	for _, test := range []struct {
		probe       error
		unsupported bool
	}{
		{nil, false}, {unix.ENOSYS, true}, {unix.ENOTTY, true}, {unix.EINVAL, true}, {unix.EMFILE, false},
	} {
		tried = 0
		f := feature("X", "does y", Version{9, 9, 0}, func() error { tried++; return test.probe })
		for range 2 {
			err := f()
			if errors.Is(err, ErrNotSupported) != test.unsupported || (err == nil) != (test.probe == nil) {
				t.Errorf("probe %v: %v", test.probe, err)
			}
			if !test.unsupported && test.probe != nil && (!errors.Is(err, test.probe) || !strings.Contains(err.Error(), "X")) {
				t.Errorf("probe %v: %v", test.probe, err)
			}
		}
		if tried != 1 {
			t.Errorf("tried %d times", tried)
		}
	}
}

// requireFeature skips where the kernel is too old for a feature, and fails
// where it is new enough and yet does not have it.
func requireFeature(t *testing.T, err error) {
	t.Helper()
	if missing := (*NotSupportedError)(nil); errors.As(err, &missing) && missing.Running.Less(missing.Least) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}
