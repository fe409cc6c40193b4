package procfs

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	id1 = "4f1a0e6c9d3b2a7758c6e1f00d9b8a7c6e5d4f3a2b1c0d9e8f7a6b5c4d3e2f1a"
	id2 = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
)

func TestUnitsOf(t *testing.T) {
	for path, want := range map[string][2]string{
		"/":                           {},
		"":                            {},
		"/init.scope":                 {"init.scope"},
		"/system.slice":               {},
		"/system.slice/nginx.service": {"nginx.service"},
		"/system.slice/dbus.socket":   {"dbus.socket"},
		"/system.slice/redis-server.service/worker":                                             {"redis-server.service"},
		"/system.slice/system-getty.slice/getty@tty1.service":                                   {"getty@tty1.service"},
		"/system.slice/system-postgresql.slice/postgresql@15-main.service":                      {"postgresql@15-main.service"},
		`/system.slice/system-systemd\x2dfsck.slice/systemd-fsck@dev-disk-by\x2duuid-1.service`: {`systemd-fsck@dev-disk-by\x2duuid-1.service`},
		`/system.slice/my\x20odd\x2dname.service`:                                               {`my\x20odd\x2dname.service`},
		"/system.slice/_cpu.service":                                                            {"cpu.service"},
		"/user.slice/user-1000.slice/session-3.scope":                                           {"session-3.scope"},
		"/user.slice/user-1000.slice/user@1000.service/init.scope":                              {"user@1000.service", "init.scope"},
		"/user.slice/user-1000.slice/user@1000.service/app.slice/app-a.slice/foo.service":       {"user@1000.service", "foo.service"},
		"/user.slice/user-1000.slice/user@1000.service":                                         {"user@1000.service"},
		"/machine.slice/systemd-nspawn@web.service/payload/system.slice/nginx.service":          {"systemd-nspawn@web.service"},
		"/system.slice/docker-" + id1 + ".scope":                                                {"docker-" + id1 + ".scope"},
		"/docker/" + id1:                                                                        {},
		"/kubepods/burstable/pod1/" + id1:                                                       {},
		"/.service":                                                                             {},
		"/system.slice/a b.service":                                                             {},
		"/system.slice/nginx.service:evil":                                                      {},
		"/.slice/nginx.service":                                                                 {},
		"/system.slice//nginx.service":                                                          {},
		"/../../system.slice/nginx.service":                                                     {},
		"/system.slice/..service/a.service":                                                     {},
		"/system.slice/nginx.service.service":                                                   {"nginx.service.service"},
	} {
		unit, user := UnitsOf(path)
		if got := [2]string{unit, user}; got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}

func TestContainerOf(t *testing.T) {
	for path, want := range map[string][2]string{
		"/":                                                 {},
		"/system.slice/nginx.service":                       {},
		"/docker/" + id1:                                    {id1, "docker"},
		"/docker/" + id1 + "/init":                          {id1, "docker"},
		"/docker/" + id1 + "/docker/" + id2:                 {id2, "docker"},
		"/docker/" + id1[:63]:                               {},
		"/docker/" + strings.ToUpper(id1):                   {},
		"/system.slice/docker-" + id1 + ".scope":            {id1, "docker"},
		"/machine.slice/libpod-" + id1 + ".scope":           {id1, "podman"},
		"/machine.slice/libpod-" + id1 + ".scope/container": {id1, "podman"},
		"/machine.slice/libpod-conmon-" + id1 + ".scope":    {},
		"/libpod_parent/libpod-" + id1:                      {id1, "podman"},
		"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + id1 + ".scope":    {id1, "podman"},
		"/kubepods.slice/kubepods-besteffort.slice/kubepods-pod1.slice/crio-" + id1 + ".scope": {id1, "cri-o"},
		"/kubepods.slice/kubepods-pod1.slice/crio-conmon-" + id1 + ".scope":                    {},
		"/kubepods.slice/kubepods-burstable.slice/cri-containerd-" + id1 + ".scope":            {id1, "containerd"},
		"/kubepods/burstable/pod1b9e2f00-1111-2222-3333-444455556666/" + id1:                   {id1, ""},
		"/kubepods/pod1/" + id1 + "/" + id2:                                                    {id2, ""},
		"/system.slice/containerd.service/kubepods-burstable-pod1.slice:cri-containerd:" + id1: {id1, "containerd"},
		"/system.slice/nerdctl-" + id1 + ".scope":                                              {id1, "containerd"},
		"/default/" + id1: {id1, ""},
		"/ecs/0123456789abcdef0123456789abcdef/" + id1:                                     {id1, ""},
		"/ecs/0123456789abcdef0123456789abcdef/0123456789abcdef0123456789abcdef-123456789": {"0123456789abcdef0123456789abcdef-123456789", "ecs"},
		"/lxc/web":                    {"web", "lxc"},
		"/lxc.payload.web/init.scope": {"web", "lxc"},
		"/lxc.monitor.web":            {},
		"/lxc/web/docker/" + id1:      {id1, "docker"},
	} {
		id, runtime := ContainerOf(path)
		if got := [2]string{id, runtime}; got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}

func TestParseCgroup(t *testing.T) {
	for name, test := range map[string]struct {
		text string
		want Cgroup
	}{
		"v2": {
			"0::/system.slice/nginx.service\n",
			Cgroup{Path: "/system.slice/nginx.service", Unit: "nginx.service"},
		},
		"v2 root": {"0::/\n", Cgroup{Path: "/"}},
		"nothing": {"", Cgroup{}},
		"v1": {
			"12:pids:/docker/" + id1 + "\n11:cpu,cpuacct:/docker/" + id1 + "\n1:name=systemd:/docker/" + id1 + "\n",
			Cgroup{Path: "/docker/" + id1, Container: id1, Runtime: "docker"},
		},
		"hybrid, v2 unused": {
			"3:memory:/system.slice\n1:name=systemd:/system.slice/redis-server.service\n0::/\n",
			Cgroup{Path: "/system.slice/redis-server.service", Unit: "redis-server.service"},
		},
		"hybrid, v2 used": {
			"1:name=systemd:/old.service\n0::/system.slice/new.service\n",
			Cgroup{Path: "/system.slice/new.service", Unit: "new.service"},
		},
		"deleted": {
			"0::/system.slice/old.service (deleted)\n",
			Cgroup{Path: "/system.slice/old.service", Unit: "old.service"},
		},
		"colons in the path": {
			"0::/system.slice/containerd.service/kubepods-pod1.slice:cri-containerd:" + id1 + "\n",
			Cgroup{
				Path: "/system.slice/containerd.service/kubepods-pod1.slice:cri-containerd:" + id1,
				Unit: "containerd.service", Container: id1, Runtime: "containerd",
			},
		},
		"outside of the reader's namespace": {"0::/../other\n", Cgroup{Path: "/../other"}},
		"garbage":                           {"x\n::\n0:\n0::relative\n", Cgroup{}},
	} {
		if diff := cmp.Diff(test.want, ParseCgroup(test.text)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}
