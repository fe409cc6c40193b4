package dump

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
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
	pagemap, err := openPagemap(p.Process)
	if err != nil {
		return result, err
	}
	defer pagemap.Close()
	c := &commit{Plan: p, writer: w, before: earlierOf(w.Parent(), p.Process.PID()), pagemap: pagemap, guards: guardsKnown(pagemap)}
	if c.machine, err = machine(); err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, c.tracker.close()) }()
	if err := c.precopy(ctx); err != nil {
		return result, err
	}
	const tries = 20
	for n := 1; ; n++ {
		if err := c.lookAtWaits(ctx); err != nil {
			return result, err
		}
		var times tracee.Times
		times, err = tracee.Do(ctx, p.Process, tracee.Options{}, func(s *tracee.Session) error { return c.held(ctx, s) })
		c.paused += times.Pause
		result.Freeze = c.paused
		if !errors.Is(err, errMoved) || n == tries {
			break
		}
		if err := c.lookAgain(); err != nil {
			return result, err
		}
	}
	if failed := c.tracker.close(); failed != nil {
		return result, errors.Join(err, failed)
	}
	if errors.Is(err, errMoved) {
		err = refused(codeMoving, processSubject(p.Process.PID()), "its mappings change all the time", "try again")
	}
	if err != nil {
		return result, err
	}
	if c.image != nil && p.options.LeaveRunning {
		if c.bytes, err = w.Commit(c.image); err != nil {
			return result, err
		}
	}
	result.Bytes, result.Image, result.Notes = c.bytes, c.image, c.notes
	return result, nil
}

// A commit is what is under way.
type commit struct {
	*Plan
	writer  *image.Writer
	before  *earlier
	pagemap *os.File
	guards  bool
	machine image.Machine
	waits   waits
	image   *image.Image
	bytes   int64
	notes   []string

	tracker      *tracker      // of writes, where memory was copied before, or nil
	copiedBefore uint64        // bytes, while the program ran
	paused       time.Duration // all threads were stopped

	statuses map[int]procfs.Status // of the threads, as they are stopped
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

// held does all that is done while the program is held still.
func (c *commit) held(ctx context.Context, s *tracee.Session) (err error) {
	if err := s.Prepare(); err != nil {
		return err
	}
	if err := s.StopAll(); err != nil {
		return err
	}
	if err := c.lookAtStopped(); err != nil {
		return err
	}
	maps, err := c.Process.Maps()
	if err != nil {
		return err
	}
	if !slices.Equal(maps, c.memory.maps) {
		return errMoved
	}
	img := &image.Image{Taken: time.Now().UTC().Round(0), Model: c.Model, Machine: c.machine}
	b, err := c.process()
	if err != nil {
		return err
	}
	if err := c.memory.running(c.Process, &b); err != nil {
		return err
	}
	if err := c.threads(s, &b); err != nil {
		return err
	}
	if err := c.memory.scan(c.pagemap, c.guards, c.tracker); err != nil {
		return err
	}
	total := c.memory.bytes()
	if _, err := c.copier(s.Memory(), c.memory).dump(ctx, c.memory, func(done uint64) { c.progress(done, total) }); err != nil {
		return err
	}
	c.memory.join()
	if img.Objects, err = c.memory.dumpObjects(c.Process, c.writer); err != nil {
		return err
	}
	kept, err := c.found.Dump(ctx, descriptor.Store{Peeking: peeking(s), Append: c.writer.Append, Mapped: c.memory.kept, Objects: len(img.Objects)})
	if err != nil {
		return err
	}
	img.Files, b.Descriptors, img.Objects = kept.Files, kept.Descriptors[b.PID], append(img.Objects, kept.Objects...)
	defer func() { err = errors.Join(err, kept.Leaving.Close()) }()
	img.Held = kept.Leaving.Name()
	b.Mappings = c.memory.mappings
	monotonic, boot, err := kernel.SinceBoot()
	if err != nil {
		return err
	}
	img.Machine.Monotonic, img.Machine.SinceBoot = time.Duration(monotonic), time.Duration(boot)
	img.Processes = []image.Process{b}
	if len(b.Threads) > 0 {
		c.extended(img, &b.Threads[0])
	}
	if c.written != nil {
		if err := c.written(s, c); err != nil {
			return err
		}
	}
	c.image = img
	if c.options.LeaveRunning {
		return nil
	}
	if c.bytes, err = c.writer.Commit(img); err != nil {
		return err
	}
	if err := kept.Leaving.Hold(); err != nil {
		return err
	}
	if err := syscall.Kill(b.PID, syscall.SIGKILL); err != nil {
		return fmt.Errorf("end process %d behind its checkpoint: %w", b.PID, err)
	}
	if note := kept.Leaving.Ended(); note != "" {
		c.notes = append(c.notes, note)
	}
	return nil
}

// extended notes the extended state of this machine's CPU.
func (c *commit) extended(img *image.Image, t *image.Thread) {
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
