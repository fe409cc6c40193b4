package kernel

import (
	"os"
	"testing"
)

func TestDetachedFile(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can mount")
	}
	const name = "/usr/lib/there/is none.so"
	file, err := DetachedFile(name, 0o750)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	link, err := LinkOf(file)
	info, statErr := file.Stat()
	if err != nil || statErr != nil || link != name+" (deleted)" || info.Mode() != 0o750 || info.Size() != 0 {
		t.Errorf("%q, %v, %v, %v", link, info, err, statErr)
	}
	if _, err := os.Stat("/usr/lib/there"); !os.IsNotExist(err) {
		t.Errorf("something is at its path: %v", err)
	}
	for _, bad := range []string{"", "/", "a", "/a/../b", "/a/"} {
		if _, err := DetachedFile(bad, 0o644); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}
