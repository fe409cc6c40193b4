package rpm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// tree makes a root directory that has a database and other files.
func tree(files map[string]string) fstest.MapFS {
	root := fstest.MapFS{"var/lib/rpm/rpmdb.sqlite": {Data: []byte("a database")}}
	for name, text := range files {
		root[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return root
}

func open(t testing.TB, root fs.FS) *Database {
	t.Helper()
	d, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// fakeRPM makes a script the only rpm. It runs as nobody, and finds the shell.
func fakeRPM(t *testing.T, script string) (folder string) {
	t.Helper()
	folder, err := os.MkdirTemp("", "vos-fake-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(folder) })
	err = os.Chmod(folder, 0o755)
	if err == nil {
		err = os.WriteFile(filepath.Join(folder, "rpm"), []byte("#!/bin/sh\n"+script+"\n"), 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", folder+":/usr/bin:/bin")
	return folder
}

// privateTemp makes a folder for temporary files, and checks that nothing is
// left there.
func privateTemp(t *testing.T) {
	t.Helper()
	folder, err := os.MkdirTemp("", "vos-private-")
	if err == nil {
		err = os.Chmod(folder, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", folder)
	t.Cleanup(func() {
		left, err := os.ReadDir(folder)
		if err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
		os.RemoveAll(folder)
	})
}

func TestOwners(t *testing.T) {
	folder := fakeRPM(t, `{ for a; do echo "<$a>"; done; id -u; pwd; cat "$2/rpmdb.sqlite"; echo; env; } > "${0%/*}/seen/asked"
cat "${0%/*}/answer"; echo "error: file /nowhere: No such file or directory" >&2; exit 3`)
	seen := filepath.Join(folder, "seen")
	err := os.Mkdir(seen, 0o700)
	if err == nil {
		err = os.Chmod(seen, 0o777)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(folder, "answer"), []byte(strings.Join([]string{
			"P\tzlib\tx86_64\t0:1.2-3.el9", "F/usr/lib64/libz.so.1", "F/usr/share/doc/zlib",
			"P\tsecond\t(none)\t1-1", "F/usr/lib64/libz.so.1", "F/lib64/libold.so",
			"P\t\x1b[2J\tx86_64\t1-1", "F/usr/bin/evil",
			"P\tevil\tx86_64\t1 2", "F/usr/bin/evil",
			"P\tevil\tx86_64", "F/usr/bin/evil",
			"file /usr/bin/evil is not owned by any package", "F", "",
			"P\tepoch\tnoarch\t2:1.0~rc1-1", "F/opt/x y'\"$(id)",
		}, "\n")), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("SECRET", "1")
	privateTemp(t)
	paths := []string{"/usr/lib64/libz.so.1", "/usr/lib64/libold.so", "/usr/bin/evil", "/nowhere", "/opt/x y'\"$(id)", "-e", "", "/new\nline", "/nul\x00"}
	got, err := open(t, tree(nil)).Owners(context.Background(), paths)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]Package{
		"/usr/lib64/libz.so.1": {"zlib", "x86_64", "1.2-3.el9"}, // of two, the first
		"/usr/lib64/libold.so": {"second", "", "1-1"},           // which lists it as /lib64
		"/opt/x y'\"$(id)":     {"epoch", "noarch", "2:1.0~rc1-1"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	text, err := os.ReadFile(filepath.Join(seen, "asked"))
	if err != nil {
		t.Fatal(err)
	}
	asked := string(text)
	user := fmt.Sprint(os.Getuid())
	if os.Getuid() == 0 {
		user = fmt.Sprint(nobody)
	}
	_, after, _ := strings.Cut(asked, "\n<-->\n")
	wanted := "</usr/lib64/libz.so.1>\n</lib64/libz.so.1>\n</usr/lib64/libold.so>\n</lib64/libold.so>\n</usr/bin/evil>\n</bin/evil>\n</nowhere>\n</opt/x y'\"$(id)>\n" +
		user + "\n/\na database\n"
	if !strings.HasPrefix(after, wanted) {
		t.Errorf("rpm was asked:\n%s", asked)
	}
	if !strings.Contains(asked, "\nLC_ALL=C\n") || !strings.Contains(asked, "\nHOME=/nonexistent\n") || strings.Contains(asked, "SECRET") {
		t.Errorf("its environment:\n%s", asked)
	}
}

func TestManyPaths(t *testing.T) {
	fakeRPM(t, `shift 9; printf 'P\tmany\tnoarch\t1-1\n'; for a; do echo "F$a"; done`)
	var paths []string
	for i := range 3000 {
		paths = append(paths, fmt.Sprintf("/opt/%s/%d", strings.Repeat("long", 100), i))
	}
	got, err := open(t, tree(nil)).Owners(context.Background(), paths)
	if err != nil || len(got) != len(paths) {
		t.Errorf("%d owners, %v", len(got), err)
	}
}

func TestRPMFails(t *testing.T) {
	tests := []struct {
		name, script, message string
		is                    error
	}{
		{"it can't read the database", `echo 'error: cannot open Packages database in /x' >&2; exit 1`, "cannot open Packages database", nil},
		{"it crashes", `kill -SEGV $$`, "segmentation fault", nil},
		{"it never ends", `exec sleep 1000`, "", context.DeadlineExceeded},
		{"what it started never ends", `sleep 1000 & echo $! >&2; wait`, "", context.DeadlineExceeded},
		{"its answer never ends", `exec yes`, "", ErrTooLarge},
		{"its complaints never end", `exec yes >&2`, "", context.DeadlineExceeded},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			fakeRPM(t, test.script)
			privateTemp(t)
			d := open(t, tree(nil))
			if errors.Is(test.is, context.DeadlineExceeded) {
				d.patience = 100 * time.Millisecond
			}
			got, err := d.Owners(context.Background(), []string{"/usr/bin/a"})
			if err == nil || len(got) > 0 || test.is != nil && !errors.Is(err, test.is) || !strings.Contains(err.Error(), test.message) {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
	t.Run("there is none", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		if _, err := open(t, tree(nil)).Owners(context.Background(), []string{"/a"}); !errors.Is(err, exec.ErrNotFound) {
			t.Error(err)
		}
	})
	t.Run("the caller gives up", func(t *testing.T) {
		fakeRPM(t, "exec sleep 1000")
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := open(t, tree(nil)).Owners(ctx, []string{"/a"}); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

// A writer is a file system whose database is written to when it is read.
type writer struct{ fstest.MapFS }

func (w writer) Open(name string) (fs.File, error) {
	file, err := w.MapFS.Open(name)
	if found := w.MapFS[name]; found != nil {
		w.MapFS[name] = &fstest.MapFile{Data: append(slices.Clone(found.Data), 0)}
	}
	return file, err
}

func TestDatabaseIsWritten(t *testing.T) {
	fakeRPM(t, "exit 0")
	privateTemp(t)
	if _, err := open(t, writer{tree(nil)}).Owners(context.Background(), []string{"/a"}); !errors.Is(err, ErrChanging) {
		t.Error(err)
	}
}

func TestDatabaseIsTooLarge(t *testing.T) {
	fakeRPM(t, "exit 0")
	privateTemp(t)
	d := open(t, tree(map[string]string{"var/lib/rpm/rpmdb.sqlite-wal": "more"}))
	d.most = int64(len("a databasemore"))
	if _, err := d.Owners(context.Background(), []string{"/a"}); err != nil {
		t.Error(err)
	}
	d.most--
	if _, err := d.Owners(context.Background(), []string{"/a"}); !errors.Is(err, ErrTooLarge) {
		t.Error(err)
	}
}

// TestWhatRPMStartedEnds gives up on an rpm that waits for another program.
func TestWhatRPMStartedEnds(t *testing.T) {
	folder := fakeRPM(t, `sleep 1000 & echo $! > "${0%/*}/seen/pid"; mv "${0%/*}/seen/pid" "${0%/*}/seen/started"; wait`)
	seen := filepath.Join(folder, "seen")
	if err := errors.Join(os.Mkdir(seen, 0o700), os.Chmod(seen, 0o777)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	pid := ""
	go func() {
		defer cancel()
		for range 1000 {
			if text, err := os.ReadFile(filepath.Join(seen, "started")); err == nil {
				pid = strings.TrimSpace(string(text))
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	if _, err := open(t, tree(nil)).Owners(ctx, []string{"/a"}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	<-ctx.Done()
	for range 1000 {
		// A process that has ended and was not waited for has no command line.
		if line, err := os.ReadFile("/proc/" + pid + "/cmdline"); err != nil || len(line) == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%s runs on", pid)
}

func TestNoDatabase(t *testing.T) {
	for name, root := range map[string]fs.FS{
		"nothing":             fstest.MapFS{},
		"a folder is there":   fstest.MapFS{"var/lib/rpm/rpmdb.sqlite": {Mode: fs.ModeDir}},
		"an empty file":       fstest.MapFS{"var/lib/rpm/Packages": {}},
		"only part of one":    fstest.MapFS{"var/lib/rpm/Basenames": {Data: []byte("x")}},
		"a folder of scripts": fstest.MapFS{"usr/lib/rpm/macros": {Data: []byte("x")}},
	} {
		if _, err := Open(root); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCopiesOfTheKilled removes what a killed vos left, and nothing else.
func TestCopiesOfTheKilled(t *testing.T) {
	testbed.NeedRoot(t) // files of others
	fakeRPM(t, "exit 0")
	temp := t.TempDir()
	if err := os.Chmod(filepath.Dir(temp), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", temp)
	outside := t.TempDir()
	leave := func(name string, age time.Duration, owner int) {
		t.Helper()
		folder := filepath.Join(temp, name)
		err := errors.Join(os.Mkdir(folder, 0o700), os.WriteFile(filepath.Join(folder, "Packages"), nil, 0o600), os.Symlink(outside, filepath.Join(folder, "link")),
			os.Chown(folder, owner, owner), os.Chtimes(folder, time.Time{}, time.Now().Add(-age)))
		if err != nil {
			t.Fatal(err)
		}
	}
	leave("vos-rpm-1", 2*stale, nobody)
	leave("vos-rpm-2", stale/2, nobody)
	leave("vos-rpm-3", 2*stale, 0)
	leave("vos-rpm", 2*stale, nobody)
	if _, err := open(t, tree(nil)).Owners(context.Background(), []string{"/a"}); err != nil {
		t.Fatal(err)
	}
	var left []string
	entries, err := os.ReadDir(temp)
	for _, entry := range entries {
		left = append(left, entry.Name())
	}
	if want := []string{"vos-rpm", "vos-rpm-2", "vos-rpm-3"}; err != nil || !slices.Equal(left, want) {
		t.Errorf("left: %v, %v", left, err)
	}
	if _, err := os.Stat(outside); err != nil {
		t.Error(err)
	}
}

// TestFormatThatRPMDoesNotKnow lets rpm do what the real one does.
func TestFormatThatRPMDoesNotKnow(t *testing.T) {
	fakeRPM(t, `echo x > "$2/rpmdb.sqlite"; echo "file /a is not owned by any package"; exit 1`)
	privateTemp(t)
	d := open(t, fstest.MapFS{"usr/lib/sysimage/rpm/Packages.db": {Data: []byte("ndb")}})
	if _, err := d.Owners(context.Background(), []string{"/a"}); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}

// TestRealPackages builds, installs and upgrades packages by rpm, below a root
// directory, and asks about them.
func TestRealPackages(t *testing.T) {
	testbed.NeedRoot(t) // rpm changes its root directory
	root := t.TempDir()
	first, second := filepath.Join(t.TempDir(), "first"), filepath.Join(t.TempDir(), "second")
	for _, name := range []string{first, second} {
		if err := os.WriteFile(name, []byte(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	const library, tool = "/usr/lib64/libvostest.so.1", "/opt/vostest/tool"
	privateTemp(t)
	check := func(want map[string]Package) {
		t.Helper()
		before := listing(t, root)
		got, err := open(t, os.DirFS(root)).Owners(context.Background(),
			[]string{library, "/lib64/libvostest.so.1", "/usr/bin/env", "/nowhere", "/usr/lib64", tool})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(before, listing(t, root)); diff != "" {
			t.Errorf("the root directory was changed: %s", diff)
		}
	}
	testbed.InstallRPM(t, root, testbed.RPM{Name: "libvostest", Version: "2:1.0", Release: "1.el9", Files: map[string]string{library: first}})
	old := Package{"libvostest", "x86_64", "2:1.0-1.el9"}
	check(map[string]Package{library: old, "/lib64/libvostest.so.1": old})
	testbed.InstallRPM(t, root, testbed.RPM{Name: "libvostest", Version: "2:1.1", Release: "1.el9", Files: map[string]string{library: second}})
	testbed.InstallRPM(t, root, testbed.RPM{Name: "vostest-tool", Version: "3~rc1", Release: "1", Files: map[string]string{tool: first}})
	fresh := Package{"libvostest", "x86_64", "2:1.1-1.el9"}
	check(map[string]Package{library: fresh, "/lib64/libvostest.so.1": fresh, tool: {"vostest-tool", "x86_64", "3~rc1-1"}})

	for _, files := range formats {
		t.Run("a spoilt "+files[0], func(t *testing.T) {
			spoilt := fstest.MapFS{"var/lib/rpm/" + files[0]: {Data: []byte(strings.Repeat("no database ", 1000))}}
			if got, err := open(t, spoilt).Owners(context.Background(), []string{library}); err == nil {
				t.Errorf("no error: %v", got)
			}
		})
	}
}

// listing returns the names, sizes and times of all files.
func listing(t *testing.T, root string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			all = append(all, fmt.Sprint(path, info.Mode(), info.Size(), info.ModTime()))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// FuzzAnswer reads hostile answers.
func FuzzAnswer(f *testing.F) {
	f.Add("P\ta\tnoarch\t1-1\nF/a\n", "/a")
	f.Add("F/a\nP\t\t\t\nF/a\nP\n\n", "/usr/lib/a")
	f.Fuzz(func(t *testing.T, answer, path string) {
		listed := make(map[string]Package)
		read([]byte(answer), forms(path), listed)
		for path, p := range listed {
			if !validName(p.Name) || !validVersion(p.Version) || p.Architecture != "" && !validName(p.Architecture) {
				t.Errorf("%s: %+v", path, p)
			}
		}
	})
}
