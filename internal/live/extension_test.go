package live

import (
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// TestUpgradeOfExtensions lets real builds of Debian take over of C extensions that
// python3 has opened by dlopen: they have no soname, and bind to the executable.
func TestUpgradeOfExtensions(t *testing.T) {
	version, err := exec.Command("/usr/bin/python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])").Output()
	if err != nil {
		t.Fatalf("%v (make deps installs python3)", err)
	}
	number := strings.TrimSpace(string(version))
	archive, err := testbed.OpenArchive(false)
	if err != nil {
		t.Fatal(err)
	}
	packages, err := archive.Packages(t.Context(), "libpython"+number+"-stdlib")
	if err != nil || len(packages) == 0 || len(packages[0].Versions) < 2 {
		t.Fatalf("the mirror serves no two builds of Python %s: %v %v", number, packages, err)
	}
	all := packages[0].Versions
	extension := func(version, module string) string {
		t.Helper()
		folder, err := archive.Unpacked(t.Context(), packages[0].Name, version)
		if err != nil {
			t.Fatal(err)
		}
		found, err := filepath.Glob(filepath.Join(folder, "usr/lib/python"+number+"/lib-dynload", module+".*.so"))
		if err != nil || len(found) != 1 {
			t.Fatalf("%s of %s: %v %v", module, version, found, err)
		}
		return found[0]
	}
	modules := []string{"_asyncio", "_json", "_queue"}
	folder := publicFolder(t)
	install := func(version string) {
		t.Helper()
		for _, m := range modules {
			from := extension(version, m)
			replaceFile(t, from, filepath.Join(folder, filepath.Base(from)))
		}
	}
	install(all[0])
	f := testbed.Run(t, testbed.FixtureOptions{}, "/usr/bin/python3", "-I", "-c", text(t, "extensions.py"), folder)
	install(all[len(all)-1])
	healthy := func() {
		t.Helper()
		before, err := f.Report(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
		if now, err := f.Report(t.Context()); err != nil || now.Healthy(before) != nil {
			t.Fatal(now, err)
		}
		vos(t, "verify", strconv.Itoa(f.Pid())).expect(t, 0)
	}
	for range 3 {
		for _, step := range []struct {
			args []string
			want api.Outcome
		}{
			{[]string{"replace", "--outdated", strconv.Itoa(f.Pid())}, api.Replaced},
			{[]string{"rollback", strconv.Itoa(f.Pid())}, api.RolledBack},
		} {
			done := operations(t, vos(t, append(step.args, "--json")...).expect(t, 0))
			if len(done) != len(modules) {
				t.Fatalf("%v did %d modules, not %d", step.args, len(done), len(modules))
			}
			for _, o := range done {
				if o.Outcome != step.want {
					t.Errorf("%s: %s, not %s: %s %v", o.Module, o.Outcome, step.want, o.Error, o.Refusals)
				}
			}
			healthy()
		}
	}
}
