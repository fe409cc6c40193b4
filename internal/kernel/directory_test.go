package kernel

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func openTestDirectory(t *testing.T) (*Directory, string) {
	t.Helper()
	path := t.TempDir()
	d, err := OpenDirectory(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d, path
}

func TestDirectory(t *testing.T) {
	d, path := openTestDirectory(t)
	large := strings.Repeat("0123456789abcdef", 5000)
	for name, content := range map[string]string{"small": "small", "empty": "", "large": large} {
		if err := os.WriteFile(filepath.Join(path, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := d.ReadFile(name, make([]byte, 3, 100))
		if string(got) != content || err != nil {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	target := strings.Repeat("x", 3000)
	if err := os.Symlink(target, filepath.Join(path, "link")); err != nil {
		t.Fatal(err)
	}
	if got, err := d.ReadLink("link"); got != target || err != nil {
		t.Errorf("link: %d bytes, %v", len(got), err)
	}
	st, err := d.Stat("large")
	if err != nil || st.Size != int64(len(large)) || st.Links != 1 || st.Mode != 0 || st.Modified.IsZero() {
		t.Errorf("stat %+v, %v", st, err)
	}
	file, err := d.Open("large", PathOnly)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if again, err := StatFile(file); err != nil || again != st {
		t.Errorf("stat of the open file %+v, %v; want %+v", again, err, st)
	}
	readable, err := Reopen(file, unix.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer readable.Close()
	var b [4]byte
	if _, err := readable.ReadAt(b[:], 16); err != nil || string(b[:]) != "0123" {
		t.Errorf("%q, %v", b, err)
	}
	for what, err := range map[string]error{
		"open": func() error { _, err := d.Open("none", unix.O_RDONLY); return err }(),
		"read": func() error { _, err := d.ReadFile("none", nil); return err }(),
		"link": func() error { _, err := d.ReadLink("none"); return err }(),
		"stat": func() error { _, err := d.Stat("none"); return err }(),
		"dir":  func() error { _, err := d.Directory("none"); return err }(),
	} {
		if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "none") {
			t.Errorf("%s of nothing: %v", what, err)
		}
	}
}

func TestOpenInRoot(t *testing.T) {
	d, path := openTestDirectory(t)
	os.WriteFile(filepath.Join(path, "file"), []byte("inside"), 0o644)
	os.Symlink("/file", filepath.Join(path, "absolute"))
	os.Symlink("../../file", filepath.Join(path, "upwards"))
	for _, name := range []string{"file", "/file", "/absolute", "/upwards", "/../file"} {
		file, err := d.OpenInRoot(name, unix.O_RDONLY)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var b [6]byte
		if _, err := file.Read(b[:]); string(b[:]) != "inside" {
			t.Errorf("%s: %q, %v", name, b, err)
		}
		file.Close()
	}
	if file, err := d.OpenInRoot("/etc/passwd", unix.O_RDONLY); !errors.Is(err, fs.ErrNotExist) {
		file.Close()
		t.Errorf("outside: %v", err)
	}
}

func TestDirectoryAfterClose(t *testing.T) {
	d, _ := openTestDirectory(t)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	if _, err := d.Stat("x"); !errors.Is(err, unix.EBADF) {
		t.Errorf("use after close: %v, want EBADF", err)
	}
}

func TestMapPage(t *testing.T) {
	_, path := openTestDirectory(t)
	name := filepath.Join(path, "file")
	os.WriteFile(name, []byte("mapped"), 0o644)
	file, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	mapped := func() bool {
		maps, err := os.ReadFile("/proc/self/maps")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(string(maps), name)
	}
	address, unmap, err := MapPage(file)
	if err != nil || address%pageSize != 0 || !mapped() {
		t.Errorf("at %#x, %v", address, err)
	}
	if err := unmap(); err != nil || mapped() {
		t.Errorf("unmapped: %v", err)
	}
}

func TestPidfd(t *testing.T) {
	cmd := exec.Command("cat")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pidfd, err := OpenPidfd(cmd.Process.Pid)
	if err != nil {
		stdin.Close()
		cmd.Wait()
		requireFeature(t, err)
	}
	defer pidfd.Close()
	if alive, err := PidfdAlive(pidfd); !alive || err != nil {
		t.Errorf("running: %v, %v", alive, err)
	}
	stdin.Close()
	cmd.Wait()
	if alive, err := PidfdAlive(pidfd); alive || err != nil {
		t.Errorf("ended: %v, %v", alive, err)
	}
	if file, err := OpenPidfd(cmd.Process.Pid); !errors.Is(err, unix.ESRCH) {
		file.Close()
		t.Errorf("of a pid that is none: %v", err)
	}
}
