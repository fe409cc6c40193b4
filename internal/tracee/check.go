package tracee

import (
	"fmt"
	"slices"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// Check refuses processes that no session can be held with, before anything is
// attached to them.
func Check(process *procfs.Process) (procfs.Status, error) {
	stat, err := process.Stat()
	if err != nil {
		return procfs.Status{}, err
	}
	if err := Lifeless(process.PID(), stat); err != nil {
		return procfs.Status{}, err
	}
	status, err := untracedStatus(process)
	if err != nil {
		return procfs.Status{}, err
	}
	switch {
	case status.TracerPID != 0:
		return status, tracedRefusal(process.PID(), status.TracerPID)
	case slices.Contains(status.ThreadFeatures, "shstk"):
		return status, api.Refusal{Code: codeShadowStack, Subject: fmt.Sprintf("process %d", process.PID()),
			Detail: "it runs with a shadow stack (CET), on which a prepared return is a fault",
			Remedy: "restart it without: GLIBC_TUNABLES=glibc.cpu.hwcaps=-SHSTK"}
	}
	return status, nil
}

// Lifeless refuses what is no running program: threads of the kernel, zombies.
func Lifeless(pid int, stat procfs.Stat) error {
	switch {
	case stat.KernelThread():
		return api.Refusal{Code: codeKernelThread, Subject: fmt.Sprintf("process %d", pid),
			Detail: "it is a thread of the kernel", Remedy: "name a program"}
	case stat.Zombie() && stat.Threads <= 1:
		return zombieRefusal(pid)
	}
	return nil
}

// Foreign refuses a program that was started as one for 32 bits: its auxiliary
// vector has words of 4 bytes, and so, read as one of 8, not this entry. In the
// middle of an execve it has none at all.
func Foreign(pid int, a procfs.Auxv) error {
	if len(a) == 0 {
		return fmt.Errorf("look at process %d: it is becoming another program: %w", pid, procfs.ErrGone)
	}
	if _, found := a[procfs.AuxPHENT]; !found {
		return not64BitRefusal(pid)
	}
	return nil
}

// untracedStatus reads a process's status, waiting a moment where somebody traces
// it: another vos does so for less than a millisecond, a debugger for long.
func untracedStatus(process *procfs.Process) (procfs.Status, error) {
	for end := time.Now().Add(200 * time.Millisecond); ; time.Sleep(2 * time.Millisecond) {
		status, err := process.Status()
		if err != nil || status.TracerPID == 0 || time.Now().After(end) {
			return status, err
		}
	}
}
