package testbed

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/kernel"
)

// A child is a program that was started here and whose end is awaited.
type child struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it was reaped
	err  error         // how it ended; valid after done
}

// startChild starts cmd. It gets SIGTERM when the process that calls this dies,
// however that dies, so that a killed test run leaves no server behind.
//
// The kernel sends that signal when the *thread* that forked ends, therefore
// one goroutine keeps its thread from the start of the child to its end.
func startChild(cmd *exec.Cmd) (*child, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGTERM
	cmd.SysProcAttr.Setpgid = true // its descendants can be found and ended
	cmd.WaitDelay = time.Second
	c := &child{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		awaitExit(cmd.Process.Pid)
		c.err = cmd.Wait()
		close(c.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return c, nil
}

// awaitExit returns when a child has ended, without waiting for it: a wait by
// the parent also takes the stops of a child that another thread of the parent
// traces (wait_consider_task in kernel/exit.c), and tests trace what they start.
// Where the kernel has no pidfds it returns at once.
func awaitExit(pid int) {
	const sysPidfdOpen, pidfdNonblock = 434, syscall.O_NONBLOCK
	fd, _, errno := syscall.RawSyscall(sysPidfdOpen, uintptr(pid), pidfdNonblock, 0)
	if errno != 0 {
		return
	}
	file := os.NewFile(fd, "pidfd")
	defer file.Close()
	raw, err := file.SyscallConn()
	if err != nil {
		return
	}
	// A pidfd becomes readable when its process ends; there is nothing to read. It is asked,
	// as the runtime may have been told, and have forgotten it, before the wait began.
	_ = raw.Read(func(fd uintptr) bool {
		ended, err := kernel.Raw(fd).Ready(kernel.EventIn)
		return ended || err != nil
	})
}

func (c *child) pid() int { return c.cmd.Process.Pid }

// stop sends sig, waits for the end, and kills what does not end in time.
func (c *child) stop(sig syscall.Signal, within time.Duration) error {
	select {
	case <-c.done:
		return nil
	default:
	}
	if err := c.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("signal %s %d: %w", c.cmd.Path, c.pid(), err)
	}
	select {
	case <-c.done:
		return nil
	case <-time.After(within):
	}
	c.kill()
	return fmt.Errorf("stop %s %d: not ended %v after %v: killed", c.cmd.Path, c.pid(), within, sig)
}

// kill ends the child with SIGKILL and reaps it.
func (c *child) kill() {
	_ = c.cmd.Process.Kill() // the only error is that it has ended
	<-c.done
}

// endGroup ends what is left of the child's process group after its own end, and
// reaps those orphans that became children of this process (see [Subreaper]).
func (c *child) endGroup() {
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		_ = syscall.Kill(-c.pid(), syscall.SIGKILL) // nobody may be left
		if !c.groupLeft() {
			return
		}
	}
}

// groupLeft tells whether somebody is left in the child's process group. Those
// who are dead and for this process to reap are reaped.
func (c *child) groupLeft() bool {
	for {
		pid, err := syscall.Wait4(-c.pid(), nil, syscall.WNOHANG, nil)
		if err != syscall.EINTR && (err != nil || pid <= 0) {
			return groupExists(c.pid())
		}
	}
}

// exitStatus tells how the child ended: its exit code, or -1 and the signal.
func (c *child) exitStatus() (code int, signal syscall.Signal) {
	var exit *exec.ExitError
	if errors.As(c.err, &exit) {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			return -1, status.Signal()
		}
		return exit.ExitCode(), 0
	}
	return 0, 0
}

// lastOutput keeps the end of what a program prints, for error messages. It is
// safe for use by several goroutines.
type lastOutput struct {
	mu   sync.Mutex
	text []byte
}

const lastOutputLimit = 4 << 10

// Write implements io.Writer.
func (o *lastOutput) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text = append(o.text, p...)
	if over := len(o.text) - lastOutputLimit; over > 0 {
		o.text = append(o.text[:0], o.text[over:]...)
	}
	return len(p), nil
}

// String returns what was kept.
func (o *lastOutput) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.text)
}
