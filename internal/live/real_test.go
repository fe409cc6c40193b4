package live

import (
	"context"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/module/match"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// TestRealBuildsThatMayNotTakeOver installs a real build of Debian, under a program
// in mid-document, that must not take over from the one before: the refusal says
// what files say, and the program goes on untouched.
func TestRealBuildsThatMayNotTakeOver(t *testing.T) {
	old, new, codes := refusedPair(t, "libexpat1", testbed.Expat.Soname)
	libraries := testbed.RunLibraries(t, old)
	f := testbed.RunStream(t, "expat", testbed.FixtureOptions{Env: libraries.Env()})
	if err := libraries.Install(new); err != nil {
		t.Fatal(err)
	}
	mayNotTakeOver(t, f.Pid(), codes)
	if now, err := f.Report(t.Context()); err != nil || now.Healthy(testbed.Report{}) != nil {
		t.Error(now, err)
	}
}

// mayNotTakeOver checks that the one build that is installed for a process is refused
// for reasons of the files, with proof and remedy, and leaves no trace.
func mayNotTakeOver(t *testing.T, pid int, codes []api.Code) {
	t.Helper()
	all := operations(t, vos(t, "replace", "--outdated", strconv.Itoa(pid), "--json").expect(t, 7))
	if len(all) != 1 {
		t.Errorf("%d modules are outdated", len(all))
	}
	for _, o := range all {
		var got []api.Code
		for _, r := range o.Refusals {
			if r.Detail == "" || r.Remedy == "" {
				t.Errorf("a refusal without proof or remedy: %+v", r)
			}
			got = append(got, r.Code)
		}
		if slices.Sort(got); o.Outcome != api.Refused || !slices.Equal(slices.Compact(got), codes) {
			t.Errorf("%s for %v, want %v", o.Outcome, got, codes)
		}
		t.Logf("%s of %d: %v", o.Module, pid, o.Refusals)
	}
	r := vos(t, "outdated", strconv.Itoa(pid), "--json").expect(t, 10)
	for _, m := range lines[api.OutdatedModule](t, r) {
		if m.Verdict != api.VerdictRestart || len(m.Obstacles) == 0 {
			t.Errorf("%+v", m)
		}
	}
	withoutTrace(t, pid)
}

// refusedPair returns two builds that the mirror serves of which the newer must not
// take over, and the codes of the refusals by the files.
func refusedPair(t *testing.T, name, soname string) (old, new testbed.LibraryBuild, codes []api.Code) {
	t.Helper()
	builds := testbed.MustLibraryBuilds(t, name, soname)
	for i := range builds {
		for _, new := range builds[i+1:] {
			if codes := refusedByFiles(t, builds[i], new); len(codes) > 0 {
				return builds[i], new, codes
			}
		}
	}
	t.Fatalf("every build of %s that the mirror serves may take over: choose another library for this test", soname)
	return
}

// refusedByFiles returns the codes for which a build may not take over from another
// by what their files say.
func refusedByFiles(t *testing.T, old, new testbed.LibraryBuild) (codes []api.Code) {
	t.Helper()
	m, err := match.Compare(openObject(t, old.Path), openObject(t, new.Path), match.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range m.Refusals {
		codes = append(codes, r.Code)
	}
	slices.Sort(codes)
	return slices.Compact(codes)
}

// TestRealPairs installs the newest build of Debian under programs that run the
// oldest one that the mirror serves. By the files it may take over, and does, is
// led back and takes over again, or it is refused with the proof.
func TestRealPairs(t *testing.T) {
	for _, pair := range []struct {
		name, pkg, soname string
		start             func(t *testing.T, env []string) served
	}{
		{"curl_libcurl", "libcurl4", "libcurl.so.4", func(t *testing.T, env []string) served {
			s, _ := runTransfer(t, env)
			return s
		}},
		{"postgresql_libxml2", "libxml2", "libxml2.so.2", func(t *testing.T, env []string) served {
			return runPostgres(t, env, "libxml2.so.2")
		}},
		{"nginx_libxslt", "libxslt1.1", "libxslt.so.1", func(t *testing.T, env []string) served {
			_, folder := unpackedPair(t, "libnginx-mod-http-xslt-filter")
			n := testbed.RunNginx(t, testbed.NginxOptions{Env: env, XSLT: filepath.Join(folder, "usr/lib/nginx/modules/ngx_http_xslt_filter_module.so")})
			return loaded(n.Load(context.Background(), testbed.LoadOptions{}), n.Pids)
		}},
	} {
		t.Run(pair.name, func(t *testing.T) {
			builds := testbed.MustLibraryBuilds(t, pair.pkg, pair.soname)
			old, new := builds[0], builds[len(builds)-1]
			libraries := testbed.RunLibraries(t, old)
			s := pair.start(t, libraries.Env())
			pids := s.pids()
			expectOutdated(t, pids, pair.soname, 0)
			if err := libraries.Install(new); err != nil {
				t.Fatal(err)
			}
			if codes := refusedByFiles(t, old, new); len(codes) > 0 {
				t.Logf("%s → %s may not take over: %v", old.Version, new.Version, codes)
				for _, pid := range pids {
					mayNotTakeOver(t, pid, codes)
				}
			} else {
				takeOver(t, pids, pair.soname, "replace", api.Replaced)
				expectOutdated(t, pids, pair.soname, 0)
				takeOver(t, pids, pair.soname, "rollback", api.RolledBack)
				takeOver(t, pids, pair.soname, "replace", api.Replaced)
			}
			s.end(t)
		})
	}
}
