package live

import (
	"bytes"
	"context"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// An opening is a program that opens modules of a package by dlopen, from a folder
// that it is told.
type opening struct {
	name    string
	pkg     string
	folder  string // of the modules in the package, below /
	modules []string
	// One of them has another constant in the new build, of the same length.
	marked   string
	old, new string
	start    func(t *testing.T, folder string) served
	answers  [2]string // what answers show
}

var openings = []opening{
	{
		name: "nginx", pkg: "libnginx-mod-http-xslt-filter", folder: "usr/lib/nginx/modules",
		modules: []string{"ngx_http_xslt_filter_module.so"},
		marked:  "ngx_http_xslt_filter_module.so", old: "text/html\x00", new: "text/HTML\x00",
		answers: [2]string{"text/html", "text/HTML"},
		start: func(t *testing.T, folder string) served {
			n := testbed.RunNginx(t, testbed.NginxOptions{XSLT: filepath.Join(folder, "ngx_http_xslt_filter_module.so"), Header: "Content-Type"})
			return loaded(n.Load(context.Background(), testbed.LoadOptions{}), n.Pids, "text/html", "text/HTML")
		},
	},
	{
		name: "apache", pkg: "apache2-bin", folder: "usr/lib/apache2/modules",
		modules: testbed.ApacheModules,
		marked:  "mod_headers.so", old: "(null)\x00", new: "(none)\x00",
		answers: [2]string{"(null)", "(none)"},
		start: func(t *testing.T, folder string) served {
			a := testbed.RunApache(t, testbed.ApacheOptions{Modules: folder})
			return loaded(a.Load(context.Background(), testbed.LoadOptions{Fresh: -1}), a.Pids, "(null)", "(none)")
		},
	},
	{
		name: "postgresql", pkg: "postgresql-15", folder: "usr/lib/postgresql/15/lib",
		modules: []string{"fuzzystrmatch.so"},
		// The codes of letters, A to Z: B sounds like M then.
		marked: "fuzzystrmatch.so", old: "01230120022455012623010202", new: "05230120022455012623010202",
		start: func(t *testing.T, folder string) served {
			library := filepath.Join(folder, "fuzzystrmatch.so")
			p := testbed.RunPostgres(t, testbed.PostgresOptions{
				Setup: "create function soundex(text) returns text as '" + library + "', 'soundex' language c immutable strict;" +
					"create function levenshtein(text, text) returns int as '" + library + "', 'levenshtein' language c immutable strict",
				Asked: []testbed.Asked{
					{Query: "select soundex('Robert' || left(version(), 0))", Marks: map[string]string{"R163": "sounds", "R563": "sounds other"}},
					{Query: "select levenshtein('GUMBO', 'GAMBOL')", Marks: map[string]string{"2": ""}},
				},
			})
			load := p.Load(context.Background(), testbed.LoadOptions{Fresh: -1})
			if err := load.Await(t.Context(), 60); err != nil {
				t.Fatal(err)
			}
			return loaded(load, func() []int {
				return having(t, "fuzzystrmatch.so", testbed.Children(p.Pid()))
			}, "sounds", "sounds other")
		},
		answers: [2]string{"sounds", "sounds other"},
	},
	{
		name: "gstreamer", pkg: "gstreamer1.0-plugins-base", folder: "usr/lib/x86_64-linux-gnu/gstreamer-1.0",
		modules: []string{"libgstaudiotestsrc.so"},
		// The greatest sample, 32767.0, is 16384.0 then.
		marked: "libgstaudiotestsrc.so", old: "\x00\x00\x00\x00\xc0\xff\xdf\x40", new: "\x00\x00\x00\x00\x00\x00\xd0\x40",
		start: func(t *testing.T, folder string) served {
			const core = "libgstcoreelements.so"
			copyFile(t, filepath.Join("/usr/lib/x86_64-linux-gnu/gstreamer-1.0", core), filepath.Join(folder, core))
			sound := testbed.RunSound(t, folder)
			return served{
				pids: one(sound.Pid),
				build: func(t *testing.T) string {
					t.Helper()
					level, err := sound.Level(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					return strconv.Itoa(level)
				},
				end: func(t *testing.T) {
					t.Helper()
					if levels, err := sound.Levels(); err != nil || !slices.Equal(levels, []int{8192, 16383}) {
						t.Errorf("levels %v: %v", levels, err)
					}
				},
			}
		},
		answers: [2]string{"16383", "8192"},
	},
}

// TestUpgradeOfOpenedModules lets real builds of Debian take over of modules that
// programs have opened by dlopen: they have no soname, their names are local, and
// they bind to the executable. One of them is marked, so that answers show it, even
// where the update left that one as it was.
func TestUpgradeOfOpenedModules(t *testing.T) {
	for _, o := range openings {
		t.Run(o.name, func(t *testing.T) {
			old, new := unpackedPair(t, o.pkg)
			folder := publicFolder(t)
			var changing []string // what has another build, which by the files may take over
			for _, m := range o.modules {
				from, to := filepath.Join(old, o.folder, m), filepath.Join(new, o.folder, m)
				copyFile(t, from, filepath.Join(folder, m))
				if (m == o.marked || buildID(t, from) != buildID(t, to)) && mayTakeOver(t, testbed.LibraryBuild{Path: from}, testbed.LibraryBuild{Path: to}) {
					changing = append(changing, m)
				}
			}
			if !slices.Contains(changing, o.marked) {
				t.Fatalf("of the builds of %s that the mirror serves, only %v may take over: choose another module for this test", o.pkg, changing)
			}
			s := o.start(t, folder)
			expectBuild(t, s, o.answers[0])
			pids := s.pids()
			if len(pids) == 0 {
				t.Fatal("no process has the modules")
			}
			for _, m := range changing {
				path := filepath.Join(new, o.folder, m)
				if m == o.marked {
					path = retold(t, path, o.old, o.new)
				}
				replaceFile(t, path, filepath.Join(folder, m))
			}
			for round := range 2 {
				allTakeOver(t, pids, changing, api.Replaced, "replace", "--outdated")
				expectBuild(t, s, o.answers[1])
				if round == 0 {
					allTakeOver(t, pids, changing, api.RolledBack, "rollback")
					expectBuild(t, s, o.answers[0])
				}
			}
			s.end(t)
		})
	}
}

// unpackedPair returns the folders of the oldest and the newest of the versions of
// a package that the mirror serves.
func unpackedPair(t *testing.T, name string) (old, new string) {
	t.Helper()
	archive, err := testbed.OpenArchive(false)
	if err != nil {
		t.Fatal(err)
	}
	packages, err := archive.Packages(t.Context(), name)
	if err != nil || len(packages) == 0 || len(packages[0].Versions) < 2 {
		t.Fatalf("the mirror serves no two versions of %s: %v %v", name, packages, err)
	}
	all := packages[0].Versions
	folders := make([]string, 2)
	for i, version := range []string{all[0], all[len(all)-1]} {
		if folders[i], err = archive.Unpacked(t.Context(), name, version); err != nil {
			t.Fatal(err)
		}
	}
	return folders[0], folders[1]
}

// retold copies a build in which a constant is another one, as long, and which has
// another build-id.
func retold(t *testing.T, path, from, to string) string {
	t.Helper()
	return altered(t, path, func(b []byte) []byte {
		if len(from) != len(to) || !bytes.Contains(b, []byte(from)) {
			t.Fatalf("%s has no constant %q", path, from)
		}
		b[buildIDOffset(t, b)] ^= 1
		return bytes.ReplaceAll(b, []byte(from), []byte(to))
	})
}

// allTakeOver runs vos on each process, which must do the modules and no other.
func allTakeOver(t *testing.T, pids []int, names []string, want api.Outcome, args ...string) {
	t.Helper()
	names = slices.Sorted(slices.Values(names))
	for _, pid := range pids {
		var done []string
		for _, o := range operations(t, vos(t, append(args, strconv.Itoa(pid), "--json")...).expect(t, 0)) {
			if o.Outcome != want {
				t.Errorf("%s of %d: %s, not %s: %s %v", o.Module, pid, o.Outcome, want, o.Error, o.Refusals)
			}
			t.Logf("%s %s of %d: %d functions, stopped %d µs, in all %d µs", o.Outcome, o.Module, pid, o.Functions, o.PauseUS, o.TotalUS)
			done = append(done, o.Module)
		}
		if slices.Sort(done); !slices.Equal(done, names) {
			t.Errorf("%v of %d did %v, not %v", args, pid, done, names)
		}
		vos(t, "verify", strconv.Itoa(pid)).expect(t, 0)
		checkFree(t, pid)
	}
}
