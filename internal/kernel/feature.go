package kernel

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrNotSupported is wrapped by every NotSupportedError.
var ErrNotSupported = errors.New("not supported by this kernel")

// A NotSupportedError names a kernel feature that is missing.
type NotSupportedError struct {
	Feature string  // the call or option, as its manual page names it
	Purpose string  // what needs it
	Least   Version // the first release that has it
	Running Version // of this machine; zero where unknown
}

// Error reads "PAGEMAP_SCAN (finds private pages) needs Linux 6.7; this is
// 6.1.0", or says that a kernel which is new enough still does not have it.
func (e *NotSupportedError) Error() string {
	text := fmt.Sprintf("%s (%s) needs Linux %d.%d", e.Feature, e.Purpose, e.Least.Major, e.Least.Minor)
	switch {
	case e.Running == Version{}:
		return text
	case e.Running.Less(e.Least):
		return text + "; this is " + e.Running.String()
	default:
		return text + "; this is " + e.Running.String() + ", configured without it or forbidding it"
	}
}

// Is makes errors.Is(err, ErrNotSupported) hold.
func (e *NotSupportedError) Is(target error) bool { return target == ErrNotSupported }

// A Version is the number of a Linux release.
type Version struct{ Major, Minor, Patch int }

// Less reports whether v came before w.
func (v Version) Less(w Version) bool {
	if v.Major != w.Major {
		return v.Major < w.Major
	}
	if v.Minor != w.Minor {
		return v.Minor < w.Minor
	}
	return v.Patch < w.Patch
}

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch) }

// ParseVersion reads the number at the start of a release name such as
// "6.12.5-amd64", "5.10" or "6.1-rc3". What follows the number is ignored.
func ParseVersion(release string) (Version, error) {
	var v Version
	rest := release
	for i, field := range []*int{&v.Major, &v.Minor, &v.Patch} {
		end := 0
		for end < len(rest) && rest[end] >= '0' && rest[end] <= '9' {
			end++
		}
		n, err := strconv.Atoi(rest[:end])
		if err != nil {
			return Version{}, fmt.Errorf("parse kernel release %q: a number is missing", release)
		}
		*field = n
		rest = rest[end:]
		if !strings.HasPrefix(rest, ".") {
			if i == 0 {
				return Version{}, fmt.Errorf("parse kernel release %q: the minor number is missing", release)
			}
			return v, nil
		}
		rest = rest[1:]
	}
	return v, nil
}

// Release returns the number of the running kernel, by uname(2). It is for
// messages: whether a feature is there is found out by trying it.
func Release() (Version, error) { return release() }

var release = sync.OnceValues(func() (Version, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return Version{}, fmt.Errorf("read kernel release: %w", err)
	}
	return ParseVersion(unix.ByteSliceToString(name.Release[:]))
})

// feature returns a function that tells, from one probe made the first time it
// is asked, whether a call works: nil, a NotSupportedError where the kernel
// does not know it, or what else the probe met (no /proc, no descriptors left).
//
// A probe makes the call itself with harmless arguments and returns its errno.
// Version numbers are not consulted: distributions carry features back, and
// configurations and seccomp filters take them away.
func feature(name, purpose string, least Version, probe func() error) func() error {
	return sync.OnceValue(func() error {
		err := probe()
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EINVAL):
			return notSupported(name, purpose, least)
		default:
			return fmt.Errorf("test for %s: %w", name, err)
		}
	})
}

func notSupported(name, purpose string, least Version) error {
	running, _ := Release() // unknown only where uname fails: say what is known
	return &NotSupportedError{Feature: name, Purpose: purpose, Least: least, Running: running}
}
