package dso

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// fixtures are objects built by the compiler, each once a test run.
var fixtures struct {
	sync.Mutex
	folder string
	built  map[string][]byte
}

func TestMain(m *testing.M) {
	code := m.Run()
	if fixtures.folder != "" {
		os.RemoveAll(fixtures.folder)
	}
	os.Exit(code)
}

const versionMap = "-Wl,--version-script=testdata/fixture.map"

// recipes are the compiler's arguments for each fixture.
var recipes = map[string][]string{
	"gnu":         {"testdata/fixture.c", "-shared", "-fPIC", "-fexceptions", "-Wl,--hash-style=gnu", "-Wl,-soname,libfixture.so.1", versionMap},
	"sysv":        {"testdata/fixture.c", "-shared", "-fPIC", "-fexceptions", "-Wl,--hash-style=sysv", "-Wl,-rpath,/a:/b", "-Wl,--disable-new-dtags", versionMap},
	"relr":        {"testdata/fixture.c", "-shared", "-fPIC", "-Wl,-z,pack-relative-relocs", "-Wl,-rpath,/c", "-Wl,--enable-new-dtags", versionMap},
	"now":         {"testdata/fixture.c", "-shared", "-fPIC", "-Wl,-z,now,-z,nodelete,-z,noseparate-code", "-Wl,--build-id=none", versionMap},
	"lazy":        {"testdata/fixture.c", "-shared", "-fPIC", "-Wl,-z,lazy,-z,norelro,-z,execstack", versionMap},
	"cet":         {"testdata/fixture.c", "-shared", "-fPIC", "-fcf-protection=full", "-Wl,-z,ibt,-z,shstk", "-Wl,-z,x86-64-v2", versionMap},
	"textrel":     {"testdata/textrel.c", "-shared", "-fno-pic", "-mcmodel=large", "-Wl,-z,notext"},
	"stripped":    {"testdata/fixture.c", "-shared", "-fPIC", "-s", versionMap},
	"pie":         {"testdata/program.c", "-pie", "-fPIE"},
	"no-pie":      {"testdata/program.c", "-no-pie", "-fno-pie"},
	"static":      {"testdata/program.c", "-static", "-s"},
	"static-pie":  {"testdata/program.c", "-static-pie", "-fPIE"},
	"no-exports":  {"testdata/imports.c", "-pie", "-fPIE", "-Wl,--hash-style=gnu"},
	"debug-lines": {"testdata/fixture.c", "-shared", "-fPIC", "-g", versionMap},
}

// fixturePath builds a fixture.
func fixturePath(t testing.TB, name string) string {
	t.Helper()
	fixtures.Lock()
	defer fixtures.Unlock()
	if fixtures.folder == "" {
		folder, err := os.MkdirTemp("", "dso-fixture-")
		if err != nil {
			t.Fatal(err)
		}
		fixtures.folder, fixtures.built = folder, map[string][]byte{}
	}
	path := filepath.Join(fixtures.folder, name)
	if _, done := fixtures.built[name]; done {
		return path
	}
	recipe, ok := recipes[name]
	if !ok {
		t.Fatalf("no recipe for %s", name)
	}
	if printed := testbed.GCC(t, append([]string{"-O1", "-o", path}, recipe...)...); strings.Contains(printed, "ignored") {
		t.Fatalf("gcc does not know how to build %s, Debian 12's does:\n%s", name, printed)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	fixtures.built[name] = raw
	return path
}

// fixture returns the bytes of a fixture, for the caller to change.
func fixture(t testing.TB, name string) []byte {
	t.Helper()
	fixturePath(t, name)
	fixtures.Lock()
	defer fixtures.Unlock()
	return bytes.Clone(fixtures.built[name])
}

// openBytes opens a file's image that should open.
func openBytes(t testing.TB, raw []byte) *Object {
	t.Helper()
	o, err := ReadFile(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// withoutSections drops the section headers, as sstrip and UPX do.
func withoutSections(raw []byte) []byte {
	raw = bytes.Clone(raw)
	clear(raw[40:48])
	clear(raw[58:64])
	return raw
}

// onlyDebug makes what objcopy --only-keep-debug leaves of an object.
func onlyDebug(t testing.TB, path string) []byte {
	t.Helper()
	debug := filepath.Join(t.TempDir(), "debug")
	if out, err := exec.Command(testbed.NeedTool(t, "objcopy"), "--only-keep-debug", path, debug).CombinedOutput(); err != nil {
		t.Fatalf("objcopy: %v\n%s", err, out)
	}
	raw, err := os.ReadFile(debug)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}
