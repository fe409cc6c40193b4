package descriptor

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/snapshot/remote"
	"github.com/virtualizing-os/vos/internal/testbed"
	"github.com/virtualizing-os/vos/internal/tracee"
)

//go:embed testdata/held.c
var heldSource string

// held is a process without descriptors that makes the system calls that it is told
// to: both the program whose descriptors are kept, and the one that is to get them.
type held struct {
	t       *testing.T
	pid     int
	kill    func()
	memory  *procfs.Memory
	mailbox uint64
	placed  uint64
}

// Offsets and sizes of the mailbox in held.c.
const (
	boxCalls = 16
	boxMost  = 1024
	boxData  = boxCalls + boxMost*64
	boxRoom  = 1 << 20
)

var _ remote.Process = (*held)(nil)

func newHeld(t *testing.T) *held {
	t.Helper()
	program := testbed.MustCompile(t, testbed.Build{Name: "held", Source: heldSource})
	cmd := exec.Command(program)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h := &held{t: t, pid: cmd.Process.Pid}
	ended := false
	h.kill = func() {
		if ended {
			return
		}
		ended = true
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if h.memory != nil {
			_ = h.memory.Close()
		}
	}
	t.Cleanup(h.kill)
	lines := bufio.NewReader(out)
	line, err := lines.ReadString('\n')
	if err == nil {
		_, err = lines.ReadByte() // its end: all descriptors are closed
		if err == nil {
			t.Fatal("more than one line")
		}
	}
	if h.mailbox, err = strconv.ParseUint(strings.TrimSpace(line), 0, 64); err != nil {
		t.Fatal(err)
	}
	p, err := procfs.Open(h.pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if h.memory, err = p.OpenMemoryForWriting(); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *held) PID() int { return h.pid }

func (h *held) Place(data []byte) (uint64, error) {
	if h.placed+uint64(len(data)) > boxRoom {
		return 0, fmt.Errorf("place %d bytes: %w", len(data), remote.ErrNoRoom)
	}
	at := h.mailbox + boxData + h.placed
	h.placed += uint64(len(data)+15) &^ 15
	_, err := h.memory.WriteAt(data, int64(at))
	return at, err
}

func (h *held) Read(address uint64, b []byte) error {
	_, err := h.memory.ReadAt(b, int64(address))
	return err
}

func (h *held) Run(calls []tracee.Call) (results []uint64, err error) {
	for len(calls) > 0 {
		n := min(len(calls), boxMost)
		some, err := h.run(calls[:n])
		if err != nil {
			return nil, err
		}
		results, calls = append(results, some...), calls[n:]
	}
	h.placed = 0
	return results, nil
}

func (h *held) run(calls []tracee.Call) ([]uint64, error) {
	var box bytes.Buffer
	for _, c := range calls {
		_ = binary.Write(&box, binary.NativeEndian, [8]uint64{c.Number, c.Args[0], c.Args[1], c.Args[2], c.Args[3], c.Args[4], c.Args[5], 0})
	}
	if _, err := h.memory.WriteAt(box.Bytes(), int64(h.mailbox+boxCalls)); err != nil {
		return nil, err
	}
	if _, err := h.memory.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(len(calls))), int64(h.mailbox)); err != nil {
		return nil, err
	}
	state := make([]byte, 8)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Microsecond) {
		if err := h.Read(h.mailbox, state); err != nil {
			return nil, err
		}
		if binary.NativeEndian.Uint64(state) == 0 {
			break
		}
		if time.Now().After(end) {
			return nil, os.ErrDeadlineExceeded
		}
	}
	b := box.Bytes()
	if err := h.Read(h.mailbox+boxCalls, b); err != nil {
		return nil, err
	}
	results := make([]uint64, len(calls))
	for i := range results {
		results[i] = binary.NativeEndian.Uint64(b[i*64+56:])
	}
	return results, nil
}

// try makes one system call; a []byte or string argument is placed, and a []byte read
// back.
func (h *held) try(number uint64, args ...any) (uint64, error) {
	h.t.Helper()
	c := tracee.Call{Number: number}
	back := map[uint64][]byte{}
	for i, a := range args {
		switch a := a.(type) {
		case int:
			c.Args[i] = uint64(a)
		case uint64:
			c.Args[i] = a
		case string:
			at, err := h.Place(append([]byte(a), 0))
			if err != nil {
				h.t.Fatal(err)
			}
			c.Args[i] = at
		case []byte:
			at, err := h.Place(a)
			if err != nil {
				h.t.Fatal(err)
			}
			c.Args[i], back[at] = at, a
		default:
			h.t.Fatalf("argument of type %T", a)
		}
	}
	results, err := h.Run([]tracee.Call{c})
	if err != nil {
		h.t.Fatal(err)
	}
	for at, b := range back {
		if err := h.Read(at, b); err != nil {
			h.t.Fatal(err)
		}
	}
	return results[0], c.Err(results[0])
}

// call is try of what must succeed.
func (h *held) call(number uint64, args ...any) int {
	h.t.Helper()
	result, err := h.try(number, args...)
	if err != nil {
		h.t.Fatal(err)
	}
	return int(result)
}

func (h *held) open(path string, flags int) int {
	h.t.Helper()
	return h.call(syscall.SYS_OPENAT, -100, path, flags, 0o644)
}

// at opens path under a number.
func (h *held) at(number int, path string, flags int) {
	h.t.Helper()
	fd := h.open(path, flags)
	if fd != number {
		h.call(sysDup3, fd, number, flags&syscall.O_CLOEXEC)
		h.call(sysClose, fd)
	}
}

func (h *held) read(fd, most int) (string, error) {
	h.t.Helper()
	b := make([]byte, most)
	n, err := h.try(syscall.SYS_READ, fd, b, most)
	if err != nil {
		return "", err
	}
	return string(b[:n]), nil
}

func (h *held) wants(fd int, want string) {
	h.t.Helper()
	got, err := h.read(fd, len(want)+100)
	if err != nil || got != want {
		h.t.Errorf("descriptor %d gives %.60q, error %v; want %.60q", fd, got, err, want)
	}
}

func (h *held) write(fd int, text string) {
	h.t.Helper()
	if n := h.call(syscall.SYS_WRITE, fd, []byte(text), len(text)); n != len(text) {
		h.t.Fatalf("%d of %d bytes written", n, len(text))
	}
}

// process opens it in /proc, for the length of the test.
func (h *held) process() *procfs.Process {
	h.t.Helper()
	p, err := procfs.Open(h.pid)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { p.Close() })
	return p
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}
