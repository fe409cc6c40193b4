package live

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// A fresh is a set of namespaces that nothing else is in: pid, mount, network, ipc and
// uts. vos runs in it.
type fresh struct {
	first *exec.Cmd
	end   io.Closer
	enter int // whose namespaces these are, or those below of a program restored under other ids
}

// firstID is the id of the first process of a program in fresh namespaces: vos and other
// commands have ids below.
const firstID = 2000

func newFresh(t *testing.T) *fresh {
	t.Helper()
	cmd := exec.Command(testbed.MustCompile(t, testbed.Build{Name: "fresh", Source: text(t, "fresh.c")}))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f := &fresh{cmd, in, cmd.Process.Pid}
	t.Cleanup(func() { f.over(t) })
	var ready [6]byte
	if _, err := io.ReadFull(out, ready[:]); err != nil || string(ready[:]) != "ready\n" {
		t.Fatalf("fresh namespaces say %q, %v", ready, err)
	}
	return f
}

// over ends the namespaces, and all that is in them.
func (f *fresh) over(t *testing.T) {
	t.Helper()
	if f.end == nil {
		return
	}
	err := f.end.Close()
	if err := errors.Join(err, f.first.Wait()); err != nil {
		t.Errorf("fresh namespaces ended with %v", err)
	}
	f.end = nil
}

// command is one that runs in the namespaces.
func (f *fresh) command(args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--target", strconv.Itoa(f.enter), "--all", "--"}, args...)...)
}

// vos runs vos in the namespaces.
func (f *fresh) vos(t *testing.T, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := f.command(append([]string{binary}, args...)...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatalf("vos %v: %v", args, err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// start starts a program in the namespaces, in a session of its own.
func (f *fresh) start(t *testing.T, command ...string) {
	t.Helper()
	alone := testbed.MustCompile(t, testbed.Build{Name: "alone", Source: text(t, "alone.c")})
	script := fmt.Sprintf(`cd /; echo %d >/proc/sys/kernel/ns_last_pid; "$@" </dev/null >/dev/null 2>&1 & test $! = %d`, firstID-1, firstID)
	if out, err := f.command(append([]string{"sh", "-c", script, "sh", alone}, command...)...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", command, err, out)
	}
}

// dial connects to a port of the namespaces' loopback address.
func (f *fresh) dial(port string) (conn net.Conn, err error) {
	const setns = 308 // its number
	enter := func(file *os.File) error {
		if _, _, errno := syscall.RawSyscall(setns, file.Fd(), syscall.CLONE_NEWNET, 0); errno != 0 {
			return fmt.Errorf("enter a network namespace: %w", errno)
		}
		return nil
	}
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	defer own.Close()
	there, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", f.first.Process.Pid))
	if err != nil {
		return nil, err
	}
	defer there.Close()
	runtime.LockOSThread() // a thread that does not come back ends with its goroutine
	if err := enter(there); err != nil {
		return nil, err
	}
	conn, err = net.DialTimeout("tcp", "127.0.0.1:"+port, 30*time.Second)
	if err == nil {
		err = conn.SetDeadline(time.Now().Add(30 * time.Second))
	}
	if err := errors.Join(err, enter(own)); err != nil {
		return nil, err
	}
	runtime.UnlockOSThread()
	return conn, nil
}

// connect is dial, once somebody listens.
func (f *fresh) connect(t *testing.T, port string) (conn net.Conn) {
	t.Helper()
	await(t, "somebody to listen", func() bool {
		var err error
		conn, err = f.dial(port)
		return err == nil
	})
	return conn
}

// processes are those of the program, with their places: id, parent, group, session, name.
func (f *fresh) processes(t *testing.T) (all []string) {
	t.Helper()
	out, err := f.command("ps", "-eo", "pid=,ppid=,pgid=,sid=,comm=").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if fields := strings.Fields(line); fields[3] >= strconv.Itoa(firstID) && len(fields[3]) >= 4 {
			all = append(all, strings.Join(fields, " "))
		}
	}
	return all
}

// checkpoint writes an image of the program, which ends.
func (f *fresh) checkpoint(t *testing.T, image string) {
	t.Helper()
	// A connection that is not closed yet is kept, and can't follow.
	await(t, "its connections to be closed", func() bool {
		return !connected(t, fmt.Sprintf("/proc/%d/net/tcp", f.first.Process.Pid), "")
	})
	// What was typed may be not read yet.
	await(t, "all to be read", func() bool {
		r := f.vos(t, "checkpoint", strconv.Itoa(firstID), "--tree", "-D", image)
		if r.Code != 0 && r.Code != 7 {
			t.Fatalf("exit code %d: %s", r.Code, r.Stderr)
		}
		return r.Code == 0
	})
}

// taken makes somebody else have the id of the program, and restores it under other ids.
func (f *fresh) taken(t *testing.T, image string) {
	t.Helper()
	f.start(t, testbed.NeedTool(t, "sleep"), "10000")
	if s := lines[api.Snapshot](t, f.vos(t, "restore", "-D", image, "--json").expect(t, 7)); len(s) != 1 || s[0].Refusals[0].Code != "pid_taken" {
		t.Fatalf("restored where its id is taken: %+v", s)
	}
	s := lines[api.Snapshot](t, f.vos(t, "restore", "-D", image, "--pid-any", "--json").expect(t, 0))
	// From here it has the id that is told in the namespaces around it.
	for _, pid := range below(t, f.first.Process.Pid) {
		ids := strings.Fields(field(pid.pid, "NSpid"))
		if len(ids) >= 2 && slices.Equal(ids[len(ids)-2:], []string{strconv.Itoa(s[0].PID), strconv.Itoa(firstID)}) {
			f.enter = pid.pid
			return
		}
	}
	t.Fatalf("restored as %+v, which is not there", s)
}
