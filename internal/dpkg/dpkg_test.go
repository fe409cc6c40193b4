package dpkg

import (
	"bytes"
	"compress/gzip"
	"errors"
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

// tree makes a root directory of files.
func tree(files map[string]string) fstest.MapFS {
	root := fstest.MapFS{infoFolder: {Mode: fs.ModeDir | 0o755}}
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

const status = `Package: libz1
Status: install ok installed
Architecture: i386
Multi-Arch: same
Version: 1:1.2.12

Package: libz1
Status: install ok installed
Architecture: amd64
Version: 1:1.2.13
Conffiles:
 /etc/z 0123456789abcdef
Description: compression
 Version: 6.6 in a description is none
 .
 more

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 9

Package: scripts
Status: install ok half-configured
Architecture: all
Version: 3-1

Package: taker
Status: install ok installed
Architecture: amd64
Version: 2

Package: evil
Status: install ok installed
Architecture: amd64
Version: ` + "1\x1b[2J" + `
`

func TestOwners(t *testing.T) {
	d := open(t, tree(map[string]string{
		infoFolder + "/libz1:amd64.list": "/.\n/lib\n/lib/x\n/lib/x/libz.so.1\n/usr/bin/tool\n",
		infoFolder + "/libz1:i386.list":  "/lib/i/libz.so.1\n",
		infoFolder + "/scripts.list":     "/usr/lib/x/libnew.so\n/usr/libexec/helper",
		infoFolder + "/gone.list":        "/etc/gone\n",
		infoFolder + "/evil.list":        "/usr/bin/evil\n",
		infoFolder + "/taker.list":       "/usr/bin/tool\n/usr/bin/other\n",
		infoFolder + "/second.list":      "/usr/lib/x/libz.so.1.real\n",
		infoFolder + "/Not A Name.list":  "/usr/bin/strange\n",
		infoFolder + "/libz1.postinst":   "/usr/bin/strange\n",
		"var/lib/dpkg/status":            status,
		// taker's own tool is at its path, libz1's went aside; other was moved by hand.
		"var/lib/dpkg/diversions": "/usr/bin/tool\n/usr/bin/tool.libz1\ntaker\n/usr/bin/other\n/usr/bin/other.mine\n:\n",
	}))
	z := Package{"libz1", "amd64", "1:1.2.13"}
	want := map[string]Package{
		"/lib/x/libz.so.1":          z,
		"/usr/lib/x/libz.so.1":      z, // as the kernel knows it, with /lib a link
		"/usr/lib/i/libz.so.1":      {"libz1", "i386", "1:1.2.12"},
		"/lib/x/libnew.so":          {"scripts", "all", "3-1"},
		"/usr/libexec/helper":       {"scripts", "all", "3-1"},
		"/etc/gone":                 {Name: "gone"},
		"/usr/bin/evil":             {"evil", "amd64", ""},
		"/usr/bin/tool":             {"taker", "amd64", "2"},
		"/bin/tool.libz1":           z,
		"/usr/bin/other.mine":       {"taker", "amd64", "2"},
		"/usr/lib/x/libz.so.1.real": {Name: "second"},
	}
	paths := []string{"/usr/bin/strange", "/usr/bin/other", "/libexec/helper", "/opt/x", "", "/"}
	for p := range want {
		paths = append(paths, p)
	}
	got, err := d.Owners(paths)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestOwnerOfTheVeryPathWins(t *testing.T) {
	d := open(t, tree(map[string]string{
		infoFolder + "/a.list": "/lib/x/libz.so.1\n",
		infoFolder + "/b.list": "/usr/lib/x/libz.so.1\n",
	}))
	got, err := d.Owners([]string{"/lib/x/libz.so.1", "/usr/lib/x/libz.so.1"})
	if want := (map[string]Package{"/lib/x/libz.so.1": {Name: "a"}, "/usr/lib/x/libz.so.1": {Name: "b"}}); err != nil || !cmp.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestNoDatabase(t *testing.T) {
	for name, root := range map[string]fs.FS{
		"nothing":         fstest.MapFS{},
		"a file is there": fstest.MapFS{infoFolder: {}},
	} {
		if _, err := Open(root); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func zipped(text string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write([]byte(text))
	_ = w.Close()
	return b.String()
}

func TestLog(t *testing.T) {
	const (
		oldest = "2026-01-01 10:00:00 startup archives unpack\n2026-01-02 10:00:00 upgrade libz1:amd64 1.0 1.1\n"
		older  = "2026-02-02 10:00:00 upgrade libz1:i386 1.1 6.6\n2026-02-02 10:00:01 upgrade libz1:amd64 1.1 1.2\n"
		newest = "2026-03-01 10:00:00 status installed libz1:amd64 1.2\nno time upgrade libz1:amd64 1 2\n2026-03-02 10:00:00 upgrade libz1:amd64 1.2 1.3\n" +
			"2026-03-02 10:00:00 upgrade libz10:amd64 7 8\n2026-03-03 10:00:00 upgrade libz1:amd64 1.3\n2026-03-04 10:00:00 upgrade libz1:amd64 1.3 \x1b[2J\n2026-03-05 10:00:00 upgrade libz1 1.3 1.4"
	)
	all := map[string]string{"var/log/dpkg.log": newest, "var/log/dpkg.log.1": older, "var/log/dpkg.log.2.gz": zipped(oldest), "var/log/dpkg.log.bak": "", "var/log/dpkg.logs": ""}
	at := func(s string) time.Time {
		v, err := time.Parse(logTime, s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	tests := []struct {
		name  string
		files map[string]string
		since string
		olds  string
		known bool
	}{
		{"all of it", all, "2026-01-01 10:00:00", "1.0 1.1 1.2 1.3", true},
		{"before the oldest part that is left", all, "2025-12-31 10:00:00", "", false},
		{"the second of an upgrade is after it", all, "2026-02-02 10:00:01", "1.2 1.3", true},
		{"nothing since", all, "2026-04-01 00:00:00", "", true},
		{"no log", nil, "2026-01-01 00:00:00", "", true},
		{"a log that was never rotated", map[string]string{"var/log/dpkg.log": newest}, "2020-01-01 00:00:00", "1.2 1.3", true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			l, err := open(t, tree(test.files)).Log()
			if err != nil {
				t.Fatal(err)
			}
			upgrades, known := l.Since(Package{Name: "libz1", Architecture: "amd64"}, at(test.since))
			var olds []string
			for _, u := range upgrades {
				olds = append(olds, u.Old)
			}
			if strings.Join(olds, " ") != test.olds || known != test.known {
				t.Errorf("%q %v, want %q %v", olds, known, test.olds, test.known)
			}
		})
	}
	t.Run("a part that can't be read leaves no log", func(t *testing.T) {
		if _, err := open(t, tree(map[string]string{"var/log/dpkg.log": newest, "var/log/dpkg.log.2.gz": "no gzip"})).Log(); err == nil {
			t.Error("no error")
		}
	})
}

// TestLogIsWrittenInItsOwnZone takes the time zone of the root directory, not
// that of the machine.
func TestLogIsWrittenInItsOwnZone(t *testing.T) {
	// A file of tzfile(5): one zone, nine hours (0x7e90 seconds) east, without
	// changes.
	zone := "TZif" + strings.Repeat("\x00", 16+4*4) + "\x00\x00\x00\x01" + "\x00\x00\x00\x04" + "\x00\x00\x7e\x90\x00\x00" + "JST\x00"
	for text, want := range map[string]int{zone: 1, "no zone": 10, "": 10} {
		d := open(t, tree(map[string]string{"etc/localtime": text, "var/log/dpkg.log": "2026-01-02 10:00:00 upgrade a:amd64 1 2\n"}))
		l, err := d.Log()
		if err != nil || len(l.upgrades) != 1 || l.upgrades[0].Time.UTC().Hour() != want {
			t.Errorf("%+v, %v: want hour %d", l, err, want)
		}
	}
}

// endless is a file system whose files have no end.
type endless struct{ fs.FS }

func (e endless) Open(name string) (fs.File, error) {
	file, err := e.FS.Open(name)
	if info, statErr := fs.Stat(e.FS, name); err != nil || statErr != nil || info.IsDir() {
		return file, err
	}
	return endlessFile{file}, nil
}

type endlessFile struct{ fs.File }

func (endlessFile) Read(b []byte) (int, error) { return len(b), nil }

func TestFilesWithoutEnd(t *testing.T) {
	for _, file := range []string{"var/lib/dpkg/diversions", infoFolder + "/a.list", "var/log/dpkg.log"} {
		d := open(t, endless{tree(map[string]string{file: ""})})
		_, err := d.Owners([]string{"/a"})
		if strings.HasSuffix(file, ".log") {
			_, err = d.Log()
		}
		if !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// TestAgainstDpkg asks dpkg itself about files of this machine.
func TestAgainstDpkg(t *testing.T) {
	query := testbed.NeedTool(t, "dpkg-query")
	var paths []string
	for _, pattern := range []string{"/usr/bin/[a-m]*", "/usr/lib/x86_64-linux-gnu/lib*.so*", "/usr/sbin/*"} {
		found, _ := filepath.Glob(pattern)
		paths = append(paths, found[:min(len(found), 150)]...)
	}
	begin := time.Now()
	owners, err := open(t, os.DirFS("/")).Owners(paths)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d of %d paths have an owner, found in %v", len(owners), len(paths), time.Since(begin))
	versions := make(map[string]string)
	out, err := exec.Command(query, "-W", "-f", "${Package} ${Architecture} ${Version}\n").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) == 3 {
			versions[f[0]+" "+f[1]] = f[2]
		}
	}
	// It exits with 1 where one of the paths has no owner.
	out, _ = exec.Command(query, append([]string{"-S"}, paths...)...).Output()
	checked := 0
	for line := range strings.Lines(string(out)) {
		names, path, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		if strings.HasPrefix(line, "diversion by ") || !slices.Contains(paths, path) {
			continue
		}
		got, known := owners[path]
		mine := slices.ContainsFunc(strings.Split(names, ", "), func(n string) bool {
			name, _, _ := strings.Cut(n, ":")
			return name == got.Name
		})
		if !known || !mine || got.Version != versions[got.Name+" "+got.Architecture] {
			t.Errorf("%s: %+v, dpkg says %s", path, got, names)
		}
		checked++
	}
	if len(owners) > 0 && checked == 0 {
		t.Error("dpkg knows none of them")
	}
}

// FuzzDatabase reads hostile files as every part of a database.
func FuzzDatabase(f *testing.F) {
	f.Add("/usr/bin/a\n/lib/b\n", "/usr/bin/a\n/usr/bin/a.real\nb\n", status, "2026-01-02 10:00:00 upgrade a:amd64 1 2\n", "TZif")
	f.Add("", "\n\n\n\n", "Package: a\nStatus: x\n\n:\n", " upgrade \n", "")
	f.Fuzz(func(t *testing.T, list, diversions, status, log, zone string) {
		root := tree(map[string]string{
			infoFolder + "/a:amd64.list": list, infoFolder + "/b.list": list, "var/lib/dpkg/diversions": diversions,
			"var/lib/dpkg/status": status, "var/log/dpkg.log": log, "var/log/dpkg.log.1": log, "etc/localtime": zone,
		})
		d, err := Open(root)
		if err != nil {
			t.Fatal(err)
		}
		owners, err := d.Owners([]string{"/usr/bin/a", "/lib/b", "/usr/lib/b", ""})
		if err != nil {
			t.Fatal(err)
		}
		for path, p := range owners {
			if !validName(p.Name) || p.Version != "" && !validVersion(p.Version) || p.Architecture != "" && !validName(p.Architecture) {
				t.Errorf("%s: %+v", path, p)
			}
		}
		l, err := d.Log()
		if err != nil {
			t.Fatal(err)
		}
		upgrades, _ := l.Since(Package{Name: "a"}, time.Time{})
		for _, u := range upgrades {
			if !validVersion(u.Old) || !validVersion(u.New) {
				t.Errorf("%+v", u)
			}
		}
	})
}
