package menu

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/module"
	"github.com/virtualizing-os/vos/internal/procfs"
)

const memfd = "/memfd:" + module.MenuName

// A mapped is the menu that is in a process.
type mapped struct {
	header
	base uint64
	code []byte // all before the state page
}

// find looks for the menu in a process. What an attach left that was killed while
// it mapped it comes as leftover: nothing leads there.
func find(p *module.Process) (m *mapped, leftover []procfs.PageRange, err error) {
	all, err := p.Maps()
	if err != nil {
		return nil, nil, err
	}
	var spans []procfs.PageRange
	var writable []bool
	for i := range all {
		if all[i].Inode == 0 || all[i].Path != memfd {
			continue
		}
		// Parts of one menu touch; a code part begins a new one.
		if n := len(spans); n > 0 && spans[n-1].End == all[i].Start && !writable[n-1] && all[i].Perms&procfs.Write != 0 {
			spans[n-1].End, writable[n-1] = all[i].End, true
			continue
		}
		spans = append(spans, procfs.PageRange{Start: all[i].Start, End: all[i].End})
		writable = append(writable, false)
	}
	for i, span := range spans {
		if !writable[i] {
			leftover = append(leftover, span)
			continue
		}
		if m != nil {
			return nil, nil, unknown(p, errors.New("there are two of them"))
		}
		if m, err = read(p, span); err != nil {
			return nil, nil, err
		}
	}
	return m, leftover, nil
}

func read(p *module.Process, span procfs.PageRange) (*mapped, error) {
	size := span.End - span.Start
	if size > maxSize || size <= procfs.PageSize {
		return nil, unknown(p, fmt.Errorf("it has %d bytes: %w", size, errNotMenu))
	}
	memory, err := p.OpenMemory()
	if err != nil {
		return nil, err
	}
	defer memory.Close()
	code := make([]byte, size-procfs.PageSize)
	if _, err := memory.ReadAt(code, int64(span.Start)); err != nil {
		return nil, err
	}
	h, err := readHeader(code, size)
	if err != nil {
		return nil, unknown(p, err)
	}
	return &mapped{header: h, base: span.Start, code: code}, nil
}

func unknown(p *module.Process, err error) error {
	return api.Refusal{Code: codeMenuUnknown, Subject: fmt.Sprintf("process %d", p.PID()),
		Detail: "it has a menu of vOS that can't be made sense of: " + err.Error(), Remedy: "use the vos that put it there, or restart the program"}
}

// readState reads the words of the state page.
func (m *mapped) readState(memory *procfs.Memory) (s state, err error) {
	b := make([]byte, stateWords)
	if _, err := memory.ReadAt(b, int64(m.base+m.state)); err != nil {
		return s, err
	}
	for i := range s {
		s[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	return s, nil
}

// leftOpen returns the descriptors of a menu that an attach left that was killed.
func leftOpen(p *module.Process) ([]int, error) {
	descriptors, err := p.Descriptors()
	if err != nil {
		return nil, err
	}
	var left []int
	for fd, link := range descriptors {
		if strings.TrimSuffix(link, " (deleted)") == memfd {
			left = append(left, fd)
		}
	}
	return left, nil
}
