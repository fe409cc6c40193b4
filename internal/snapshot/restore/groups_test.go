package restore

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/virtualizing-os/vos/internal/image"
)

func TestDirectoryOf(t *testing.T) {
	folder := t.TempDir()
	for _, name := range []string{"cpu/a/b", "v2/here", "inner/below"} {
		if err := os.MkdirAll(filepath.Join(folder, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	mounts := hierarchiesOf(strings.ReplaceAll(`22 1 0:20 / /proc rw - proc proc rw
30 29 0:26 / AT/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
31 29 0:27 / AT/systemd rw - cgroup cgroup rw,xattr,name=systemd
32 29 0:28 / AT/v2 rw shared:7 master:3 - cgroup2 cgroup2 rw
33 29 0:28 /outer AT/inner rw - cgroup2 cgroup2 rw
34 29 0:29 / - cgroup2
`, "AT", folder))
	if len(mounts) != 4 {
		t.Fatalf("%d hierarchies: %+v", len(mounts), mounts)
	}
	for _, test := range []struct{ controllers, path, at, detail string }{
		{"cpu,cpuacct", "/a/b", "cpu/a/b", ""},
		{"cpu", "/", "cpu", ""},
		{"cpu", "/gone", "cpu/gone", "not there"},
		{"pids", "/a", "", "not mounted"},
		{"", "/here", "v2/here", ""},
		{"", "/outer/below", "inner/below", ""},
		{"", "/a/b", "v2/a/b", "not there"},
		{"name=systemd", "/x", "systemd/x", "not there"},
	} {
		want := ""
		if test.at != "" {
			want = filepath.Join(folder, test.at)
		}
		at, detail := directoryOf(mounts, image.ControlGroup{Controllers: test.controllers, Path: test.path})
		if at != want || !strings.Contains(detail, test.detail) || (detail == "") != (test.detail == "") {
			t.Errorf("%s:%s is at %q (%s), want %q (%s)", test.controllers, test.path, at, detail, want, test.detail)
		}
	}
}
