package procfs

import (
	"os"
	"reflect"
	"slices"
	"testing"
)

// TestOwnState reads what the kernel tells of this very process.
func TestOwnState(t *testing.T) {
	p, err := Open(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	l, err := p.Layout()
	if err != nil || l.StartCode == 0 || l.StartCode >= l.EndCode || l.ArgStart >= l.ArgEnd || l.EnvStart > l.EnvEnd || l.StartStack == 0 {
		t.Errorf("layout %+v, %v", l, err)
	}
	maps, err := p.Maps()
	if err != nil {
		t.Fatal(err)
	}
	flags, err := p.MappingFlags()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, m := range maps {
		if f, ok := flags[m.Start]; ok && slices.Contains(f, "rd") == (m.Perms&Read != 0) {
			seen++
		}
	}
	if seen < len(maps)/2 {
		t.Errorf("%d of %d mappings have flags that fit: %v", seen, len(maps), flags)
	}
	if dir, err := p.Directory(); err != nil || dir != must(os.Getwd()) {
		t.Errorf("directory %q, %v", dir, err)
	}
	if limits, err := p.Limits(); err != nil || limits[7][0] == 0 || limits[7][0] > limits[7][1] {
		t.Errorf("limits %v, %v", limits, err)
	}
	if _, err := p.OOMScoreAdjust(); err != nil {
		t.Error(err)
	}
	if words, err := p.AuxvWords(); err != nil || len(words) < 4 || words[len(words)-2] != 0 {
		t.Errorf("auxv %v, %v", words, err)
	}
	if all, err := p.Timers(); err != nil || len(all) != 0 {
		t.Errorf("timers %v, %v", all, err)
	}
}

func must(s string, err error) string {
	if err != nil {
		panic(err)
	}
	return s
}

func TestParseTimers(t *testing.T) {
	got, err := parseTimers([]byte("ID: 5\nsignal: 34/0000000000000001\nnotify: none/tid.77\nClockID: 1\nID: 1\nsignal: 60/00007fff86e452a8\nnotify: signal/pid.2634\nClockID: 0\n"))
	want := []Timer{{ID: 1, Signal: 60, Value: 0x7fff86e452a8}, {ID: 5, Signal: 34, Value: 1, Notify: 1 | 4, Thread: 77, Clock: 1}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, text := range []string{"signal: 1/2\n", "ID: x\n", "ID: 1\nsignal: 1/xyz\n"} {
		if _, err := parseTimers([]byte(text)); err == nil {
			t.Errorf("%q: no error", text)
		}
	}
}

func TestParseLimitsAndLayout(t *testing.T) {
	for _, text := range []string{"", "Max open files   10\n", "Max open files  a b files\n"} {
		if _, err := parseLimits([]byte(text)); err == nil {
			t.Errorf("%q: no error", text)
		}
	}
	for _, text := range []string{"", "1 (a) S 1", "1 (a) S x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x x"} {
		if _, err := parseLayout([]byte(text)); err == nil {
			t.Errorf("%q: no error", text)
		}
	}
	if _, err := parseMappingFlags([]byte("zz-1 r\n")); err == nil {
		t.Error("no error")
	}
}
