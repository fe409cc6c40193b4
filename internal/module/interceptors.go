package module

import (
	"fmt"

	"github.com/virtualizing-os/vos/internal/intercept"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// isInterceptor reports whether a mapping is of an interceptor: of its table or code.
func isInterceptor(m *procfs.Mapping) bool { return m.Inode != 0 && m.Path == memfd+intercept.Name }

// Interceptors returns what counts calls in the process, in the order of addresses.
func (p *Process) Interceptors() []*intercept.Interceptor { return p.interceptors }

// findInterceptors reads the interceptors of the process. What is mapped of one that
// never became whole is left over: nothing leads there.
func (p *Process) findInterceptors() {
	for i := 0; i < len(p.maps); i++ {
		if !isInterceptor(&p.maps[i]) {
			continue
		}
		start, end, readable := p.maps[i].Start, p.maps[i].End, p.maps[i].Perms&procfs.Read != 0
		for i+1 < len(p.maps) && isInterceptor(&p.maps[i+1]) && p.maps[i+1].Start == end && p.maps[i+1].Offset != 0 {
			i, end = i+1, p.maps[i+1].End
		}
		if !readable { // reserved, and never filled
			p.leftover = append(p.leftover, procfs.PageRange{Start: start, End: end})
			continue
		}
		memory, err := p.openMemory()
		if err != nil {
			return // who may not look learns nothing of it
		}
		switch in, err := intercept.Read(memory, start); {
		case err != nil:
			p.interceptorErrors = append(p.interceptorErrors, fmt.Errorf("the interceptor at 0x%x: %w", start, err))
		case p.whole(in):
			p.interceptors = append(p.interceptors, in)
		default:
			p.leftover = append(p.leftover, procfs.PageRange{Start: start, End: end})
		}
	}
}

// whole reports whether all parts of an interceptor are mapped as they should be.
func (p *Process) whole(in *intercept.Interceptor) bool {
	for _, part := range in.Parts() {
		at := part.Start
		for i := range p.maps {
			m := &p.maps[i]
			if !m.Contains(at) {
				continue
			}
			var right bool
			switch part.Protection {
			case intercept.Readable:
				right = isInterceptor(m) && m.Perms&(procfs.Read|procfs.Write|procfs.Exec) == procfs.Read
			case intercept.Executable:
				right = isInterceptor(m) && m.Perms&(procfs.Read|procfs.Write|procfs.Exec) == procfs.Read|procfs.Exec
			case intercept.Writable:
				right = m.Inode == 0 && m.Perms&(procfs.Read|procfs.Write|procfs.Exec) == procfs.Read|procfs.Write
			}
			if !right {
				return false
			}
			if at = m.End; at >= part.Start+part.Size {
				break
			}
		}
		if at < part.Start+part.Size {
			return false
		}
	}
	return true
}

// behindInterceptor returns the function that an interceptor's stub leads to, and
// any other address as it is.
func (p *Process) behindInterceptor(address uint64) uint64 {
	for range len(p.interceptors) + 1 { // one may lead to another, at most through all
		next := address
		for _, in := range p.interceptors {
			if n, ok := in.Find(address); ok && in.Stub(n) == address {
				next = in.Function(n).Target
			}
		}
		if next == address {
			break
		}
		address = next
	}
	return address
}
