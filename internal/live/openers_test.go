package live

import (
	"context"
	"fmt"
	"io"
	"net"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// openersProgram is testdata/openers.c.
func openersProgram(t *testing.T) string {
	source := text(t, "openers.c")
	part := func(name, macro string) testbed.Build {
		return testbed.Build{Name: name, Source: source, Flags: []string{"-fPIC", "-shared", "-D" + macro, "-Wl,-soname," + name}}
	}
	return testbed.MustCompile(t, testbed.Build{Name: "openers", Source: source,
		Parts: []testbed.Build{part("libfiles.so", "FILES"), part("libsockets.so", "SOCKETS"), part("libevents.so", "EVENTS")}})
}

// opens has the program do something, and returns who opened which descriptors.
func (k *talker) opens(t *testing.T, line string) map[int]string {
	t.Helper()
	if _, err := io.WriteString(k.in, line+"\n"); err != nil {
		t.Fatal(err)
	}
	if !k.lines.Scan() {
		t.Fatalf("no answer: %v", k.lines.Err())
	}
	by := make(map[int]string)
	for word := range strings.FieldsSeq(k.lines.Text()) {
		number, module, _ := strings.Cut(word, ":")
		fd, err := strconv.Atoi(number)
		if err != nil {
			t.Fatal(err)
		}
		by[fd] = module
	}
	return by
}

// TestHandlesTellWhoOpened holds whom vos handles names for a descriptor against which
// library of the program opened it.
func TestHandlesTellWhoOpened(t *testing.T) {
	k := startTalker(t, exec.Command(openersProgram(t)))
	opened := func() map[int]api.Handle {
		t.Helper()
		all := make(map[int]api.Handle)
		for _, h := range handles(t, vos(t, "handles", strconv.Itoa(k.pid), "--json").expect(t, 0)) {
			all[h.FD] = h
		}
		return all
	}
	nobody := func(when string) {
		t.Helper()
		for _, h := range opened() {
			if h.OpenedBy == nil || len(h.OpenedBy) > 0 {
				t.Errorf("%s: %d, a %s, was opened by %q", when, h.FD, h.Kind, h.OpenedBy)
			}
		}
	}
	k.opens(t, "open")
	nobody("not attached")
	attachAll(t, []int{k.pid})
	nobody("nothing was opened since")
	by := k.opens(t, "open")
	all, kinds := opened(), make(map[string]bool)
	for fd, module := range by {
		kinds[all[fd].Kind] = true
		if !slices.Equal(all[fd].OpenedBy, []string{module}) {
			t.Errorf("%d, a %s, was opened by %s, and vos says %q", fd, all[fd].Kind, module, all[fd].OpenedBy)
		}
	}
	if len(by) != 17 || len(kinds) != 10 {
		t.Errorf("%d descriptors of %d kinds were opened", len(by), len(kinds))
	}

	// The program itself may have duplicated any, and called for that more often.
	k.opens(t, "dup")
	all = opened()
	for fd, module := range by {
		if !slices.Equal(all[fd].OpenedBy, []string{"openers", module}) {
			t.Errorf("%d, a %s, was opened by %s or the program, and vos says %q", fd, all[fd].Kind, module, all[fd].OpenedBy)
		}
	}
	if r := vos(t, "handles", strconv.Itoa(k.pid), "--kind", "timerfd").expect(t, 0); !strings.Contains(r.Stdout, "OPENED BY") || !strings.Contains(r.Stdout, "openers libevents.so") {
		t.Errorf("the table does not say it:\n%s", r.Stdout)
	}
	for module, want := range map[string]uint64{"libfiles.so": 4, "libsockets.so": 7, "libevents.so": 6, "openers": 1000} {
		if u := usageOf(t, strconv.Itoa(k.pid))[module]; u.Opens != want || module == "openers" && u.Closes != 1000 {
			t.Errorf("%s opened %d and closed %d, not %d", module, u.Opens, u.Closes, want)
		}
	}
	detachAll(t, []int{k.pid})
	nobody("detached")
	checkFree(t, k.pid)
}

// TestHandlesTellWhoOpenedFromTheStart: of a program that vos runs all is told but what
// it inherited.
func TestHandlesTellWhoOpenedFromTheStart(t *testing.T) {
	var children []int
	t.Cleanup(func() {
		for _, pid := range children { // this process's own, when its vos was killed
			if _, err := syscall.Wait4(pid, nil, 0, nil); err != nil {
				t.Error(err)
			}
		}
	})
	k := startTalker(t, exec.Command(binary, "run", "--", openersProgram(t)))
	children = testbed.Children(k.pid)
	if len(children) != 1 {
		t.Fatalf("vos run has %d children", len(children))
	}
	by := k.opens(t, "open")
	for _, h := range handles(t, vos(t, "handles", strconv.Itoa(children[0]), "--json").expect(t, 0)) {
		if module, told := by[h.FD]; told && !slices.Equal(h.OpenedBy, []string{module}) {
			t.Errorf("%d, a %s, was opened by %q, and vos says %q", h.FD, h.Kind, module, h.OpenedBy)
		}
		delete(by, h.FD)
	}
	if len(by) > 0 {
		t.Errorf("not listed: %v", by)
	}
}

// TestHandlesTellWhoOpenedInServers: connections of nginx and redis, which they accepted
// since they are attached, and what was open before, of which they have opened no more.
func TestHandlesTellWhoOpenedInServers(t *testing.T) {
	nginx := testbed.RunNginx(t, testbed.NginxOptions{Workers: 1})
	redis := testbed.RunRedis(t, testbed.RedisOptions{})
	for _, s := range []struct {
		pid     int
		address string
		ask     string
		load    *testbed.Load
	}{
		{nginx.Workers()[0], nginx.Addr(), "GET / HTTP/1.1\r\nHost: x\r\n\r\n", nginx.Load(context.Background(), testbed.LoadOptions{})},
		{redis.Pid(), redis.Addr(), "PING\r\n", redis.Load(context.Background(), testbed.LoadOptions{})},
	} {
		attachAll(t, []int{s.pid})
		_, executable := listed(t, s.pid)
		conn, err := net.Dial("tcp", s.address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, s.ask)
		if _, err := conn.Read(make([]byte, 1)); err != nil { // it was accepted
			t.Fatal(err)
		}
		accepted := 0
		for _, h := range handles(t, vos(t, "handles", strconv.Itoa(s.pid), "--json").expect(t, 0)) {
			switch {
			case h.Socket != nil && h.Socket.Remote == conn.LocalAddr().String():
				accepted++
				if !slices.Equal(h.OpenedBy, []string{executable}) {
					t.Errorf("%s: its connection was opened by %q", executable, h.OpenedBy)
				}
			case h.Kind == "epoll":
				if len(h.OpenedBy) > 0 {
					t.Errorf("%s: its epoll was opened by %q", executable, h.OpenedBy)
				}
			}
		}
		if accepted != 1 {
			t.Errorf("%s has %d connections of this test", executable, accepted)
		}
		detachAll(t, []int{s.pid})
		if totals := s.load.Stop(); totals.Failed > 0 || totals.Served == 0 {
			t.Errorf("%s under load: %v", executable, totals)
		}
		checkFree(t, s.pid)
	}
}
