package restore

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// TestFailures lets restores fail half-way, and looks for what is left.
func TestFailures(t *testing.T) {
	s := start(t, "plain")
	img := dump(t, s.pid)
	s.wait(t)
	whole := img.image.Processes[0]
	options := Options{Inherit: map[int]*os.File{0: s.files[0], 1: s.files[1], 2: s.files[2]}}
	// What of it would stay when the process ends is removed.
	segment := image.Object{Kind: objectSysV, ID: 4243<<15 | 77, Size: 100}
	canceled, cancel := context.WithCancel(t.Context())
	for name, test := range map[string]struct {
		spoil func(*image.Process)
		errno syscall.Errno
		ctx   context.Context
	}{
		"layout":      {func(p *image.Process) { p.Layout.StartCode = 1 }, syscall.EINVAL, t.Context()},
		"action":      {func(p *image.Process) { p.Actions = make([]image.Action, 65); p.Actions[64].Handler = 1 }, syscall.EINVAL, t.Context()},
		"scheduling":  {func(p *image.Process) { p.Threads[2].Scheduler.Policy = 77 }, syscall.EINVAL, t.Context()},
		"capability":  {func(p *image.Process) { p.Credentials.Ambient = 1 << 63 }, syscall.EINVAL, t.Context()},
		"timer":       {func(p *image.Process) { p.Timers = []image.Timer{{Clock: 99}} }, syscall.EINVAL, t.Context()},
		"registers":   {func(p *image.Process) { p.Threads[1].XState = p.Threads[1].XState[:600] }, 0, t.Context()},
		"interrupted": {func(*image.Process) { cancel() }, 0, canceled},
	} {
		t.Run(name, func(t *testing.T) {
			p := whole
			p.Threads = append([]image.Thread(nil), whole.Threads...)
			spoiled := &memoryImage{image: img.image, pages: img.pages}
			spoiled.image.Processes, spoiled.image.Objects = []image.Process{p}, []image.Object{segment}
			// One that has ended, in a session and a group whose leaders have, too.
			ids := freeIDs(t, 3)
			spoiled.image.Ended = []image.Ended{{PID: ids[0], Parent: p.PID, Group: ids[1], Session: ids[2], Status: uint32(syscall.SIGSEGV), ExitSignal: int(syscall.SIGCHLD)}}
			plan, err := Look(t.Context(), spoiled, options)
			if err != nil || len(plan.Refusals) > 0 {
				t.Fatalf("%v, %v", plan.Refusals, err)
			}
			test.spoil(&spoiled.image.Processes[0])
			_, err = plan.Commit(test.ctx)
			var step *StepError
			switch {
			case err == nil:
				t.Error("it was restored")
				s.kill(t)
			case test.errno != 0 && (!errors.As(err, &step) || step.Errno != test.errno || step.What == ""):
				t.Errorf("the error is %v, want one of a step with %v", err, test.errno)
			}
			noTrace(t, img)
			for _, id := range ids {
				if taken, err := awaitFree(id, time.Now().Add(10*time.Second)); taken || err != nil {
					t.Errorf("process %d is left: %v", id, err)
				}
			}
			if s, err := kernel.StatSegment(int(segment.ID)); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("left segment %+v, %v", s, err)
			}
		})
	}
	s.restore(t, img)
	s.report(t)
}

// freeIDs are ids that no process or group has.
func freeIDs(t *testing.T, n int) (ids []int) {
	t.Helper()
	const most = 1 << 15 // pid_max, where nobody has set it
	for id := most - 1; len(ids) < n; id-- {
		if id < lowestSpare {
			t.Fatal("all ids are taken")
		}
		if syscall.Kill(id, 0) == syscall.ESRCH && syscall.Kill(-id, 0) == syscall.ESRCH {
			ids = append(ids, id)
		}
	}
	return ids
}

// TestRefusals looks at images that can't be restored here and now.
func TestRefusals(t *testing.T) {
	s := start(t, "plain")
	img := dump(t, s.pid)
	s.wait(t)
	taken := exec.Command("sleep", "60")
	if err := taken.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = taken.Process.Kill(); _ = taken.Wait() })
	whole := img.image.Processes[0]
	for name, test := range map[string]struct {
		spoil func(*image.Image, *image.Process)
		code  api.Code
	}{
		"pid":       {func(_ *image.Image, p *image.Process) { p.PID, p.Threads[0].TID = taken.Process.Pid, taken.Process.Pid }, codePIDTaken},
		"size":      {func(_ *image.Image, p *image.Process) { p.Executable.Size++ }, codeFileChanged},
		"time":      {func(_ *image.Image, p *image.Process) { p.Executable.Modified = time.Now() }, codeFileChanged},
		"file":      {func(_ *image.Image, p *image.Process) { p.Executable.Path = "/nothing/here" }, codeFileMissing},
		"directory": {func(_ *image.Image, p *image.Process) { p.Directory = "/nothing/here" }, codeFileMissing},
		"mapping":   {func(_ *image.Image, p *image.Process) { p.Mappings[1].Start-- }, codeNotRestored},
		"flag":      {func(_ *image.Image, p *image.Process) { p.Mappings[1].VMFlags = []string{"pf"} }, codeNotRestored},
		"signal":    {func(_ *image.Image, p *image.Process) { p.Pending = []image.Signal{signal(9, 0)} }, codeNotRestored},
		"call":      {func(_ *image.Image, p *image.Process) { p.Threads[1].Restart = &image.Restart{Number: 1} }, codeNotRestored},
		"another":   {func(i *image.Image, p *image.Process) { i.Processes = append(i.Processes, *p) }, codeNotRestored},
		"no segment": {func(i *image.Image, _ *image.Process) {
			i.Objects = []image.Object{{Kind: objectSysV, ID: 4243<<15 | 78, Outside: true}}
		}, codeSegment},
		"another os": {func(i *image.Image, _ *image.Process) { i.Machine.BootID, i.Machine.Kernel = "", "1.0" }, codeKernel},
		"no feature": {func(i *image.Image, _ *image.Process) { i.Machine.BootID, i.Machine.Features = "", []string{"fpv"} }, codeCPU},
		"time back":  {func(i *image.Image, _ *image.Process) { i.Machine.BootID, i.Machine.Monotonic = "", 1<<62 }, codeClock},
	} {
		t.Run(name, func(t *testing.T) {
			p := whole
			p.Threads, p.Mappings = append([]image.Thread(nil), whole.Threads...), append([]image.Mapping(nil), whole.Mappings...)
			spoiled := &memoryImage{image: img.image, pages: img.pages}
			spoiled.image.Processes = []image.Process{p}
			test.spoil(&spoiled.image, &spoiled.image.Processes[0])
			plan, err := Look(t.Context(), spoiled, Options{Inherit: map[int]*os.File{0: s.files[0], 1: s.files[1], 2: s.files[2]}})
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range plan.Refusals {
				if r.Code == test.code {
					if _, err := plan.Commit(t.Context()); len(api.Refusals(err)) == 0 {
						t.Errorf("what is refused is carried out: %v", err)
					}
					return
				}
			}
			t.Errorf("it is not refused by %s: %v", test.code, plan.Refusals)
		})
	}
}
