package vex

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/snapshot/restore"
)

// A program whose ids are taken is restored in a pid namespace of its own, where they are
// free, and in a mount namespace, as /proc must show that one. vos starts itself as the
// first process of it (InsideName), which restores the program as always and then becomes
// a tiny program (restore.Init): it waits for what ends in the namespace, and ends with
// the last. Should the vos outside die before the program is there, the one inside sees
// the end of its standard input and gives up; with that one dies all that is in the
// namespace.

// InsideName is the name under which vos is started in a new namespace: main calls Inside.
const InsideName = "vos-inside"

// An insideAnswer is what the vos inside says when it is done.
type insideAnswer struct {
	Snapshot api.Snapshot
	Error    string
}

// restoreInside restores an image in new namespaces; given are r.Inherit's files. The
// snapshot's PID is that of the program here.
func restoreInside(ctx context.Context, r api.RestoreRequest, given map[int]*os.File) (s api.Snapshot, err error) {
	inside := r
	inside.AnyPID, inside.Inherit = false, map[int]int{}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args, cmd.Stderr = []string{InsideName}, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS, Setsid: true}
	const firstExtra = 3
	for number, file := range given {
		inside.Inherit[number] = firstExtra + len(cmd.ExtraFiles)
		cmd.ExtraFiles = append(cmd.ExtraFiles, file)
	}
	request, err := cmd.StdinPipe()
	if err != nil {
		return s, err
	}
	answers, err := cmd.StdoutPipe()
	if err != nil {
		return s, err
	}
	if err := cmd.Start(); err != nil {
		return s, fmt.Errorf("start vos in a pid namespace of its own: %w", err)
	}
	// It is waited for whenever it ends: later than the program does.
	ended := make(chan struct{})
	defer func() {
		go func() {
			_ = cmd.Wait() // how it ended says nothing that its answer does not
			close(ended)
		}()
		if err != nil || s.Outcome != api.Restored {
			<-ended
		}
	}()
	defer context.AfterFunc(ctx, func() { _ = request.Close() })()
	if err := json.NewEncoder(request).Encode(inside); err != nil {
		return s, fmt.Errorf("tell vos in its namespace what to restore: %w", err)
	}
	// It ends its output when it has become the first process of the namespace, or has ended.
	text, err := io.ReadAll(answers)
	if err != nil {
		return s, err
	}
	var answer insideAnswer
	if err := json.Unmarshal(text, &answer); err != nil {
		return s, errors.Join(ctx.Err(), fmt.Errorf("the vos that was started in a pid namespace of its own has ended: %w", err))
	}
	if s = answer.Snapshot; answer.Error != "" {
		return s, errors.Join(ctx.Err(), errors.New(answer.Error))
	}
	if s.Outcome != api.Restored {
		return s, nil
	}
	within := s.PID
	if s.PID, err = seenHere(cmd.Process.Pid, within); err != nil {
		return s, err
	}
	s.Residual = append(s.Residual, fmt.Sprintf("it has id %d in a pid and a mount namespace of its own, whose first process, %d (%s), ends with the last of them", within, cmd.Process.Pid, restore.InitName))
	return s, nil
}

// seenHere returns the id here of a process that has one of its own in the namespace of
// another process.
func seenHere(first, within int) (int, error) {
	namespace := func(pid int) string {
		link, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid)) // "" of what has ended
		return link
	}
	own := namespace(first)
	pids, err := procfs.Processes()
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		if own == "" || namespace(pid) != own {
			continue
		}
		p, err := procfs.Open(pid)
		if err != nil {
			continue
		}
		status, err := p.Status()
		if err := errors.Join(err, p.Close()); err == nil && len(status.NSPIDs) > 0 && status.NSPIDs[len(status.NSPIDs)-1] == within {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("process %d of the namespace of %d was restored, and has ended: %w", within, first, api.ErrGone)
}

// Inside is all that the first process of the namespace does. It returns an exit code
// if the program is not there, and not at all if it is.
func Inside() int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) // an answer that nobody reads ends nothing
	var r api.RestoreRequest
	request := json.NewDecoder(os.Stdin)
	if err := request.Decode(&r); err != nil {
		return 1 // nobody is there to be told
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // until whoever asked is gone
		cancel()
	}()
	answer, first := insideAnswer{}, (*restore.Init)(nil)
	err := ownProc()
	if err == nil {
		first, err = restore.NewInit()
	}
	if err == nil {
		err = Machine{}.Restore(ctx, r, func(s api.Snapshot) error {
			answer.Snapshot = s
			return nil
		})
	}
	if err != nil {
		answer.Error = err.Error()
	}
	// What can't be told any more is seen from the program's being there, or not.
	err = json.NewEncoder(os.Stdout).Encode(answer)
	if answer.Snapshot.Outcome == api.Restored && answer.Error == "" {
		err = first.Become()
	}
	fmt.Fprintln(os.Stderr, "vos:", err)
	return 1
}

// ownProc lets /proc show the pid namespace that this process is the first of. Nobody
// else sees that; what others mount later is seen here.
func ownProc() error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("have mounts of its own: %w", err)
	}
	if err := syscall.Mount("proc", "/proc", "proc", syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc of a new pid namespace: %w", err)
	}
	return nil
}
