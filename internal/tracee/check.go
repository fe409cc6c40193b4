package tracee

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// check refuses processes that no session can be held with, before anything is
// attached to them.
func check(process *procfs.Process) (procfs.Status, error) {
	stat, err := process.Stat()
	if err != nil {
		return procfs.Status{}, err
	}
	if err := Lifeless(process.PID(), stat); err != nil {
		return procfs.Status{}, err
	}
	status, err := process.Status()
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
// vector has words of 4 bytes, and so, read as one of 8, not this entry.
func Foreign(pid int, a procfs.Auxv) error {
	if _, found := a[procfs.AuxPHENT]; !found {
		return not64BitRefusal(pid)
	}
	return nil
}

func zombieRefusal(pid int) error {
	return api.Refusal{Code: CodeZombie, Subject: fmt.Sprintf("process %d", pid),
		Detail: "it has ended and waits for its parent", Remedy: "none is needed"}
}

func tracedRefusal(pid, tracer int) error {
	return api.Refusal{Code: codeTraced, Subject: fmt.Sprintf("process %d", pid),
		Detail: fmt.Sprintf("process %d traces it", tracer),
		Remedy: "end the debugger or tracer and try again"}
}

func not64BitRefusal(pid int) error {
	return api.Refusal{Code: codeNot64Bit, Subject: fmt.Sprintf("process %d", pid),
		Detail: "it runs 32-bit code", Remedy: "restart the program instead"}
}

func uninterruptible(pid, tid int) error {
	return api.Refusal{Code: codeUninterrupted, Subject: fmt.Sprintf("thread %d of process %d", tid, pid),
		Detail: "it is in an uninterruptible sleep (state D): in vfork, or waiting for a device",
		Remedy: "try again when it is not"}
}

// findGadgets looks for the instructions that Gadgets needs in the code that
// the process has mapped, outside of what is to be avoided. The vDSO comes first,
// as it is in every process and no file's, then the C library, which has them
// all.
func findGadgets(process *procfs.Process, memory *procfs.Memory, avoid []Range) (Gadgets, error) {
	maps, err := process.Maps()
	if err != nil {
		return Gadgets{}, err
	}
	maps = slices.DeleteFunc(maps, func(m procfs.Mapping) bool {
		return m.Perms&procfs.Exec == 0 || m.Perms&procfs.Read == 0 || m.Kind == procfs.KindVsyscall
	})
	slices.SortStableFunc(maps, func(a, b procfs.Mapping) int { return searchRank(&a) - searchRank(&b) })
	var g Gadgets
	buf := make([]byte, 256<<10)
	for _, m := range maps {
		for _, part := range without(Range{m.Start, m.End}, avoid) {
			for at := part.Start; at < part.End && !g.Complete(); {
				n, err := memory.ReadAt(buf[:min(uint64(len(buf)), part.End-at)], int64(at))
				if errors.Is(err, procfs.ErrGone) {
					return Gadgets{}, err
				}
				if n == 0 && err != nil {
					break // pages beyond the end of a file cannot be read
				}
				g.Add(buf[:n], at)
				at += uint64(n)
			}
		}
		if g.Complete() {
			return g, nil
		}
	}
	if g.Sufficient() {
		return g, nil
	}
	return Gadgets{}, api.Refusal{Code: codeNoGadget, Subject: fmt.Sprintf("process %d", process.PID()),
		Detail: "its code has no system call instruction that returns, or none that ends a signal handler",
		Remedy: "try again if it has only just been started; otherwise restart it"}
}

func searchRank(m *procfs.Mapping) int {
	file := path.Base(m.Path)
	switch {
	case m.Kind == procfs.KindVDSO:
		return 0
	case strings.HasPrefix(file, "libc.so"), strings.HasPrefix(file, "libc-"), strings.HasPrefix(file, "ld-musl"):
		return 1
	case strings.HasPrefix(file, "ld-linux"):
		return 2
	}
	return 3
}

// without returns the parts of r that none of the ranges covers.
func without(r Range, avoid []Range) []Range {
	parts := []Range{r}
	for _, a := range avoid {
		var left []Range
		for _, p := range parts {
			if a.End <= p.Start || a.Start >= p.End {
				left = append(left, p)
				continue
			}
			if p.Start < a.Start {
				left = append(left, Range{p.Start, a.Start})
			}
			if a.End < p.End {
				left = append(left, Range{a.End, p.End})
			}
		}
		parts = left
	}
	return parts
}
