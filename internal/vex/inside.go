package vex

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/snapshot/restore"
)

// What is to be done in other namespaces than vos's a second vos does, that the first one
// starts there (InsideName): it is asked on its standard input, and answers on its
// standard output. Should the first one die, the second sees the end of its input and
// gives up.
//
// A program whose ids are taken is restored in a pid namespace of its own, where they are
// free, and in a mount namespace, as /proc must show that one. The vos inside is then the
// first process of it, which restores the program as always and becomes a tiny program
// (restore.Init): it waits for what ends in the namespace, and ends with the last. If it
// dies before the program is there, all that is in the namespace dies with it.

// InsideName is the name under which vos is started in other namespaces: main calls Inside.
const InsideName = "vos-inside"

// An insideRequest is what the vos inside is to do: one of the three.
type insideRequest struct {
	Restore    *api.RestoreRequest    `json:",omitempty"`
	Checkpoint *api.CheckpointRequest `json:",omitempty"`
	Check      *api.CheckRequest      `json:",omitempty"`

	First bool         // it is the first process of a new pid namespace
	Apart *image.Apart `json:",omitempty"` // for Checkpoint and Check
}

// An insideAnswer is what the vos inside says: what came out, once or several times, and
// last that it is done.
type insideAnswer struct {
	Snapshot *api.Snapshot `json:",omitempty"`
	Check    *api.Check    `json:",omitempty"`
	Done     bool          `json:",omitempty"`
	Error    string        `json:",omitempty"`
}

// The vos inside has the caller's root directory as descriptor outsideRoot, and leads
// paths of the caller through it.
const (
	outsideRoot = 3
	firstGiven  = outsideRoot + 1
)

var outsidePrefix = fmt.Sprintf("/proc/self/fd/%d", outsideRoot)

// outsidePath returns a path of the caller for the vos inside. Links are followed but for
// the last one, which may be to be made.
func outsidePath(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	absolute, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	folder, err := filepath.EvalSymlinks(filepath.Dir(absolute))
	if err != nil {
		return "", err
	}
	return filepath.Join(outsidePrefix, folder, filepath.Base(absolute)), nil
}

func outsidePaths(paths []string) ([]string, error) {
	var all []string
	for _, path := range paths {
		outside, err := outsidePath(path)
		if err != nil {
			return nil, err
		}
		all = append(all, outside)
	}
	return all, nil
}

// An inside is a vos in other namespaces.
type inside struct {
	cmd     *exec.Cmd
	answers *bufio.Scanner
	done    func() // ends the wait for the caller's end
	ended   chan struct{}
}

// startInside starts one by start, which starts the command, and asks it. It is to be
// ended.
func startInside(ctx context.Context, r insideRequest, given []*os.File, attributes *syscall.SysProcAttr, start func(*exec.Cmd) error) (_ *inside, err error) {
	root, err := os.Open("/")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args, cmd.Stderr, cmd.SysProcAttr = []string{InsideName}, os.Stderr, attributes
	cmd.ExtraFiles = append([]*os.File{root}, given...)
	request, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	answers, err := cmd.StdoutPipe()
	if err != nil {
		return nil, errors.Join(err, request.Close())
	}
	if err := start(cmd); err != nil {
		return nil, fmt.Errorf("start vos in other namespaces: %w", err)
	}
	i := &inside{cmd: cmd, answers: bufio.NewScanner(answers), ended: make(chan struct{})}
	const longest = 64 << 20
	i.answers.Buffer(nil, longest)
	stop := context.AfterFunc(ctx, func() { _ = request.Close() })
	i.done = func() { stop(); _ = request.Close() }
	if err := json.NewEncoder(request).Encode(r); err != nil {
		i.end(true)
		return nil, fmt.Errorf("tell vos in other namespaces what to do: %w", err)
	}
	return i, nil
}

// answersTo hands what the vos inside says to emit until it is done.
func (i *inside) answersTo(ctx context.Context, emit func(insideAnswer) error) error {
	for i.answers.Scan() {
		var a insideAnswer
		text := bytes.ReplaceAll(i.answers.Bytes(), []byte(outsidePrefix+"/"), []byte("/"))
		if err := json.Unmarshal(text, &a); err != nil {
			return fmt.Errorf("vos in other namespaces said %.100q: %w", text, err)
		}
		switch {
		case a.Error != "":
			return errors.Join(ctx.Err(), errors.New(a.Error))
		case a.Done:
			return nil
		}
		if err := emit(a); err != nil {
			return err
		}
	}
	return errors.Join(ctx.Err(), i.answers.Err(), errors.New("the vos that was started in other namespaces has ended"))
}

// end reaps the vos inside whenever it ends, and waits for that if it is to.
func (i *inside) end(wait bool) {
	if wait {
		i.done()
	}
	go func() {
		_ = i.cmd.Wait() // how it ended says nothing that its answers do not
		close(i.ended)
	}()
	if wait {
		<-i.ended
	}
}

// forInside returns a request for the vos inside, and the files that it needs.
func forInside(r api.RestoreRequest, given map[int]*os.File) (api.RestoreRequest, []*os.File, error) {
	var files []*os.File
	var err error
	r.Inherit = map[int]int{}
	for number, file := range given {
		r.Inherit[number] = firstGiven + len(files)
		files = append(files, file)
	}
	if r.Directory, err = outsidePath(r.Directory); err != nil {
		return r, nil, err
	}
	r.Identities, err = outsidePaths(r.Identities)
	return r, files, err
}

// restoreInside restores an image in new namespaces; given are r.Inherit's files. The
// snapshot's PID is that of the program here.
func restoreInside(ctx context.Context, r api.RestoreRequest, given map[int]*os.File) (s api.Snapshot, err error) {
	r.AnyPID = false
	r, files, err := forInside(r, given)
	if err != nil {
		return s, err
	}
	new := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS, Setsid: true}
	i, err := startInside(ctx, insideRequest{Restore: &r, First: true}, files, new, (*exec.Cmd).Start)
	if err != nil {
		return s, err
	}
	// It is waited for whenever it ends: later than the program does.
	defer func() { i.end(err != nil || s.Outcome != api.Restored) }()
	if err := i.answersTo(ctx, func(a insideAnswer) error { s = *a.Snapshot; return nil }); err != nil || s.Outcome != api.Restored {
		return s, err
	}
	// It ends its output when it has become the first process of the namespace, or has ended.
	for i.answers.Scan() {
	}
	within, first := s.PID, i.cmd.Process.Pid
	namespace, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", first))
	if err == nil {
		s.PID, err = seenHere(namespace, within)
	}
	if err != nil {
		return s, err
	}
	s.Residual = append(s.Residual, fmt.Sprintf("it has id %d in a pid and a mount namespace of its own, whose first process, %d (%s), ends with the last of them", within, first, restore.InitName))
	return s, nil
}

// seenHere returns the id here of a process that has one of its own in a pid namespace,
// which is named as the links of /proc/PID/ns do it.
func seenHere(namespace string, within int) (int, error) {
	pids, err := procfs.Processes()
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		if own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid)); err != nil || own != namespace {
			continue // it has ended, or is elsewhere
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
	return 0, fmt.Errorf("process %d of the namespace %s was restored, and has ended: %w", within, namespace, api.ErrGone)
}

// Inside is all that the vos inside does. It returns an exit code, or, where it has
// restored a program as the first process of a pid namespace, not at all.
func Inside() int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) // an answer that nobody reads ends nothing
	var r insideRequest
	if err := json.NewDecoder(os.Stdin).Decode(&r); err != nil {
		return 1 // nobody is there to be told
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // until whoever asked is gone
		cancel()
	}()
	// What can't be told any more is seen from the program's being there, or not.
	answers := json.NewEncoder(os.Stdout)
	restored, err := r.carryOut(ctx, answers)
	last := insideAnswer{Done: true}
	if err != nil {
		last.Error = err.Error()
	}
	err = errors.Join(err, answers.Encode(last))
	if restored != nil {
		err = restored.Become()
	}
	if err == nil {
		return 0
	}
	return 1
}

// carryOut does what was asked. It returns what the process is to become, if anything.
func (r *insideRequest) carryOut(ctx context.Context, answers *json.Encoder) (first *restore.Init, err error) {
	snapshot := func(s api.Snapshot) error { return answers.Encode(insideAnswer{Snapshot: &s}) }
	m := Machine{}
	switch {
	case r.Check != nil:
		return nil, m.check(ctx, *r.Check, r.Apart, func(c api.Check) error { return answers.Encode(insideAnswer{Check: &c}) })
	case r.Checkpoint != nil:
		return nil, m.checkpoint(ctx, *r.Checkpoint, r.Apart, snapshot)
	case r.Restore == nil:
		return nil, errors.New("nothing is asked of vos inside")
	case !r.First:
		return nil, m.Restore(ctx, *r.Restore, snapshot)
	}
	if err := ownProc(); err != nil {
		return nil, err
	}
	init, err := restore.NewInit()
	if err != nil {
		return nil, err
	}
	err = m.Restore(ctx, *r.Restore, func(s api.Snapshot) error {
		if s.Outcome == api.Restored {
			first = init
		}
		_ = snapshot(s) // the program is there, whoever is told
		return nil
	})
	return first, err
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
