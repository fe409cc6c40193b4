package live

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// A client keeps one connection to a server open, over which it counts.
type client struct {
	net.Conn
	lines *bufio.Reader
	k     *kept
	last  int
}

func (k *kept) connect(t *testing.T) *client {
	t.Helper()
	c, err := net.Dial("tcp", k.address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	one := &client{Conn: c, lines: bufio.NewReader(c), k: k}
	one.last = one.answer(t, one.ask)
	return one
}

// answer makes a number of what is answered.
func (c *client) answer(t *testing.T, ask func(t *testing.T)) int {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	ask(t)
	line, err := c.lines.ReadString('\n')
	if err != nil {
		t.Fatalf("behind %d: %q, %v", c.last, line, err)
	}
	n, err := strconv.Atoi(strings.TrimPrefix(strings.TrimSpace(line), ":"))
	if err != nil {
		t.Fatalf("behind %d: %v", c.last, err)
	}
	return n
}

func (c *client) ask(t *testing.T) {
	t.Helper()
	if _, err := c.Write([]byte(c.k.ask)); err != nil {
		t.Fatal(err)
	}
}

// counts asks, and wants the next number.
func (c *client) counts(t *testing.T) {
	t.Helper()
	c.follows(t, c.ask)
}

func (c *client) follows(t *testing.T, ask func(t *testing.T)) {
	t.Helper()
	if n := c.answer(t, ask); n != c.last+1 {
		t.Fatalf("%d is answered behind %d", n, c.last)
	}
	c.last++
}

// TestConnections checkpoints servers, ends them and builds them again while clients are
// connected: these go on, and what they ask meanwhile is answered.
func TestConnections(t *testing.T) {
	cycles := 3
	if soak {
		cycles = 20
	}
	for _, name := range []string{"redis", "memcached"} {
		t.Run(name, func(t *testing.T) {
			k := startKept(t, name)
			folder := t.TempDir()
			if name == "redis" { // enough that it is copied while the program runs
				fill := `EVAL "for i=1,100000 do redis.call('set','k'..i,string.rep(i,20)) end return 'full'" 0`
				if answer := k.say(t, fill+"\r\n"); !strings.HasPrefix(answer, "$") {
					t.Fatal(answer)
				}
			}
			idle := k.connect(t)
			c := k.connect(t)
			if got := vos(t, "check", k.target()).expect(t, 0); !strings.Contains(got.Stderr, "it has 2 connections") {
				t.Errorf("check does not say what connections take: %q", got.Stderr)
			}
			for n := range cycles {
				now, later := filepath.Join(folder, fmt.Sprint("now", n)), filepath.Join(folder, fmt.Sprint("later", n))
				vos(t, "checkpoint", k.target(), "-D", now, "--leave-running").expect(t, 0)
				c.counts(t)
				got := vos(t, "checkpoint", k.target(), "-D", later, "--parent", now).expect(t, 0)
				if !strings.Contains(got.Stderr, "connections wait for the restore") {
					t.Errorf("it does not say what is left behind: %s", got.Stderr)
				}
				k.wait(t)
				c.ask(t) // of nobody
				if got := vos(t, "restore", "-D", now).expect(t, 7); !strings.Contains(got.Stderr, "connection_lost") {
					t.Errorf("with connections that went on: %s", got.Stderr)
				}
				vos(t, "restore", "-D", later).expect(t, 0)
				c.follows(t, func(*testing.T) {})
				c.counts(t)
				checkFree(t, k.pid)
			}
			idle.last = c.last
			idle.counts(t)
			c.last++
			// The server is told when the image is an old one.
			image := filepath.Join(folder, "old")
			vos(t, "checkpoint", k.target(), "-D", image, "--leave-running").expect(t, 0)
			if err := syscall.Kill(k.pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			k.wait(t)
			vos(t, "restore", "-D", image).expect(t, 7)
			vos(t, "restore", "-D", image, "--close-connections").expect(t, 0)
			k.last = c.last
			k.next(t)
		})
	}
}

// pattern is byte i of the stream that both ends of streams.c send.
func pattern(i int64) byte { return byte(i ^ i>>8 ^ i>>16 ^ i>>24) }

// TestConnectionInTransfer has a connection of IPv6 full of bytes in both directions while
// its server is checkpointed, goes on, is checkpointed, ends, and is built again.
func TestConnectionInTransfer(t *testing.T) {
	cycles := 3
	if soak {
		cycles = 20
	}
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	_, port, _ := strings.Cut(address, "]:")
	program := testbed.MustCompile(t, testbed.Build{Name: "streams", Source: text(t, "streams.c"), Flags: []string{"-pthread"}})
	alone := testbed.MustCompile(t, testbed.Build{Name: "alone", Source: text(t, "alone.c")})
	cmd := exec.Command(alone, program, port)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	k := &kept{pid: cmd.Process.Pid}
	t.Cleanup(func() {
		if syscall.Kill(k.pid, syscall.SIGKILL) == nil {
			k.wait(t)
		}
	})
	var c net.Conn
	await(t, "the server to listen", func() bool {
		c, err = net.Dial("tcp6", address)
		return err == nil
	})
	defer c.Close()
	var sent, received atomic.Int64
	ended := make(chan error, 2)
	go func() {
		b := make([]byte, 60_000)
		for {
			for i := range b {
				b[i] = pattern(sent.Load() + int64(i))
			}
			n, err := c.Write(b)
			sent.Add(int64(n))
			if err != nil {
				ended <- err
				return
			}
		}
	}()
	go func() {
		b := make([]byte, 60_000)
		for {
			n, err := c.Read(b)
			for i := range n {
				if want := pattern(received.Load() + int64(i)); b[i] != want {
					ended <- fmt.Errorf("byte %d is %#x, not %#x", received.Load()+int64(i), b[i], want)
					return
				}
			}
			received.Add(int64(n))
			if err != nil {
				ended <- err
				return
			}
		}
	}()
	folder := t.TempDir()
	flows := func() {
		t.Helper()
		const much = 4 << 20
		in, out := received.Load(), sent.Load()
		for end := time.Now().Add(time.Minute); received.Load() < in+much || sent.Load() < out+much; time.Sleep(time.Millisecond) {
			select {
			case err := <-ended:
				t.Fatalf("behind %d and %d bytes: %v", sent.Load(), received.Load(), err)
			default:
			}
			if time.Now().After(end) {
				t.Fatalf("it stands still behind %d and %d bytes", sent.Load()-out, received.Load()-in)
			}
		}
	}
	for n := range cycles {
		flows()
		vos(t, "checkpoint", k.target(), "-D", filepath.Join(folder, fmt.Sprint("now", n)), "--leave-running").expect(t, 0)
		flows()
		image := filepath.Join(folder, fmt.Sprint("image", n))
		vos(t, "checkpoint", k.target(), "-D", image).expect(t, 0)
		k.wait(t)
		vos(t, "restore", "-D", image).expect(t, 0)
	}
	flows()
	checkFree(t, k.pid)
}

// TestConnectionsKilled kills vos at random instants of checkpoints and restores: a
// client that is connected all the time is answered on, or, where the server has ended,
// is so again when it was built again.
func TestConnectionsKilled(t *testing.T) {
	kills := 40
	if soak {
		kills = 300
	}
	k := startKept(t, "redis")
	c := k.connect(t)
	folder := t.TempDir()
	image := filepath.Join(folder, "image")
	limit := whole(t, "checkpoint", k.target(), "-D", image)
	k.wait(t)
	whole(t, "restore", "-D", image)
	killed, ended, built := 0, 0, 0
	for range kills {
		if err := os.RemoveAll(image); err != nil {
			t.Fatal(err)
		}
		c.counts(t)
		if killAfter(t, time.Duration(rand.Int64N(int64(limit*3))), []string{"checkpoint", k.target(), "-D", image}) {
			killed++
		}
		if _, err := os.Stat(image); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		c.ask(t)
		if dead(t, k.pid) {
			ended++
			k.wait(t)
			if killAfter(t, time.Duration(rand.Int64N(int64(limit*2))), []string{"restore", "-D", image}) {
				killed++
			}
			if k.built(t) {
				built++
			} else {
				vos(t, "restore", "-D", image).expect(t, 0)
			}
		}
		c.follows(t, func(*testing.T) {})
		checkFree(t, k.pid)
	}
	t.Logf("%d runs were killed before their end, the program ended %d times, %d times it was there behind a restore that was killed", killed, ended, built)
	if killed < kills/4 || soak && ended == 0 {
		t.Errorf("%d of %d runs were killed, the program ended %d times", killed, kills, ended)
	}
}
