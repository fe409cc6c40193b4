package dump

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/snapshot/descriptor"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// A Result is how a checkpoint went.
type Result struct {
	Freeze time.Duration // all threads stopped, all in all: each first stop to last resume, or the end
	Total  time.Duration
	Bytes  int64 // of the image on its disk
	Image  *image.Image
	Notes  []string // what stays behind
}

// errMoved says that the memory of the program is not what was looked at.
var errMoved = errors.New("its mappings have changed since they were looked at")

// Commit writes the program that was looked at to an image, commits the image, and
// ends the program or lets it go on. After an error it goes on, and there is no image:
// the writer was aborted. Refusals (api.Refusal) are what has come up since Look.
func (p *Plan) Commit(ctx context.Context, w *image.Writer) (result Result, err error) {
	begin := time.Now()
	defer func() {
		result.Total = time.Since(begin)
		if err != nil {
			err = errors.Join(err, w.Abort())
		}
	}()
	if len(p.Refusals) > 0 {
		return result, joined(p.Refusals)
	}
	k := &whole{Plan: p, writer: w}
	if k.machine, err = machine(); err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, k.close()) }()
	if err := k.open(); err != nil {
		return result, err
	}
	for _, c := range k.parts {
		if err := c.precopy(ctx); err != nil {
			return result, err
		}
	}
	if err := k.keepFiles(); err != nil {
		return result, err
	}
	if k.queues, err = p.found.Queues(); err != nil {
		return result, err
	}
	const (
		tries        = 20
		resumedTries = 5 // a thread may not have been back in its wait when it was looked for
	)
	for n := 1; ; n++ {
		k.last = n == tries
		for _, c := range k.parts {
			if err := c.lookAtWaits(ctx); err != nil {
				return result, err
			}
		}
		err = k.held(ctx)
		if errors.Is(err, errUnread) || n < resumedTries && tracee.Resumed(err) {
			pause(ctx)
			continue
		}
		if !errors.Is(err, errMoved) || k.last {
			break
		}
		for _, c := range k.parts {
			if err := c.lookAgain(); err != nil {
				return result, err
			}
		}
	}
	result.Freeze = k.paused
	series := p.options.Series
	for _, c := range k.parts {
		result.Freeze += c.paused
		if err == nil && series != nil {
			continue
		}
		if failed := c.tracker.close(); failed != nil {
			k.notes = append(k.notes, failed.Error())
		}
	}
	if errors.Is(err, errMoved) {
		err = refused(codeMoving, processSubject(p.Process.PID()), "its mappings change all the time", descriptor.TryAgain)
	}
	if err != nil {
		return result, err
	}
	if !p.options.LeaveRunning {
		k.awaitEnd()
	}
	if p.options.LeaveRunning {
		if k.bytes, err = w.Commit(k.image); err != nil {
			return result, err
		}
		if series != nil {
			if failed := series.keep(k.parts, k.image.ID); failed != nil {
				k.notes = append(k.notes, failed.Error())
			}
		}
	}
	result.Bytes, result.Image, result.Notes = k.bytes, k.image, k.notes
	return result, nil
}

// A whole is the checkpoint that is under way.
type whole struct {
	*Plan
	writer  *image.Writer
	parts   []*commit // one for each member
	machine image.Machine
	files   keptFiles
	image   *image.Image
	bytes   int64
	notes   []string
	paused  time.Duration // the processes were held

	queues *descriptor.Queues // of terminals
	last   bool               // it is not tried again
}

// A commit is the part of one process in it.
type commit struct {
	*member
	whole   *whole
	writer  *image.Writer
	before  *earlier
	pagemap *os.File
	guards  bool
	waits   waits

	tracker      *tracker      // of writes, where memory was copied before, or nil
	copiedBefore uint64        // bytes, while the program ran
	paused       time.Duration // all threads were stopped, before they are held

	statuses map[int]procfs.Status // of the threads, as they are stopped
}

// open prepares a part for each process.
func (k *whole) open() error {
	for _, m := range k.members {
		pagemap, err := openPagemap(m.Process)
		if err != nil {
			return err
		}
		k.parts = append(k.parts, &commit{member: m, whole: k, writer: k.writer, before: earlierOf(k.writer.Parent(), m.Process.PID()),
			pagemap: pagemap, guards: guardsKnown(pagemap), tracker: k.options.Series.take(m.Process.PID(), k.writer.Parent())})
	}
	return nil
}

func (k *whole) close() error {
	var errs []error
	for _, c := range k.parts {
		errs = append(errs, c.tracker.close(), c.pagemap.Close())
	}
	errs = append(errs, k.queues.Close())
	return errors.Join(errs...)
}

// lookAgain looks at the memory anew.
func (c *commit) lookAgain() (err error) {
	if c.memory, err = lookAtMemory(c.Process, c.tracker); err != nil {
		return err
	}
	if len(c.memory.refusals) > 0 {
		return joined(c.memory.refusals)
	}
	return nil
}

// held holds all processes still, writes them down, and ends them or lets them go.
func (k *whole) held(ctx context.Context) error {
	var failed error
	ended := false
	times, err := tracee.Do(ctx, k.Process, tracee.Options{Interrupted: k.parts[0].interrupted}, func(s *tracee.Session) error {
		ended, failed = k.hold(ctx, s)
		return failed
	})
	k.paused += times.Pause // from before the others' first stop until after their last
	if ended {
		return failed // what has ended can't be let go
	}
	return err
}

// hold holds the others, too, and does the work, on the root's tracing thread. It tells
// whether the processes are ended.
func (k *whole) hold(ctx context.Context, root *tracee.Session) (ended bool, err error) {
	holds := make([]held, len(k.parts))
	defer func() {
		for i := len(holds) - 1; i > 0; i-- {
			if holds[i] == nil {
				continue
			}
			if failed := holds[i].release(); !ended {
				err = errors.Join(err, failed)
			}
		}
	}()
	if err := k.drain(ctx, holds); err != nil {
		return false, err
	}
	if err := k.parts[0].stop(root); err != nil {
		return false, err
	}
	holds[0] = here{root}
	if err := k.holdOthers(ctx, holds, func(int) bool { return true }); err != nil {
		return false, err
	}
	if !k.last && k.queues.Waiting() {
		return false, errUnread
	}
	kept, err := k.write(ctx, holds)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, kept.Leaving.Close()) }()
	if k.written != nil {
		if err := k.written(root, k.parts[0]); err != nil {
			return false, err
		}
	}
	if k.options.LeaveRunning {
		return false, nil
	}
	if k.bytes, err = k.writer.Commit(k.image); err != nil {
		return false, err
	}
	if err := kept.Leaving.Hold(); err != nil {
		return false, err
	}
	if err := endAll(k.image.Processes, root); err != nil {
		return true, err
	}
	if note := kept.Leaving.Ended(); note != "" {
		k.notes = append(k.notes, note)
	}
	return true, nil
}

// holdOthers holds those of the processes but the root that are chosen, by their pid, and
// not held yet.
func (k *whole) holdOthers(ctx context.Context, holds []held, chosen func(pid int) bool) error {
	for i, c := range k.parts {
		pid := c.Process.PID()
		if i == 0 || holds[i] != nil || !chosen(pid) {
			continue
		}
		h := c.hold(ctx)
		holds[i] = h
		if err := h.stopped(); errors.Is(err, procfs.ErrGone) {
			return refused(codeMoving, processSubject(pid), "it has just ended", descriptor.TryAgain)
		} else if err != nil {
			return err
		}
	}
	return nil
}

// write writes all processes down, which are held. After an error nothing is left to be
// closed.
func (k *whole) write(ctx context.Context, holds []held) (_ *descriptor.Kept, err error) {
	img := &image.Image{Taken: time.Now().UTC().Round(0), Model: k.Model, Machine: k.machine, Apart: k.options.Apart}
	for i, c := range k.parts {
		var b image.Process
		if err := holds[i].do(func(s *tracee.Session) (err error) {
			b, err = c.write(ctx, s)
			return err
		}); err != nil {
			return nil, err
		}
		img.Processes = append(img.Processes, b)
	}
	if img.Ended, err = k.lookAtEnded(); err != nil {
		return nil, err
	}
	refusals, err := refuseRelations(img.Processes, img.Ended)
	if err != nil {
		return nil, err
	}
	if len(refusals) > 0 {
		return nil, joined(refusals)
	}
	objects := gather(k.parts, img.Processes)
	if img.Objects, err = dumpObjects(objects, k.writer, k.files); err != nil {
		return nil, err
	}
	place := func(device, inode uint64) (int, bool) { return placeOf(objects, device, inode) }
	kept, err := k.found.Dump(ctx, descriptor.Store{Peeking: peeking(k.parts, holds), Append: k.writer.Append, Mapped: place, Objects: len(img.Objects)})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, kept.Leaving.Close())
		}
	}()
	img.Held = kept.Leaving.Name()
	img.Files, img.Objects = kept.Files, append(img.Objects, kept.Objects...)
	for i := range img.Processes {
		b := &img.Processes[i]
		b.Descriptors = kept.Descriptors[b.PID]
		if r := k.members[i].foreignTerminal(b, kept.HasMaster); r != nil {
			return nil, *r
		}
	}
	monotonic, boot, err := kernel.SinceBoot()
	if err != nil {
		return nil, err
	}
	img.Machine.Monotonic, img.Machine.SinceBoot = time.Duration(monotonic), time.Duration(boot)
	if threads := img.Processes[0].Threads; len(threads) > 0 {
		extended(img, &threads[0])
	}
	k.image = img
	return kept, nil
}

// write writes one process down, but for its descriptors.
func (c *commit) write(ctx context.Context, s *tracee.Session) (b image.Process, err error) {
	maps, err := c.Process.Maps()
	if err != nil {
		return b, err
	}
	if !slices.Equal(maps, c.memory.maps) {
		return b, errMoved
	}
	if b, err = c.process(); err != nil {
		return b, err
	}
	if err := c.memory.running(c.Process, &b); err != nil {
		return b, err
	}
	if err := c.threads(s, &b); err != nil {
		return b, err
	}
	tracks := c.tracker != nil && c.options.Series != nil
	if tracks {
		if err := c.tracker.protect(c); err != nil {
			return b, err
		}
	}
	if err := c.memory.scan(c.pagemap, c.guards, c.tracker); err != nil {
		return b, err
	}
	lacked := make([][]image.Run, len(c.memory.mappings))
	for i := range lacked {
		if tracks {
			lacked[i] = slices.Clone(c.memory.mappings[i].Pages)
		}
	}
	total := c.memory.bytes()
	if _, err := c.copier(s.Memory(), c.memory).dump(ctx, c.memory, func(done uint64) { c.progress(done, total) }); err != nil {
		return b, err
	}
	if tracks {
		c.tracker.settle(c.memory, lacked)
	}
	c.memory.join()
	b.Mappings = slices.Clone(c.memory.mappings)
	return b, nil
}

// extended notes the extended state of this machine's CPU.
func extended(img *image.Image, t *image.Thread) {
	const featuresAt = 464 // struct _fpx_sw_bytes: ptrace has XCR0 there
	img.Machine.XStateSize = len(t.XState)
	if len(t.XState) >= featuresAt+8 {
		img.Machine.XFeatures = word(t.XState[featuresAt:])
	}
}

// machine describes this machine.
func machine() (m image.Machine, err error) {
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return m, err
	}
	m.Kernel = strings.TrimSpace(string(release))
	if m.Hostname, err = os.Hostname(); err != nil {
		return m, err
	}
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return m, err
	}
	m.BootID = strings.TrimSpace(string(id))
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return m, err
	}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		switch value = strings.TrimSpace(value); strings.TrimSpace(key) {
		case "model name":
			m.CPU = value
		case "flags":
			m.Features = strings.Fields(value)
		case "":
			return m, nil // the first processor's end
		}
	}
	return m, nil
}

func joined(refusals []api.Refusal) error {
	errs := make([]error, len(refusals))
	for i, r := range refusals {
		errs[i] = r
	}
	return errors.Join(errs...)
}
