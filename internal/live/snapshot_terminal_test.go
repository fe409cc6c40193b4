package live

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// prompt is a shell's that waits for a line, as against what was typed to set it.
const prompt = "\x1b[?2004hready> "

// A typist is the client of a program that holds a pseudo terminal with another one in it.
type typist struct {
	root   int
	client net.Conn

	mu    sync.Mutex
	shown bytes.Buffer // since the last typing
}

// holdTerminal starts a program in a pseudo terminal.
func holdTerminal(t *testing.T, command ...string) *typist {
	t.Helper()
	port := freePort(t)
	y := &typist{root: startAlone(t, append([]string{testbed.NeedTool(t, "python3"), data(t, "holder.py"), port}, command...)...)}
	await(t, "the terminal to be there", func() (there bool) {
		var err error
		y.client, err = net.Dial("tcp", "127.0.0.1:"+port)
		return err == nil
	})
	y.watch(t)
	return y
}

// watch reads what its client is shown, until that ends.
func (y *typist) watch(t *testing.T) {
	client := y.client
	t.Cleanup(func() { client.Close() })
	go func() {
		b := make([]byte, 1<<16)
		for {
			n, err := client.Read(b)
			y.mu.Lock()
			y.shown.Write(b[:n])
			y.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
}

// types types something, and waits until all of the words were shown since.
func (y *typist) types(t *testing.T, text string, words ...string) {
	t.Helper()
	y.mu.Lock()
	y.shown.Reset()
	y.mu.Unlock()
	if _, err := y.client.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	seen := ""
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		y.mu.Lock()
		seen = y.shown.String()
		y.mu.Unlock()
		if !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(seen, word) }) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%q was answered by %q, without one of %q", text, seen, words)
		}
	}
}

// restored ends it behind its checkpoint, and builds it again.
func (y *typist) restored(t *testing.T, image string) {
	t.Helper()
	target := strconv.Itoa(y.root)
	before := tree(t, y.root)
	// What has just been typed or written is refused: it can't be read without being taken.
	await(t, "all to be read", func() bool {
		r := vos(t, "checkpoint", target, "--tree", "-D", image)
		if r.Code != 0 && !strings.Contains(r.Stderr, "not_received") && !strings.Contains(r.Stderr, "descriptors_changing") {
			t.Fatalf("exit code %d: %s", r.Code, r.Stderr)
		}
		return r.Code == 0
	})
	reapAll(before)
	vos(t, "restore", "-D", image).expect(t, 0)
	if after := tree(t, y.root); !slices.Equal(after, before) {
		t.Fatalf("processes, parents, groups and sessions were %v and are %v", before, after)
	}
}

// TestSnapshotTerminals checkpoints programs in a pseudo terminal whose other end belongs
// to the tree, ends them, and builds them again: they go on with the terminal.
func TestSnapshotTerminals(t *testing.T) {
	cycles := 3
	if soak {
		cycles = 20
	}
	t.Run("bash", func(t *testing.T) {
		y := holdTerminal(t, testbed.NeedTool(t, "bash"), "--norc")
		folder := t.TempDir()
		y.types(t, "PS1='ready> '; n=0; sleep 1000 & tty\r", "/dev/pts/", prompt)
		y.mu.Lock()
		terminal := strings.TrimSpace(y.shown.String()[strings.LastIndex(y.shown.String(), "/dev/pts/"):])
		y.mu.Unlock()
		terminal, _, _ = strings.Cut(terminal, "\r")
		for n := range cycles {
			y.restored(t, filepath.Join(folder, strconv.Itoa(n)))
			y.types(t, "n=$((n+1)); echo \"is $n, $(tty), $(jobs)\"\r", fmt.Sprintf("is %d, %s, [1]", n+1, terminal), "Running", "ready> ")
			// Job control: who is in the foreground is interrupted.
			y.types(t, "sleep 500\r", "sleep 500\r")
			await(t, "sleep to be in the foreground", func() bool { return len(tree(t, y.root)) == 4 })
			y.restored(t, filepath.Join(folder, fmt.Sprint(n, "waiting")))
			y.types(t, "\x03", "^C", "ready> ")
			await(t, "sleep to end", func() bool { return len(tree(t, y.root)) == 3 })
		}
	})
	for name, test := range map[string]struct {
		begin, add, end string
	}{
		"vim.tiny": {"i", "a line %d\r", "\x1b:wq\r"},
		"nano":     {"", "a line %d\r", "\x0f\r\x18"},
	} {
		t.Run(name, func(t *testing.T) {
			folder := publicFolder(t)
			file := filepath.Join(folder, "text")
			y := holdTerminal(t, testbed.NeedTool(t, name), file)
			y.types(t, test.begin, "text")
			want := ""
			for n := range cycles {
				line := fmt.Sprintf(test.add, n)
				y.types(t, line, fmt.Sprint(n))
				want += strings.ReplaceAll(line, "\r", "\n")
				y.restored(t, filepath.Join(folder, strconv.Itoa(n)))
			}
			y.types(t, test.end)
			await(t, name+" to end", func() bool { return len(tree(t, y.root)) <= 1 })
			if got, err := os.ReadFile(file); err != nil || strings.TrimSpace(string(got)) != strings.TrimSpace(want) {
				t.Errorf("%v: %q was written, want %q", err, got, want)
			}
		})
	}
	t.Run("htop", func(t *testing.T) {
		y := holdTerminal(t, testbed.NeedTool(t, "htop"), "-d", "5")
		folder := t.TempDir()
		y.types(t, "", "Load average")
		for n := range cycles {
			y.restored(t, filepath.Join(folder, strconv.Itoa(n)))
			y.types(t, "h", "htop", "Arrows") // its help
			y.types(t, "q", "Load average")
		}
		y.types(t, "q")
		await(t, "htop to end", func() bool { return len(tree(t, y.root)) <= 1 })
	})
}

// TestSnapshotTerminalFlood checkpoints a shell that writes without end, ends it, and builds
// it again, between checkpoints in which vos is killed: nothing of what it writes is lost
// or doubled.
func TestSnapshotTerminalFlood(t *testing.T) {
	cycles, kills := 5, 3
	if soak {
		cycles, kills = 20, 15
	}
	y := holdTerminal(t, testbed.NeedTool(t, "bash"), "--norc")
	y.types(t, "PS1='ready> '; stty -echo\r", prompt)
	y.types(t, "n=0; while :; do echo \"tick $((n++)) tock\"; done\r", "tick 5 tock")
	folder, target := t.TempDir(), strconv.Itoa(y.root)
	going := []string{"checkpoint", target, "--tree", "--leave-running", "-D"}
	limit := whole(t, append(going, filepath.Join(folder, "going"))...)
	for n := range cycles {
		for i := range kills {
			killAfter(t, time.Duration(rand.Int64N(int64(limit))), append(going, filepath.Join(folder, fmt.Sprintf("%d.%d", n, i))))
		}
		before := tree(t, y.root)
		image := filepath.Join(folder, strconv.Itoa(n))
		// On a machine that is very busy the reader may not come to read in time.
		for tries := 4; ; tries-- {
			r := vos(t, "checkpoint", target, "--tree", "-D", image)
			if r.Code == 0 || tries == 0 || !strings.Contains(r.Stderr, "not_received") {
				r.expect(t, 0)
				break
			}
		}
		reapAll(before)
		vos(t, "restore", "-D", image).expect(t, 0)
		y.mu.Lock()
		shown := y.shown.Len()
		y.mu.Unlock()
		await(t, "it to go on", func() bool {
			y.mu.Lock()
			defer y.mu.Unlock()
			return y.shown.Len() > shown+1000
		})
	}
	y.mu.Lock()
	all := y.shown.String()
	y.mu.Unlock()
	next := 0
	all = all[strings.Index(all, "tick 0 tock"):]
	for line := range strings.Lines(all[:strings.LastIndexByte(all, '\n')+1]) {
		if want := fmt.Sprintf("tick %d tock\r\n", next); line != want {
			t.Fatalf("%q was shown instead of %q", line, want)
		}
		next++
	}
	y.types(t, "\x03", "ready> ")
	t.Logf("%d lines", next)
}

// TestSnapshotTerminalOutside refuses a program in a terminal that is not its own.
func TestSnapshotTerminalOutside(t *testing.T) {
	y := holdTerminal(t, testbed.NeedTool(t, "bash"), "--norc")
	y.types(t, "PS1='ready> '\r", prompt)
	inside := strconv.Itoa(below(t, y.root)[0].pid)
	image := filepath.Join(t.TempDir(), "image")
	if r := vos(t, "checkpoint", inside, "-D", image).expect(t, 7); !strings.Contains(r.Stderr, "controlling_terminal") || !strings.Contains(r.Stderr, "(terminal)") {
		t.Errorf("%s", r.Stderr)
	}
	if _, err := os.Stat(image); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an image was made: %v", err)
	}
	y.types(t, "echo it goes $((40+2))\r", "it goes 42")
}
