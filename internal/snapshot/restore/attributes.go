package restore

import (
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/virtualizing-os/vos/internal/image"
)

// Operations of prctl(2) that package syscall does not name.
const (
	prctlMM            = 35
	prctlMMMap         = 14
	prctlSubreaper     = 36
	prctlNoNewPrivs    = 38
	prctlSlack         = 29
	prctlAmbient       = 47
	prctlAmbientRaise  = 2
	prctlAmbientClear  = 4
	prctlTimerIDs      = 77 // PR_TIMER_CREATE_RESTORE_IDS
	prctlBoundingDrop  = 24
	prctlSecureBits    = 28
	prctlName          = 15
	prctlDumpable      = 4
	prctlDeathSignal   = 1
	noSetUIDFixup      = 1 << 2
	capabilityVersion3 = 0x20080522
)

// setLayout tells the kernel what it knows of the address space beside its mappings,
// with the executable that is open in the process.
func (p *process) setLayout(l *image.Layout, executable uint64) error {
	b := p.batch()
	var vector []byte
	for _, v := range l.Auxv {
		vector = binary.LittleEndian.AppendUint64(vector, v)
	}
	auxv, err := b.place(vector)
	if err != nil {
		return err
	}
	var m []byte // struct prctl_mm_map
	for _, v := range []uint64{l.StartCode, l.EndCode, l.StartData, l.EndData, l.StartBreak, l.Break, l.StartStack,
		l.ArgStart, l.ArgEnd, l.EnvStart, l.EnvEnd, auxv} {
		m = binary.LittleEndian.AppendUint64(m, v)
	}
	m = binary.LittleEndian.AppendUint32(m, uint32(len(vector)))
	m = binary.LittleEndian.AppendUint32(m, uint32(executable))
	at, err := p.Place(m)
	if err != nil {
		return err
	}
	b.add("set the layout of its memory and its executable", syscall.SYS_PRCTL, prctlMM, prctlMMMap, at, uint64(len(m)), 0)
	_, err = b.run()
	return err
}

// enter changes to the root and working directories, which are open in the process, and
// sets what belongs to it as a whole.
func (p *process) enter(of *image.Process, root, directory uint64) error {
	b := p.batch()
	dot, err := b.place([]byte(".\x00"))
	if err != nil {
		return err
	}
	if of.Root != "" && of.Root != "/" {
		b.add("enter the root directory "+of.Root, syscall.SYS_FCHDIR, root)
		b.add("change the root directory to "+of.Root, syscall.SYS_CHROOT, dot)
	}
	b.add("enter the directory "+of.Directory, syscall.SYS_FCHDIR, directory)
	b.add("set the umask", syscall.SYS_UMASK, uint64(of.Umask))
	if of.ChildSubreaper {
		b.add("become a subreaper", syscall.SYS_PRCTL, prctlSubreaper, 1)
	}
	_, err = b.run()
	return err
}

// setLimits sets the limits that differ: raising one takes a right that vOS may lack.
func (p *process) setLimits(limits []image.Limit) error {
	b := p.batch()
	at, err := b.place(make([]byte, limitBytes*len(limits)))
	if err != nil {
		return err
	}
	for i := range limits {
		b.add("read the limits", sysPrlimit64, 0, uint64(i), 0, at+uint64(i*limitBytes))
	}
	if _, err := b.run(); err != nil {
		return err
	}
	now := make([]byte, limitBytes*len(limits))
	if err := p.Read(at, now); err != nil {
		return err
	}
	for i, l := range limits {
		if decodeLimit(now[i*limitBytes:]) == l {
			continue
		}
		if err := b.addLimit(i, l); err != nil {
			return err
		}
	}
	_, err = b.run()
	return err
}

// limit reads one limit.
func (p *process) limit(which int) (l image.Limit, err error) {
	b := p.batch()
	at, err := b.place(make([]byte, limitBytes))
	if err != nil {
		return l, err
	}
	b.add("read the limits", sysPrlimit64, 0, uint64(which), 0, at)
	if _, err := b.run(); err != nil {
		return l, err
	}
	var now [limitBytes]byte
	err = p.Read(at, now[:])
	return decodeLimit(now[:]), err
}

func (b *batch) addLimit(which int, l image.Limit) error {
	at, err := b.place(binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, l.Soft), l.Hard))
	if err != nil {
		return err
	}
	b.add(fmt.Sprintf("set limit %d to %d, %d", which, int64(l.Soft), int64(l.Hard)), sysPrlimit64, 0, uint64(which), at, 0)
	return nil
}

func decodeLimit(b []byte) image.Limit {
	return image.Limit{Soft: binary.LittleEndian.Uint64(b), Hard: binary.LittleEndian.Uint64(b[8:])}
}

const limitBytes = 16 // struct rlimit64

// adopt makes the process the nearest subreaper of those that it bears.
func (p *process) adopt() error {
	b := p.batch()
	b.add("become a subreaper", syscall.SYS_PRCTL, prctlSubreaper, 1)
	_, err := b.run()
	return err
}

// setOOMScore sets how willingly the kernel kills the process for memory.
func (p *process) setOOMScore(score int) error {
	path := fmt.Sprintf("/proc/%d/oom_score_adj", p.pid)
	now, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if strings.TrimSpace(string(now)) == strconv.Itoa(score) {
		return nil
	}
	return os.WriteFile(path, []byte(strconv.Itoa(score)), 0)
}
