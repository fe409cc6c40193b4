package restore

import (
	"encoding/binary"
	"fmt"
	"syscall"

	"github.com/virtualizing-os/vos/internal/image"
)

const (
	sysSetfsuid  = syscall.SYS_SETFSUID
	sysSetfsgid  = syscall.SYS_SETFSGID
	capabilities = 64
)

// addCredentials adds the calls by which one thread takes on ids and privileges. None
// that needs a privilege can follow.
//
// Ids change while SECBIT_NO_SETUID_FIXUP keeps the capabilities; then what may be
// inherited is set, as it must lie in the bounding set that is cut down next, the
// ambient capabilities, which must lie in both, the securebits, and last the capabilities
// themselves.
func (b *batch) addCredentials(c, own *image.Credentials) error {
	groups := make([]byte, 0, 4*len(c.Groups))
	for _, g := range c.Groups {
		groups = binary.LittleEndian.AppendUint32(groups, g)
	}
	at := uint64(0)
	if len(groups) > 0 {
		var err error
		if at, err = b.place(groups); err != nil {
			return err
		}
	}
	const prctl = syscall.SYS_PRCTL
	b.add("keep capabilities", prctl, prctlSecureBits, noSetUIDFixup)
	b.add("set groups", syscall.SYS_SETGROUPS, uint64(len(c.Groups)), at)
	b.add("set group ids", syscall.SYS_SETRESGID, uint64(c.GID[0]), uint64(c.GID[1]), uint64(c.GID[2]))
	b.add("set the group id for files", sysSetfsgid, uint64(c.GID[3]))
	b.add("set user ids", syscall.SYS_SETRESUID, uint64(c.UID[0]), uint64(c.UID[1]), uint64(c.UID[2]))
	b.add("set the user id for files", sysSetfsuid, uint64(c.UID[3]))
	if c.Inheritable|own.Inheritable != 0 {
		if err := b.addCapabilities(capabilitySets{own.Permitted, own.Permitted, c.Inheritable}); err != nil {
			return err
		}
	}
	for n := range uint64(capabilities) {
		if c.Bounding>>n&1 == 0 {
			b.try(prctl, prctlBoundingDrop, n) // EINVAL where there is no such capability
		}
	}
	b.try(prctl, prctlAmbient, prctlAmbientClear, 0, 0, 0)
	for n := range uint64(capabilities) {
		if c.Ambient>>n&1 != 0 {
			b.add(fmt.Sprintf("raise ambient capability %d", n), prctl, prctlAmbient, prctlAmbientRaise, n, 0, 0)
		}
	}
	b.add("set securebits", prctl, prctlSecureBits, uint64(c.SecureBits))
	return b.addCapabilities(capabilitySets{c.Permitted, c.Effective, c.Inheritable})
}

type capabilitySets struct{ permitted, effective, inheritable uint64 }

// addCapabilities adds capset(2).
func (b *batch) addCapabilities(c capabilitySets) error {
	data := binary.LittleEndian.AppendUint32(nil, capabilityVersion3)
	data = binary.LittleEndian.AppendUint32(data, 0) // of the thread itself
	for shift := 0; shift < capabilities; shift += 32 {
		for _, set := range []uint64{c.effective, c.permitted, c.inheritable} {
			data = binary.LittleEndian.AppendUint32(data, uint32(set>>shift))
		}
	}
	at, err := b.place(data)
	if err != nil {
		return err
	}
	b.add("set capabilities", syscall.SYS_CAPSET, at, at+8)
	return nil
}
