package testbed

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// RPMFolder is where [InstallRPM] has its database, below the root directory.
const RPMFolder = "/usr/lib/sysimage/rpm"

// An RPM is a package to build, with real rpm tools.
type RPM struct {
	Name, Version, Release string            // a version may begin with an epoch and a colon
	Files                  map[string]string // path in the root directory → file to take it from
}

// InstallRPM builds a package and installs it below a root directory, or
// upgrades to it, as rpm does: the database there knows it afterwards. Nothing of
// the machine's own is touched, and the root directory needs no programs.
func InstallRPM(tb TB, root string, p RPM) {
	tb.Helper()
	build, install := NeedTool(tb, "rpmbuild"), NeedTool(tb, "rpm")
	work, err := os.MkdirTemp("", "vos-rpmbuild-")
	if err != nil {
		tb.Fatalf("%v", err)
	}
	defer os.RemoveAll(work)
	spec := filepath.Join(work, "package.spec")
	if err := os.WriteFile(spec, []byte(p.spec()), 0o644); err != nil {
		tb.Fatalf("%v", err)
	}
	run := func(name string, args ...string) {
		tb.Helper()
		cmd := exec.CommandContext(tb.Context(), name, args...)
		cmd.Env = append(os.Environ(), "LC_ALL=C", "HOME="+work)
		if out, err := cmd.CombinedOutput(); err != nil {
			tb.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
	}
	run(build, "-bb", "--define", "_topdir "+work, "--define", "_build_id_links none",
		"--define", "debug_package %{nil}", "--define", "__os_install_post %{nil}", spec)
	built, err := filepath.Glob(filepath.Join(work, "RPMS/*/*.rpm"))
	if err != nil || len(built) != 1 {
		tb.Fatalf("rpmbuild made %v: %v", built, err)
	}
	run(install, "--root", root, "--dbpath", RPMFolder, "--nosignature", "-U", "--nodeps", "--oldpackage", built[0])
}

// spec returns what rpmbuild builds the package from.
func (p RPM) spec() string {
	var b strings.Builder
	epoch, version, found := strings.Cut(p.Version, ":")
	if !found {
		epoch, version = "0", p.Version
	}
	fmt.Fprintf(&b, "Name: %s\nEpoch: %s\nVersion: %s\nRelease: %s\nSummary: for tests\nLicense: MIT\nAutoReqProv: no\n%%description\nfor tests\n%%install\n",
		p.Name, epoch, version, p.Release)
	for path, from := range p.Files {
		fmt.Fprintf(&b, "install -D -m 755 '%s' '%%{buildroot}%s'\n", from, path)
	}
	b.WriteString("%files\n")
	for path := range p.Files {
		fmt.Fprintf(&b, "%s\n", path)
	}
	return b.String()
}
