package live

import (
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// redirectKills is how often vos is killed over one program.
func redirectKills() int {
	if soak {
		return 300
	}
	return 40
}

// TestRedirectKilledAtAnyInstant kills vos at random instants while it moves a
// connection that is waited for by edges, and the log of a program and its children.
// The program works on at the old binding or the new one, the next vos is
// consistent, and nothing is left.
func TestRedirectKilledAtAnyInstant(t *testing.T) {
	t.Run("connection", func(t *testing.T) {
		b := messages(t, 'B')
		r := runRedirected(t, "killed=1", "churn=0", "edge="+messages(t, 'A'))
		fd := r.fd(t, "edge")
		killRedirections(t, r, []string{r.target(), fd}, []string{"--to", "tcp:127.0.0.1:" + b}, func(t *testing.T) {
			t.Helper()
			r.unharmed(t)
			if n := len(inEpolls(t, r.pid, fd)); n != 1 {
				t.Fatalf("%d registrations", n)
			}
		})
		r.hears(t, "edge", 'A')
		vos(t, "redirect", r.target(), fd, "--to", "tcp:127.0.0.1:"+b).expect(t, 0)
		r.hears(t, "edge", 'B')
		// See "What may show" in docs/limits.md.
		if n := r.counts(t)["interrupted"]; n > int64(redirectKills()/10) {
			t.Errorf("epoll_wait returned EINTR %d times", n)
		}
	})
	t.Run("program in Go", func(t *testing.T) {
		b := messages(t, 'B')
		program := testbed.MustCompile(t, testbed.Build{Name: "redirected", Language: "go", Source: text(t, "redirected.go")})
		s, f := start(t, testbed.FixtureOptions{}, program, messages(t, 'A'))
		r := &redirected{s, f}
		fd := r.fd(t, "go")
		killRedirections(t, r, []string{r.target(), fd}, []string{"--to", "tcp:127.0.0.1:" + b}, func(t *testing.T) {
			t.Helper()
			r.unharmed(t)
			if n := len(inEpolls(t, r.pid, fd)); n != 1 {
				t.Fatalf("%d registrations", n)
			}
		})
		r.hears(t, "go", 'A')
	})
	t.Run("processes", func(t *testing.T) {
		folder := t.TempDir()
		one, two := filepath.Join(folder, "one.log"), filepath.Join(folder, "two.log")
		r := runRedirected(t, "log="+one, "children=2")
		fd := r.fd(t, "log")
		killRedirections(t, r, []string{r.target(), fd, "--all"}, []string{"--to", "append:" + two}, func(t *testing.T) {
			t.Helper()
			r.unharmed(t)
		})
		grows(t, one)
		if err := r.fixture.Quit(10 * time.Second); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond) // its children end with it
		logLines(t, one, two)
	})
}

// killRedirections kills runs of vos that redirect, and redirect back, and leaves
// the program with its first binding, as it was.
func killRedirections(t *testing.T, r *redirected, what, to []string, check func(*testing.T)) {
	t.Helper()
	forth := append(append([]string{"redirect"}, what...), to...)
	back := append(append([]string{"redirect"}, what...), "--back")
	descriptors := func() string {
		var all []string
		for _, line := range inventory(t, r.pid).Descriptors {
			number, link, _ := strings.Cut(line, " ")
			all = append(all, number+" "+strings.SplitN(link, ":", 2)[0])
		}
		// Those left out are what churn has open just now.
		return strings.Join(slices.DeleteFunc(all, func(d string) bool { return strings.HasSuffix(d, " pipe") || strings.HasSuffix(d, " /dev/null") }), "\n")
	}
	before := descriptors()
	limit := time.Hour
	for range 4 {
		limit = min(limit, whole(t, forth...))
		whole(t, back...)
	}
	killed, settled, kept := 0, 0, 0
	for n := range redirectKills() {
		args := forth
		if n%2 == 1 {
			args = back
		}
		if killAfter(t, time.Duration(rand.Int64N(int64(limit*3/2))), args) {
			killed++
		}
		if strings.Contains(strings.Join(inventory(t, r.pid).Descriptors, "\n"), "/memfd:vos-redirect") {
			kept++
		}
		check(t)
		if n%10 == 9 {
			if strings.Contains(vos(t, forth...).expect(t, 0).Stderr, "that was cut short") {
				settled++
			}
			check(t)
			vos(t, back...).expect(t, 0)
			check(t)
			if now := descriptors(); now != before {
				t.Fatalf("descriptors are\n%s\nand were\n%s", now, before)
			}
		}
	}
	t.Logf("%d of %d runs were killed before their end; %d of %d were cut short in the middle; a record was there after %d", killed, redirectKills(), settled, redirectKills()/10, kept)
	if killed < redirectKills()/4 {
		t.Errorf("only %d of %d runs were killed before their end", killed, redirectKills())
	}
	if now := descriptors(); now != before {
		t.Errorf("descriptors are\n%s\nand were\n%s", now, before)
	}
}
