package testbed

import (
	"os"
	"testing"
	"time"
)

// checkServed runs a load for a second and wants every answer right.
func checkServed(t *testing.T, l *Load) Totals {
	t.Helper()
	time.Sleep(time.Second)
	total := l.Stop()
	t.Log(total)
	if total.Failed != 0 || total.Served < 50 || total.Reconnects != 0 {
		t.Errorf("%d served, %d failed, %d reconnects: %v", total.Served, total.Failed, total.Reconnects, total.Errors)
	}
	return total
}

func TestNginxServesAndLeavesNothing(t *testing.T) {
	n, err := StartNginx(t.Context(), NginxOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if pids := n.Pids(); len(pids) != 3 {
		t.Errorf("processes %v, want a master and two workers", pids)
	}
	checkServed(t, n.Load(t.Context(), LoadOptions{}))
	master := n.Master()
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	if groupExists(master) {
		t.Error("processes are left")
	}
	if _, err := os.Stat(n.Folder()); !os.IsNotExist(err) {
		t.Errorf("folder %s is left: %v", n.Folder(), err)
	}
}

func TestRedisServes(t *testing.T) {
	checkServed(t, RunRedis(t, RedisOptions{}).Load(t.Context(), LoadOptions{}))
}

func TestMemcachedServes(t *testing.T) {
	checkServed(t, RunMemcached(t, MemcachedOptions{}).Load(t.Context(), LoadOptions{}))
}

// A load that sees no failure is worth something only if it sees one.
func TestLoadSeesWrongAnswers(t *testing.T) {
	n := RunNginx(t, NginxOptions{})
	files := append([]File(nil), n.Files()[:2]...)
	files[1].Content = append([]byte(nil), files[1].Content...)
	files[1].Content[3000] ^= 1
	l := StartHTTPLoad(t.Context(), n.Addr(), files, LoadOptions{})
	if err := l.Await(t.Context(), 40); err != nil {
		t.Fatal(err)
	}
	total := l.Stop()
	if total.Served == 0 || total.Failed == 0 || total.Wrong != total.Failed || len(total.Errors) == 0 {
		t.Errorf("a changed byte was not seen: %+v", total)
	}
}

// Killed in the middle, it must be seen as failures and a gap.
func TestLoadSeesLostServer(t *testing.T) {
	r, err := StartRedis(t.Context(), RedisOptions{})
	if err != nil {
		t.Fatal(err)
	}
	l := r.Load(t.Context(), LoadOptions{})
	if err := l.Await(t.Context(), 40); err != nil {
		t.Fatal(err)
	}
	r.killGroup()
	time.Sleep(200 * time.Millisecond)
	total := l.Stop()
	if total.Failed == 0 || total.WorstGap < 150*time.Millisecond {
		t.Errorf("a dead server was not seen: %+v", total)
	}
	if err := r.Stop(); err == nil {
		t.Error("Stop says nothing of a server that was killed")
	}
}
