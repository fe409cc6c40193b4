package restore

import (
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// A memoryImage is an image whose pages are in memory.
type memoryImage struct {
	image image.Image
	pages []byte
}

func (m *memoryImage) Image() *image.Image { return &m.image }

func (m *memoryImage) ReadPages(at image.Place, b []byte) error {
	if at.Up != 0 || at.Offset+uint64(len(b)) > uint64(len(m.pages)) {
		return fmt.Errorf("pages at %d are not in the image", at.Offset)
	}
	copy(b, m.pages[at.Offset:])
	return nil
}

// dump writes down a program of glibc, by what ptrace and /proc tell, and kills it. It
// knows no handlers, pending signals and timers: it is for programs that have none.
func dump(t testing.TB, pid int) *memoryImage {
	t.Helper()
	m := &memoryImage{}
	var err error
	kernel.OnOwnThread(func() { err = m.dump(pid) })
	if err != nil {
		t.Fatalf("dump process %d: %v", pid, err)
	}
	return m
}

func (m *memoryImage) dump(pid int) (err error) {
	process, err := procfs.Open(pid)
	if err != nil {
		return err
	}
	defer process.Close()
	waiter, err := kernel.NewWaiter()
	if err != nil {
		return err
	}
	defer waiter.Close()
	tids, err := process.Threads()
	if err != nil {
		return err
	}
	of := image.Process{PID: pid, Group: pid, Session: pid, Dumpable: 1}
	for _, tid := range tids {
		if err := kernel.Seize(tid, kernel.ExitKill); err != nil {
			return err
		}
		if err := kernel.Interrupt(tid); err != nil {
			return err
		}
	}
	for range tids {
		if _, _, err := waiter.Wait(time.Now().Add(time.Second)); err != nil {
			return err
		}
	}
	slices.SortFunc(tids, func(a, b int) int {
		if a == pid || b != pid && a < b {
			return -1
		}
		return 1
	})
	for _, tid := range tids {
		thread, err := dumpThread(tid)
		if err != nil {
			return err
		}
		of.Threads = append(of.Threads, thread)
	}
	if err := m.dumpMemory(process, &of); err != nil {
		return err
	}
	if err := dumpAttributes(process, &of); err != nil {
		return err
	}
	boot, err := thisMachine()
	if err != nil {
		return err
	}
	m.image = image.Image{Files: []image.File{{Kind: image.Inherited}, {Kind: image.Inherited}, {Kind: image.Inherited}}, Machine: image.Machine{BootID: boot.bootID, Kernel: boot.kernel}, Processes: []image.Process{of}}
	return syscall.Kill(pid, syscall.SIGKILL)
}

func dumpThread(tid int) (t image.Thread, err error) {
	t.TID = tid
	var r kernel.Registers
	if err := kernel.GetRegisters(tid, &r); err != nil {
		return t, err
	}
	const restartSys, restartNoIntr, restartNoHand, restart = 512, 513, 514, 516
	if n := int64(r.OrigRAX); n >= 0 {
		switch -int64(r.RAX) {
		case restart:
			left := time.Millisecond
			if n == syscall.SYS_RESTART_SYSCALL {
				// The number of the call that goes on stands before the instruction: mov $n, %eax.
				var code [7]byte
				if err := kernel.ReadMemory(tid, code[:], []kernel.RemoteRange{{Address: r.RIP - 7, Length: 7}}); err != nil {
					return t, err
				}
				if code[0] != 0xb8 {
					return t, fmt.Errorf("thread %d goes on with an unknown system call", tid)
				}
				n = int64(binary.LittleEndian.Uint32(code[1:]))
				r.OrigRAX = uint64(n)
			}
			switch {
			case n == syscall.SYS_POLL && int32(r.RDX) < 0: // for ever
			case n == syscall.SYS_FUTEX:
				return t, fmt.Errorf("thread %d waits in system call %d for a time", tid, n)
			default:
				t.Restart = &image.Restart{Number: r.OrigRAX, Args: [6]uint64{r.RDI, r.RSI, r.RDX, r.R10, r.R8, r.R9}, Left: left}
			}
			fallthrough
		case restartSys, restartNoIntr, restartNoHand, int64(syscall.EINTR):
			r.RAX, r.RIP = r.OrigRAX, r.RIP-2
		}
	}
	r.OrigRAX = outsideCall
	t.Registers = image.Registers{
		R15: r.R15, R14: r.R14, R13: r.R13, R12: r.R12, RBP: r.RBP, RBX: r.RBX, R11: r.R11, R10: r.R10, R9: r.R9, R8: r.R8,
		RAX: r.RAX, RCX: r.RCX, RDX: r.RDX, RSI: r.RSI, RDI: r.RDI, OrigRAX: r.OrigRAX, RIP: r.RIP, CS: r.CS, Flags: r.Flags,
		RSP: r.RSP, SS: r.SS, FSBase: r.FSBase, GSBase: r.GSBase, DS: r.DS, ES: r.ES, FS: r.FS, GS: r.GS,
	}
	t.XState = make([]byte, maxXState)
	n, err := kernel.GetXState(tid, t.XState)
	if err != nil {
		return t, err
	}
	t.XState = t.XState[:n]
	if t.Mask, err = kernel.GetSignalMask(tid); err != nil {
		return t, err
	}
	rseq, err := kernel.GetRseqConfiguration(tid)
	if err != nil {
		return t, err
	}
	if rseq.Pointer != 0 {
		t.Rseq = &image.Rseq{Address: rseq.Pointer, Size: rseq.Size, Signature: rseq.Signature}
	}
	if _, _, errno := syscall.RawSyscall(syscall.SYS_GET_ROBUST_LIST, uintptr(tid),
		uintptr(unsafe.Pointer(&t.Robust.Head)), uintptr(unsafe.Pointer(&t.Robust.Length))); errno != 0 {
		return t, errno
	}
	if t.Robust.Head != 0 {
		t.ClearTID = t.Robust.Head - 0x10 // of glibc's struct pthread
	}
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", tid))
	if err != nil {
		return t, err
	}
	t.Name = strings.TrimSuffix(string(name), "\n")
	t.AltStack.Flags = stackDisable
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(tid, &set); err != nil {
		return t, err
	}
	t.Affinity = []uint64{uint64(set[0])}
	attr, err := unix.SchedGetAttr(tid, 0)
	if err != nil {
		return t, err
	}
	t.Scheduler = image.Scheduler{Policy: attr.Policy, Flags: attr.Flags, Nice: attr.Nice, Priority: attr.Priority}
	return t, nil
}

func (m *memoryImage) dumpMemory(process *procfs.Process, of *image.Process) error {
	maps, err := process.Maps()
	if err != nil {
		return err
	}
	memory, err := process.OpenMemory()
	if err != nil {
		return err
	}
	defer memory.Close()
	pagemap, err := process.OpenPagemap()
	if err != nil {
		return err
	}
	defer pagemap.Close()
	for i := range maps {
		v := &maps[i]
		if v.Kind == procfs.KindVsyscall {
			continue
		}
		a := image.Mapping{Start: v.Start, End: v.End, Protection: uint32(v.Perms &^ procfs.Shared), Offset: v.Offset, Flags: syscall.MAP_PRIVATE}
		switch v.Kind {
		case procfs.KindVDSO, procfs.KindVVar:
			a.Kind = image.VDSO
		case procfs.KindFile:
			a.Kind = image.Private
			if v.Perms&procfs.Shared != 0 {
				a.Kind = image.SharedMap
			}
			if a.File, err = fileRef(v.Path); err != nil {
				return err
			}
		default:
			a.Kind = image.Anonymous
			if v.Kind == procfs.KindStack {
				a.Flags |= mapGrowsDown
			}
			if v.Perms&procfs.Shared != 0 {
				return fmt.Errorf("%v is shared", v)
			}
		}
		var ranges []procfs.PageRange
		switch a.Kind {
		case image.Private:
			ranges, err = pagemap.PrivatePages(nil, v.Start, v.End)
		case image.Anonymous:
			ranges, err = pagemap.TouchedPages(nil, v.Start, v.End)
		}
		if err != nil {
			return err
		}
		for _, r := range ranges {
			at := uint64(len(m.pages))
			m.pages = append(m.pages, make([]byte, r.End-r.Start)...)
			if _, err := memory.ReadAt(m.pages[at:], int64(r.Start)); err != nil {
				return err
			}
			a.Pages = append(a.Pages, image.Run{Start: r.Start, Count: (r.End - r.Start) / pageSize, Place: image.Place{Offset: at}})
		}
		of.Mappings = append(of.Mappings, a)
	}
	return nil
}

func fileRef(path string) (*image.FileRef, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	stat, err := kernel.StatFile(file)
	if err != nil {
		return nil, err
	}
	return &image.FileRef{Path: path, Device: stat.Device, Inode: stat.Inode, Size: stat.Size, Modified: stat.Modified}, nil
}

func dumpAttributes(process *procfs.Process, of *image.Process) error {
	link := func(name string) (string, error) { return os.Readlink(fmt.Sprintf("/proc/%d/%s", of.PID, name)) }
	path, err := link("exe")
	if err != nil {
		return err
	}
	executable, err := fileRef(path)
	if err != nil {
		return err
	}
	of.Executable = *executable
	if of.Directory, err = link("cwd"); err != nil {
		return err
	}
	if of.Root, err = link("root"); err != nil {
		return err
	}
	of.Umask = 0o22
	for n := range 16 {
		var limit unix.Rlimit
		if err := unix.Prlimit(of.PID, n, nil, &limit); err != nil {
			return err
		}
		of.Limits = append(of.Limits, image.Limit{Soft: limit.Cur, Hard: limit.Max})
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", of.PID))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(line, ":")
		set, _ := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		switch key {
		case "CapInh":
			of.Credentials.Inheritable = set
		case "CapPrm":
			of.Credentials.Permitted = set
		case "CapEff":
			of.Credentials.Effective = set
		case "CapBnd":
			of.Credentials.Bounding = set
		}
	}
	auxv, err := os.ReadFile(fmt.Sprintf("/proc/%d/auxv", of.PID))
	if err != nil {
		return err
	}
	for ; len(auxv) >= 8; auxv = auxv[8:] {
		of.Layout.Auxv = append(of.Layout.Auxv, binary.LittleEndian.Uint64(auxv))
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", of.PID))
	if err != nil {
		return err
	}
	fields := strings.Fields(string(stat[strings.LastIndex(string(stat), ")")+1:]))
	field := func(n int) uint64 {
		v, _ := strconv.ParseUint(fields[n-3], 10, 64)
		return v
	}
	l := &of.Layout
	l.StartCode, l.EndCode, l.StartStack = field(26), field(27), field(28)
	l.StartData, l.EndData, l.StartBreak = field(45), field(46), field(47)
	l.ArgStart, l.ArgEnd, l.EnvStart, l.EnvEnd = field(48), field(49), field(50), field(51)
	l.Break = l.StartBreak
	maps, err := process.Maps()
	if err != nil {
		return err
	}
	for i := range maps {
		if maps[i].Kind == procfs.KindHeap {
			l.Break = max(l.Break, maps[i].End)
		}
	}
	for n := range 3 {
		of.Descriptors = append(of.Descriptors, image.Descriptor{Number: n, File: n})
	}
	return nil
}
