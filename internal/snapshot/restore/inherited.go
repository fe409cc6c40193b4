package restore

import (
	"encoding/binary"
	"slices"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// An inherited is what the threads of a process that is built have of the vos that builds
// it, all of them the same. What an image has alike need not be set: of a program with
// many threads that would take most of the time.
type inherited struct {
	credentials image.Credentials
	persona     uint32
	slack       time.Duration
	affinity    []uint64
	scheduler   image.Scheduler
}

// Operations of prctl(2) that ask.
const (
	prctlBoundingRead   = 23
	prctlGetSecureBits  = 27
	prctlGetSlack       = 30
	prctlAmbientIsSet   = 1
	askPersonality      = 0xffffffff
	noID                = ^uint64(0) // setfsuid(2) of it changes nothing, and tells
	idBytes             = 4
	capabilityDataBytes = 24
)

// inherited asks the main thread, by its own calls: what it says is in terms of its own
// user namespace.
func (p *process) inherited() (h inherited, err error) {
	b := p.batch()
	header := binary.LittleEndian.AppendUint32(nil, capabilityVersion3)
	sets, err := b.place(append(header, make([]byte, 4+capabilityDataBytes)...))
	if err != nil {
		return h, err
	}
	ids, err := b.place(make([]byte, 6*idBytes))
	if err != nil {
		return h, err
	}
	const prctl = syscall.SYS_PRCTL
	b.add("read capabilities", syscall.SYS_CAPGET, sets, sets+8)
	b.add("read user ids", syscall.SYS_GETRESUID, ids, ids+idBytes, ids+2*idBytes)
	b.add("read group ids", syscall.SYS_GETRESGID, ids+3*idBytes, ids+4*idBytes, ids+5*idBytes)
	answers := len(b.calls)
	b.add("read the user id for files", sysSetfsuid, noID)
	b.add("read the group id for files", sysSetfsgid, noID)
	b.add("count groups", syscall.SYS_GETGROUPS, 0, 0)
	b.add("read securebits", prctl, prctlGetSecureBits)
	b.add("read the timer slack", prctl, prctlGetSlack)
	b.add("read the personality", syscall.SYS_PERSONALITY, askPersonality)
	bits := len(b.calls)
	for n := range uint64(capabilities) { // EINVAL where there is no such capability
		b.try(prctl, prctlBoundingRead, n)
		b.try(prctl, prctlAmbient, prctlAmbientIsSet, n, 0, 0)
	}
	results, err := b.run()
	if err != nil {
		return h, err
	}
	var data [capabilityDataBytes]byte
	if err := p.Read(sets+8, data[:]); err != nil {
		return h, err
	}
	word := func(i int) uint64 { return uint64(binary.LittleEndian.Uint32(data[4*i:])) }
	c := &h.credentials
	c.Effective, c.Permitted, c.Inheritable = word(0)|word(3)<<32, word(1)|word(4)<<32, word(2)|word(5)<<32
	for n := range capabilities {
		if results[bits+2*n] == 1 {
			c.Bounding |= 1 << n
		}
		if results[bits+2*n+1] == 1 {
			c.Ambient |= 1 << n
		}
	}
	if err := p.Read(ids, data[:]); err != nil {
		return h, err
	}
	for i := range 3 {
		c.UID[i], c.GID[i] = uint32(word(i)), uint32(word(3+i))
	}
	c.UID[3], c.GID[3] = uint32(results[answers]), uint32(results[answers+1])
	c.SecureBits, h.slack, h.persona = uint32(results[answers+3]), time.Duration(results[answers+4]), uint32(results[answers+5])
	if c.Groups, err = p.groups(results[answers+2]); err != nil {
		return h, err
	}
	if h.affinity, err = kernel.Affinity(p.main.tid); err != nil {
		return h, err
	}
	a, err := kernel.ThreadAttributes(p.main.tid)
	h.scheduler = image.Scheduler{Policy: a.Policy, Flags: a.Flags, Nice: a.Nice, Priority: a.Priority,
		Runtime: a.Runtime, Deadline: a.Deadline, Period: a.Period}
	return h, err
}

// groups reads the supplementary groups, of which there are n.
func (p *process) groups(n uint64) ([]uint32, error) {
	if n == 0 {
		return nil, nil
	}
	b := p.batch()
	text := make([]byte, n*idBytes)
	at, err := b.place(text)
	if err != nil {
		return nil, err
	}
	b.add("read groups", syscall.SYS_GETGROUPS, n, at)
	if _, err := b.run(); err != nil {
		return nil, err
	}
	if err := p.Read(at, text); err != nil {
		return nil, err
	}
	groups := make([]uint32, n)
	for i := range groups {
		groups[i] = binary.LittleEndian.Uint32(text[i*idBytes:])
	}
	return groups, nil
}

// sameCredentials reports whether two are the same, in whatever order of groups.
func sameCredentials(a, b image.Credentials) bool {
	sorted := func(groups []uint32) []uint32 { return slices.Sorted(slices.Values(groups)) }
	return a.UID == b.UID && a.GID == b.GID && slices.Equal(sorted(a.Groups), sorted(b.Groups)) &&
		a.Inheritable == b.Inheritable && a.Permitted == b.Permitted && a.Effective == b.Effective &&
		a.Bounding == b.Bounding && a.Ambient == b.Ambient && a.SecureBits == b.SecureBits
}
