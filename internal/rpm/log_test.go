package rpm

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io/fs"
	"testing"
	"time"
)

func zipped(text string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write([]byte(text))
	_ = w.Close()
	return b.String()
}

const (
	oldestLog = `2026-01-01T09:00:00+0000 INFO --- logging initialized ---
2026-01-01T10:00:00+0000 SUBDEBUG Installed: libz-1:1.0-1.el9.x86_64
2026-01-02T10:00:00+0000 INFO --- logging initialized ---
2026-01-02T10:00:10+0000 SUBDEBUG Upgrade: libz-1:1.1-1.el9.x86_64
`
	olderLog = `2026-01-02T10:00:20Z SUBDEBUG Upgraded: libz-1:1.0-1.el9.x86_64
2026-02-02T12:00:00+0200 INFO --- logging initialized ---
2026-02-02T12:00:10+0200 SUBDEBUG Upgrade: libz-1:1.2-1.el9.x86_64
2026-02-02T12:00:10+0200 SUBDEBUG Upgrade: libz-1:6.6-1.el9.i686
2026-02-02T12:00:10+0200 SUBDEBUG Upgrade: libz-devel-1:1.2-1.el9.x86_64
2026-02-02T12:00:20+0200 SUBDEBUG Upgraded: libz-1:1.1-1.el9.x86_64
2026-02-02T12:00:20+0200 SUBDEBUG Upgraded: libz-1:6.5-1.el9.i686
2026-02-02T12:00:20+0200 SUBDEBUG Upgraded: libz-devel-1:1.1-1.el9.x86_64
`
	newestLog = `2026-03-01T10:00:00+0000 INFO --- logging initialized ---
no time SUBDEBUG Upgrade: libz-1:9-9.x86_64
2026-03-01T10:00:05+0000 INFO warning: /etc/z created as /etc/z.rpmnew
2026-03-01T10:00:10+0000 SUBDEBUG Upgrade: libz
2026-03-01T10:00:10+0000 SUBDEBUG Upgrade: libz-1:` + "\x1b" + `[2J-1.x86_64
2026-03-01T10:00:10+0000 SUBDEBUG Downgrade: libz-1:1.1-1.el9.x86_64
2026-03-01T10:00:20+0000 SUBDEBUG Downgraded: libz-1:1.2-1.el9.x86_64
2026-03-02T10:00:20+0000 SUBDEBUG Upgraded: libz-1:1.1-1.el9.x86_64
`
)

func TestVersion(t *testing.T) {
	all := map[string]string{"var/log/dnf.rpm.log": newestLog, "var/log/dnf.rpm.log.1": olderLog, "var/log/dnf.rpm.log-20260103.gz": zipped(oldestLog), "var/log/dnf.log": "", "var/log/dnf.rpm.log.bak": "", "var/log/dnf.rpm.logs": ""}
	newest := map[string]string{"var/log/dnf.rpm.log": newestLog}
	tests := []struct {
		name              string
		files             map[string]string
		installed, moment string
		exact             bool
		want              string
	}{
		{"before all upgrades", all, "1:1.1-1.el9", "2026-01-01T09:59:00Z", true, "1:1.0-1.el9"},
		{"before all that is left of the log", all, "1:1.1-1.el9", "2025-12-31T00:00:00Z", true, ""},
		{"made by the first upgrade", all, "1:1.1-1.el9", "2026-01-02T10:00:09Z", true, "1:1.1-1.el9"},
		{"between upgrades", all, "1:1.1-1.el9", "2026-02-01T00:00:00Z", true, "1:1.1-1.el9"},
		{"made by the second upgrade, in another zone", all, "1:1.1-1.el9", "2026-02-02T10:00:05Z", true, "1:1.2-1.el9"},
		{"before the downgrade", all, "1:1.1-1.el9", "2026-02-20T00:00:00Z", true, "1:1.2-1.el9"},
		{"made by the last of them", all, "1:1.1-1.el9", "2026-03-01T10:00:05Z", true, ""},
		{"after all of them", all, "1:1.1-1.el9", "2026-04-01T00:00:00Z", true, ""},
		{"started before one upgrade", all, "1:1.1-1.el9", "2026-02-20T00:00:00Z", false, "1:1.2-1.el9"},
		{"started before two", all, "1:1.1-1.el9", "2026-02-01T00:00:00Z", false, ""},
		{"started within an upgrade", all, "1:1.1-1.el9", "2026-03-01T10:00:05Z", false, ""},
		{"another than dnf upgraded last", all, "1:1.3-1.el9", "2026-02-20T00:00:00Z", true, ""},
		{"a log that was never rotated", newest, "1:1.1-1.el9", "2020-01-01T00:00:00Z", true, "1:1.2-1.el9"},
		{"no log", nil, "1:1.1-1.el9", "2020-01-01T00:00:00Z", true, ""},
		{"another upgraded in between", map[string]string{"var/log/dnf.rpm.log.1": olderLog, "var/log/dnf.rpm.log": `2026-03-01T10:00:00Z INFO --- logging initialized ---
2026-03-01T10:00:10Z SUBDEBUG Upgrade: libz-1:1.4-1.el9.x86_64
2026-03-01T10:00:20Z SUBDEBUG Upgraded: libz-1:1.3-1.el9.x86_64
`}, "1:1.4-1.el9", "2026-02-20T00:00:00Z", true, ""},
		{"the run's begin is not in the log", map[string]string{"var/log/dnf.rpm.log": `2026-03-01T10:00:10Z SUBDEBUG Upgrade: libz-0:1.4-1.x86_64
2026-03-01T10:00:20Z SUBDEBUG Upgraded: libz-1.3-1.x86_64
`}, "1.4-1", "2026-02-20T00:00:00Z", true, ""},
		{"another upgraded between the last", map[string]string{"var/log/dnf.rpm.log": `2026-03-01T10:00:00Z INFO --- logging initialized ---
2026-03-01T10:00:10Z SUBDEBUG Upgrade: libz-1.3-1.x86_64
2026-03-01T10:00:20Z SUBDEBUG Upgraded: libz-1.2-1.x86_64
2026-03-02T10:00:00Z INFO --- logging initialized ---
2026-03-02T10:00:10Z SUBDEBUG Upgrade: libz-1.5-1.x86_64
2026-03-02T10:00:20Z SUBDEBUG Upgraded: libz-1.4-1.x86_64
`}, "1.5-1", "2026-02-20T00:00:00Z", true, ""},
		{"the first run's begin is not in the log", map[string]string{"var/log/dnf.rpm.log": `2026-03-01T10:00:10Z SUBDEBUG Upgrade: libz-1.3-1.x86_64
2026-03-01T10:00:20Z SUBDEBUG Upgraded: libz-1.2-1.x86_64
2026-03-02T10:00:00Z INFO --- logging initialized ---
2026-03-02T10:00:10Z SUBDEBUG Upgrade: libz-1.5-1.x86_64
2026-03-02T10:00:20Z SUBDEBUG Upgraded: libz-1.3-1.x86_64
`}, "1.5-1", "2026-02-20T00:00:00Z", true, ""},
		{"a run that was broken off", map[string]string{"var/log/dnf.rpm.log": `2026-03-01T10:00:00Z INFO --- logging initialized ---
2026-03-01T10:00:10Z SUBDEBUG Upgrade: libz-1.4-1.x86_64
2026-03-02T10:00:00Z INFO --- logging initialized ---
2026-03-02T10:00:20Z SUBDEBUG Upgraded: libz-1.3-1.x86_64
`}, "1.4-1", "2026-02-20T00:00:00Z", true, ""},
		{"as dnf 3 wrote it", map[string]string{"var/log/dnf.rpm.log": `2026-03-01T10:00:00Z INFO --- logging initialized ---
2026-03-01T10:00:10Z INFO Upgraded: libz-1.4-1.x86_64
2026-03-01T10:00:20Z INFO Cleanup: libz-1.3-1.x86_64
`}, "1.4-1", "2026-02-20T00:00:00Z", true, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			l, err := open(t, tree(test.files)).Log()
			if err != nil {
				t.Fatal(err)
			}
			moment, err := time.Parse(time.RFC3339, test.moment)
			if err != nil {
				t.Fatal(err)
			}
			if got := l.Version(Package{"libz", "x86_64", test.installed}, moment, test.exact); got != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
	t.Run("a part that can't be read leaves no log", func(t *testing.T) {
		if _, err := open(t, tree(map[string]string{"var/log/dnf.rpm.log": newestLog, "var/log/dnf.rpm.log.2.gz": "no gzip"})).Log(); err == nil {
			t.Error("no error")
		}
	})
}

func TestParseNEVRA(t *testing.T) {
	for text, want := range map[string]Package{
		"openssl-libs-1:3.0.7-25.el9_3.x86_64": {"openssl-libs", "x86_64", "1:3.0.7-25.el9_3"},
		"bash-0:5.1-1.noarch":                  {"bash", "noarch", "5.1-1"},
		"a-1-1.x":                              {"a", "x", "1-1"},
	} {
		if got, ok := parseNEVRA(text); !ok || got != want {
			t.Errorf("%s: %+v", text, got)
		}
	}
	for _, text := range []string{"", ".", "a.x", "a-1.x", "-1-1.x", "a-1-1", "a-1-1.", "a b-1-1.x"} {
		if got, ok := parseNEVRA(text); ok {
			t.Errorf("%q: %+v", text, got)
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

func TestLogWithoutEnd(t *testing.T) {
	d := open(t, tree(map[string]string{"var/log/dnf.rpm.log": ""}))
	d.root = endless{d.root}
	if _, err := d.Log(); !errors.Is(err, ErrTooLarge) {
		t.Error(err)
	}
}

// FuzzLog reads hostile logs.
func FuzzLog(f *testing.F) {
	f.Add(newestLog, oldestLog)
	f.Add("2026-03-01T10:00:00Z SUBDEBUG Upgrade: \n", "")
	f.Fuzz(func(t *testing.T, first, second string) {
		l, err := open(t, tree(map[string]string{"var/log/dnf.rpm.log": first, "var/log/dnf.rpm.log.1": second})).Log()
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range l.upgrades {
			if !validName(u.Name) || !validVersion(u.Old) || !validVersion(u.New) || u.End.Before(u.Begin) {
				t.Errorf("%+v", u)
			}
			_ = l.Version(Package{u.Name, u.Architecture, u.New}, u.End.Add(-1), true)
		}
	})
}
