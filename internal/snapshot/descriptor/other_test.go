package descriptor

import (
	"encoding/binary"
	"syscall"
	"testing"

	"github.com/virtualizing-os/vos/internal/api"
)

// TestOtherKindsAreRefused: what the kernel keeps for a descriptor of these kinds can't be
// read.
func TestOtherKindsAreRefused(t *testing.T) {
	const bpf, perfEventOpen, fanotifyInit, userfaultfd, ioURingSetup, pidfdOpen = 321, 298, 300, 323, 425, 434
	for name, test := range map[string]struct {
		open func(h *held) (fd int)
		want api.Code
	}{
		"perf": {func(h *held) int {
			const software, dummy, size = 1, 9, 112
			attributes := make([]byte, size)
			binary.LittleEndian.PutUint32(attributes, software)
			binary.LittleEndian.PutUint32(attributes[4:], size)
			binary.LittleEndian.PutUint64(attributes[8:], dummy)
			return h.call(perfEventOpen, attributes, 0, -1, -1, 0)
		}, codeKind},
		"fanotify":    {func(h *held) int { return h.call(fanotifyInit, 0, syscall.O_RDONLY) }, codeKind},
		"userfaultfd": {func(h *held) int { return h.call(userfaultfd, 0) }, codeKind},
		"io_uring":    {func(h *held) int { return h.call(ioURingSetup, 1, make([]byte, 120)) }, codeKind},
		"bpf": {func(h *held) int {
			const create, array = 0, 2
			attributes := make([]byte, 72)
			for i, v := range []uint32{array, 4, 4, 1} { // of one value
				binary.LittleEndian.PutUint32(attributes[4*i:], v)
			}
			return h.call(bpf, create, attributes, len(attributes))
		}, codeKind},
		"a socket of packets": {func(h *held) int { return h.call(syscall.SYS_SOCKET, syscall.AF_PACKET, syscall.SOCK_DGRAM, 0) }, codeKind},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHeld(t)
			fd := test.open(h)
			if all := refused(t, h, test.want); len(all) == 1 && (all[0].Subject != subject(h.pid, fd) || all[0].Remedy == "") {
				t.Errorf("%+v", all[0])
			}
		})
	}
}
