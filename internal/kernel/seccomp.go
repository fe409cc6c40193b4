package kernel

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// SuspendSeccomp is an option of ptrace(2): the filters of the tracee are not asked as long
// as it is traced so. It needs CAP_SYS_ADMIN, and a tracer without a filter.
const SuspendSeccomp = unix.PTRACE_O_SUSPEND_SECCOMP

const ptraceSeccompGetMetadata = 0x420d // linux/ptrace.h

// SeccompFilterFlags reads the flags with which the index-th seccomp filter of a stopped
// thread was set, the newest first: SECCOMP_FILTER_FLAG_LOG alone is told.
func SeccompFilterFlags(tid, index int) (uint64, error) {
	metadata := struct{ index, flags uint64 }{index: uint64(index)}
	if err := ptrace(ptraceSeccompGetMetadata, tid, unsafe.Sizeof(metadata), uintptr(unsafe.Pointer(&metadata))); err != nil {
		return 0, ptraceError("read flags of a seccomp filter of", tid, err)
	}
	return metadata.flags, nil
}

// SeccompFilters reads all seccomp filters of a stopped thread, the oldest first, with
// their flags. A thread without one has none.
func SeccompFilters(tid int) (filters [][]FilterInstruction, flags []uint64, err error) {
	for {
		filter, err := SeccompFilter(tid, len(filters))
		switch {
		case errors.Is(err, unix.ENOENT), len(filters) == 0 && errors.Is(err, unix.EINVAL): // it has no more, or none
			for i, j := 0, len(filters)-1; i < j; i, j = i+1, j-1 {
				filters[i], filters[j] = filters[j], filters[i]
				flags[i], flags[j] = flags[j], flags[i]
			}
			return filters, flags, nil
		case err != nil:
			return nil, nil, err
		}
		set, err := SeccompFilterFlags(tid, len(filters))
		if err != nil {
			return nil, nil, err
		}
		filters, flags = append(filters, filter), append(flags, set)
	}
}
