package dump

import (
	"encoding/binary"
	"fmt"
	"reflect"
	"slices"

	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

const (
	filterReturn   = 0x06       // BPF_RET | BPF_K
	filterAction   = 0xffff0000 // SECCOMP_RET_ACTION_FULL
	filterNotify   = 0x7fc00000 // SECCOMP_RET_USER_NOTIF
	filterFlagsLog = 0x2        // SECCOMP_FILTER_FLAG_LOG
)

// filters writes the seccomp filters of a stopped thread down, each once for all threads.
func (c *commit) filters(t *image.Thread, b *image.Process) error {
	subject := fmt.Sprintf("thread %d of process %d", t.TID, b.PID)
	all, flags, err := kernel.SeccompFilters(t.TID)
	if err != nil {
		return refused(codeSeccomp, subject, fmt.Sprintf("its seccomp filters can't be read: %v", err), "run vos as root, outside of a container")
	}
	for i, filter := range all {
		f := image.Filter{Log: flags[i]&filterFlagsLog != 0}
		for _, in := range filter {
			if in.Code == filterReturn && in.K&filterAction == filterNotify {
				return refused(codeSeccomp, subject, "its seccomp filter asks another process (SECCOMP_RET_USER_NOTIF)", "run it without that filter")
			}
			f.Code = binary.LittleEndian.AppendUint16(f.Code, in.Code)
			f.Code = append(f.Code, in.JT, in.JF)
			f.Code = binary.LittleEndian.AppendUint32(f.Code, in.K)
		}
		n := slices.IndexFunc(b.Filters, func(other image.Filter) bool { return reflect.DeepEqual(other, f) })
		if n < 0 {
			n = len(b.Filters)
			b.Filters = append(b.Filters, f)
		}
		t.Filters = append(t.Filters, n)
	}
	return nil
}
