package restore

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/image"
)

// A machine is what an image must fit to.
type machine struct {
	kernel, bootID string
}

func thisMachine() (m machine, err error) {
	for path, to := range map[string]*string{"/proc/sys/kernel/osrelease": &m.kernel, "/proc/sys/kernel/random/boot_id": &m.bootID} {
		text, err := os.ReadFile(path)
		if err != nil {
			return m, err
		}
		*to = strings.TrimSpace(string(text))
	}
	return m, nil
}

// refuseMachine returns what the machine lacks that the program has found on the one
// that the image was taken on. The extended state is compared when there is a process.
func refuseMachine(img *image.Image) (refusals []api.Refusal, err error) {
	here, err := thisMachine()
	if err != nil {
		return nil, err
	}
	if here.bootID == img.Machine.BootID {
		return nil, nil
	}
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return nil, err
	}
	var lacking []string
	has := cpuFeatures(info)
	for _, f := range img.Machine.Features {
		if !slices.Contains(has, f) {
			lacking = append(lacking, f)
		}
	}
	if len(lacking) > 0 {
		const shown = 8
		refusals = append(refusals, api.Refusal{Code: codeCPU, Subject: "the CPU",
			Detail: fmt.Sprintf("%d features are missing that the program may use: %s", len(lacking), strings.Join(lacking[:min(shown, len(lacking))], " ")),
			Remedy: "restore it on a machine with a CPU such as " + img.Machine.CPU})
	}
	return append(refusals, refuseClock(img)...), nil
}

// refuseClock refuses where time would run backwards for the program.
func refuseClock(img *image.Image) []api.Refusal {
	now, err := monotonic()
	if err == nil && now >= img.Machine.Monotonic {
		return nil
	}
	return []api.Refusal{{Code: codeClock, Subject: "CLOCK_MONOTONIC",
		Detail: fmt.Sprintf("the machine runs for %v, and the program has seen %v", now.Round(time.Second), img.Machine.Monotonic.Round(time.Second)),
		Remedy: "wait, or restore it in a time namespace: unshare --time --monotonic SECONDS vos restore"}}
}

// monotonic is CLOCK_MONOTONIC as the processes of vOS read it: without suspension,
// /proc/uptime counts it, too; where it is less it is told from it.
func monotonic() (time.Duration, error) {
	text, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return 0, err
	}
	var seconds float64
	if _, err := fmt.Sscan(string(text), &seconds); err != nil {
		return 0, fmt.Errorf("read /proc/uptime: %w", err)
	}
	return time.Duration(seconds * float64(time.Second)), nil
}

// cpuFeatures reads the flags of the first CPU of /proc/cpuinfo.
func cpuFeatures(info []byte) []string {
	for line := range bytes.Lines(info) {
		if rest, ok := bytes.CutPrefix(line, []byte("flags")); ok {
			_, flags, _ := bytes.Cut(rest, []byte(":"))
			return strings.Fields(string(flags))
		}
	}
	return nil
}

// refuseIDs refuses ids that are taken. Those of groups and sessions without a process
// show when the process is made.
func refuseIDs(p *image.Process) (refusals []api.Refusal, err error) {
	end := time.Now().Add(idMoment)
	for i := range p.Threads {
		taken, err := refuseID(p.Threads[i].TID, end)
		if err != nil {
			return nil, err
		}
		refusals = append(refusals, taken...)
	}
	return refusals, nil
}

// idMoment is for how long ids may still be taken.
const idMoment = 100 * time.Millisecond

func refuseID(id int, end time.Time) ([]api.Refusal, error) {
	taken, err := awaitFree(id, end)
	if err != nil || !taken {
		return nil, err
	}
	return []api.Refusal{pidTaken(id, "a process or thread has it")}, nil
}

// awaitFree waits for a moment, up to the end, until nobody has an id: the process that
// was checkpointed may not have been reaped yet.
func awaitFree(tid int, end time.Time) (taken bool, err error) {
	for {
		// A thread's directory is there, though it is not listed.
		_, err := os.Lstat(fmt.Sprintf("/proc/%d", tid))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return false, nil
		case err != nil:
			return false, err
		case time.Now().After(end):
			return true, nil
		}
		time.Sleep(time.Millisecond)
	}
}
