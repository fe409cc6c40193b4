package restore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/snapshot/descriptor"
	"github.com/virtualizing-os/vos/internal/snapshot/lineage"
)

// A Source is an image that is read: an image.Reader, or pages that come from elsewhere.
// It may be used by several goroutines.
type Source interface {
	Image() *image.Image
	ReadPages(at image.Place, b []byte) error
}

// Options say how an image is restored. The zero value is usable.
type Options struct {
	// Force takes files that the program had mapped as they are now.
	Force bool
	// Map names other files, or directories, for those of the image. What is named
	// here is not compared with the file that it stands for.
	Map map[string]string
	// Inherit are the open files in place of those that the image does not hold (the
	// terminal, pipes to whoever started the program), by descriptor.
	Inherit map[int]*os.File
	// CloseConnections tells the program that its connections of TCP have ended.
	CloseConnections bool
}

// A Plan is what restoring an image comes to. Nothing is done yet.
type Plan struct {
	Refusals []api.Refusal // why it can't be; empty if it can
	PIDs     []int
	Bytes    uint64 // of memory
	Notes    []string

	source    Source
	options   Options
	terminals *descriptor.Terminals // when there are any
	births    lineage.Plan
	groups    []groupMove  // of processes that are to be in other control groups than vOS
	ids       map[int]bool // of all processes and threads, and of those that stand for others
}

// A Result tells what was done.
type Result struct {
	PID   int
	Total time.Duration
	Bytes uint64   // of memory that was written
	Notes []string // what is otherwise than it was
}

// Look finds out whether an image can be restored here and now.
func Look(ctx context.Context, source Source, options Options) (*Plan, error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("restore a process: %w: only root can give it its id, its memory and its rights", api.ErrNotPermitted)
	}
	img := source.Image()
	if len(img.Processes) == 0 {
		return nil, errors.New("the image holds no process")
	}
	plan := &Plan{source: source, options: options}
	for i := range img.Processes {
		plan.PIDs = append(plan.PIDs, img.Processes[i].PID)
	}
	plan.refuse(plan.lookAtTree(img)...)
	for i := range img.Processes {
		p := &img.Processes[i]
		plan.refuse(refuseValues(p)...)
		plan.refuse(refuseMappings(p, img.Objects)...)
	}
	if len(plan.Refusals) > 0 {
		return plan, nil // the rest relies on them
	}
	files, err := descriptor.Plan(img, plan.restoring(nil))
	if err != nil {
		return nil, err
	}
	plan.refuse(files...)
	segments, err := refuseSegments(img)
	if err != nil {
		return nil, err
	}
	plan.refuse(segments...)
	here, err := refuseMachine(img)
	if err != nil {
		return nil, err
	}
	plan.refuse(here...)
	fit := &fitted{Source: source}
	for i := range img.Processes {
		p := &img.Processes[i]
		_, bytes := pieces(p.Mappings)
		plan.Bytes += bytes
		ids, err := refuseIDs(p)
		if err != nil {
			return nil, err
		}
		plan.refuse(ids...)
		code, err := fitVDSO(fit, i)
		if err != nil {
			return nil, err
		}
		plan.refuse(code...)
		refusals, err := options.refusePaths(p)
		if err != nil {
			return nil, err
		}
		plan.refuse(refusals...)
	}
	if plan.source = fit; fit.image != nil {
		plan.Notes = append(plan.Notes, "its calls of the vDSO go on to that of this kernel, which is another one and has another address")
	}
	for i := range img.Ended {
		e := &img.Ended[i]
		taken, err := refuseID(e.PID, time.Now().Add(idMoment))
		if err != nil {
			return nil, err
		}
		plan.refuse(taken...)
		if e.Status&image.CoreDumped != 0 {
			plan.Notes = append(plan.Notes, fmt.Sprintf("that process %d, which has ended, had dumped its core is not told its parent", e.PID))
		}
	}
	huge, err := refuseHuge(img)
	if err != nil {
		return nil, err
	}
	plan.refuse(huge...)
	frozen, err := plan.lookAtGroups(img)
	if err != nil {
		return nil, err
	}
	plan.refuse(frozen...)
	if p := &img.Processes[0]; p.Session != p.PID {
		plan.Notes = append(plan.Notes, fmt.Sprintf("it will lead a session of its own; it was in session %d", p.Session))
	} else if p.Group != p.PID {
		plan.Notes = append(plan.Notes, fmt.Sprintf("it will lead a process group of its own; it was in group %d", p.Group))
	}
	return plan, ctx.Err()
}

func (p *Plan) refuse(r ...api.Refusal) { p.Refusals = append(p.Refusals, r...) }

// refuseValues returns what of a process can't be restored.
func refuseValues(p *image.Process) (refusals []api.Refusal) {
	refuse := func(subject, detail string) { refusals = append(refusals, notRestorable(subject, detail)) }
	if len(p.Threads) == 0 || p.Threads[0].TID != p.PID || p.PID <= 1 {
		refuse(fmt.Sprintf("process %d", p.PID), "the image does not begin with its main thread")
	}
	pending := func(list []image.Signal, subject string) {
		for _, s := range list {
			switch {
			case len(s) != siginfoBytes:
				refuse(subject, fmt.Sprintf("a pending signal has %d bytes", len(s)))
			case unheld(signalNumber(s)):
				refuse(subject, fmt.Sprintf("signal %d is pending", signalNumber(s)))
			}
		}
	}
	pending(p.Pending, fmt.Sprintf("process %d", p.PID))
	seen := make(map[int]bool)
	for i := range p.Threads {
		t := &p.Threads[i]
		subject := fmt.Sprintf("thread %d", t.TID)
		if seen[t.TID] || t.TID <= 1 {
			refuse(subject, "the image has it twice, or with an id that no thread can have")
		}
		seen[t.TID] = true
		pending(t.Pending, subject)
		if t.Restart != nil {
			if _, known := timeArgument[t.Restart.Number]; !known {
				refuse(subject, fmt.Sprintf("system call %d can't be gone on with for the time that is left", t.Restart.Number))
			}
		}
	}
	for _, t := range p.Timers {
		if t.ID < 0 || t.Notify == notifyThread && !seen[t.Thread] {
			refuse(fmt.Sprintf("timer %d", t.ID), fmt.Sprintf("it tells thread %d, which is not in the image", t.Thread))
		}
	}
	return refusals
}

const notifyThread = 4 // SIGEV_THREAD_ID

// unheld are the signals that can't wait while a process is built.
func unheld(signal int) bool {
	return signal < 1 || signal > 64 || signal == int(syscall.SIGKILL) || signal == int(syscall.SIGSTOP) || signal == int(syscall.SIGTRAP)
}

// refusePaths returns what speaks against the files and directories of a process.
func (o *Options) refusePaths(p *image.Process) (refusals []api.Refusal, err error) {
	root, own, directory, err := o.openDirectories(p)
	if err != nil {
		if refusals = api.Refusals(err); refusals != nil {
			return refusals, nil
		}
		return nil, err
	}
	defer func() { err = errors.Join(err, root.Close(), own.Close(), directory.Close()) }()
	return o.refuseFiles(root, p)
}

// openDirectories opens the directory in which all paths of an image are looked up, and
// the root and working directory of a process.
func (o *Options) openDirectories(p *image.Process) (root *kernel.Directory, own, directory *os.File, err error) {
	if root, err = kernel.OpenDirectory("/"); err != nil {
		return nil, nil, nil, err
	}
	open := func(path string) (*os.File, error) {
		file, err := root.OpenInRoot(o.mapped(path), kernel.PathOnly|syscall.O_DIRECTORY)
		if err != nil {
			return nil, fileMissing(path, err.Error())
		}
		return file, nil
	}
	if own, err = open(cmp.Or(p.Root, "/")); err != nil {
		return nil, nil, nil, errors.Join(err, root.Close())
	}
	if directory, err = open(p.Directory); err != nil {
		return nil, nil, nil, errors.Join(err, own.Close(), root.Close())
	}
	return root, own, directory, nil
}
