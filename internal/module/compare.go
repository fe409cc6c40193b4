package module

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// A Comparison is what comparing one module of one process with its file
// showed.
type Comparison struct {
	Module *Module
	Pages  int    // compared
	Words  int    // compared
	Runs   []Run  // in constant segments, by ascending address
	Bad    []Word // relocated words that are not what they should be

	// Unchecked is what could not be compared of a module that has no obstacles.
	Unchecked []api.Refusal
}

// A Run is bytes of a constant segment that differ from the file.
type Run struct {
	Address  uint64 // in the process
	Found    []byte
	Expected []byte
	Kind     string // api.Kind…
}

// End is the address behind the run.
func (r Run) End() uint64 { return r.Address + uint64(len(r.Found)) }

// Corrupt reports whether anything was found that should not be.
func (c *Comparison) Corrupt() bool {
	if len(c.Bad) > 0 {
		return true
	}
	for _, r := range c.Runs {
		if r.Kind == api.KindCorruption {
			return true
		}
	}
	return false
}

// maxRuns bounds what is kept of one module: a module of which nothing is right
// needs no list of it.
const maxRuns = 4096

// Compare compares a module with its file. It stops nobody. With full it looks
// at every page that is present, otherwise at those that are no longer the
// file's. Without obstacles an error means that the process is gone, or that
// its memory or the file could not be read.
func (p *Process) Compare(ctx context.Context, m *Module, full bool) (*Comparison, error) {
	c := &Comparison{Module: m}
	if m.Object == nil || len(m.Obstacles) > 0 {
		return c, nil
	}
	if err := p.compareText(ctx, c, full); err != nil {
		return nil, fmt.Errorf("compare text of %s in process %d: %w", m.Name, p.PID(), err)
	}
	if m.Kind == VDSO {
		return c, nil
	}
	if m.Kind == Executable {
		for _, err := range p.vinErrors {
			c.Unchecked = append(c.Unchecked, api.Refusal{Code: codeVIN, Subject: "vIN", Detail: err.Error(), Remedy: restart})
		}
	}
	if err := p.compareWords(c); err != nil {
		return nil, fmt.Errorf("compare relocated words of %s in process %d: %w", m.Name, p.PID(), err)
	}
	return c, nil
}

// CompareText is Compare for constant segments alone, and the quick form: what
// it costs is a look at the page map where all pages are the file's.
func (p *Process) CompareText(ctx context.Context, m *Module) (*Comparison, error) {
	c := &Comparison{Module: m}
	if m.Object == nil || len(m.Obstacles) > 0 {
		return c, nil
	}
	return c, p.compareText(ctx, c, false)
}

// PrivateText returns the pages of a module's constant segments that are the
// process's own copies.
func (p *Process) PrivateText(m *Module) ([]procfs.PageRange, error) {
	pagemap, err := p.openPagemap()
	if err != nil {
		return nil, err
	}
	var pages []procfs.PageRange
	for _, r := range m.text {
		if pages, err = pagemap.PrivatePages(pages, r.start, r.end); err != nil {
			return nil, err
		}
	}
	return pages, nil
}

func (p *Process) compareText(ctx context.Context, c *Comparison, full bool) error {
	var pages []procfs.PageRange
	var err error
	if full {
		pages, err = p.presentText(c.Module)
	} else {
		pages, err = p.PrivateText(c.Module)
	}
	if err != nil || len(pages) == 0 {
		return err
	}
	memory, err := p.openMemory()
	if err != nil {
		return err
	}
	const chunk = 64 * procfs.PageSize
	found, expected := make([]byte, chunk), make([]byte, chunk)
	for _, r := range pages {
		for at := r.Start; at < r.End; at += chunk {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := min(chunk, r.End-at)
			if _, err := memory.ReadAt(found[:n], int64(at)); err != nil {
				return err
			}
			if err := c.Module.expected(expected[:n], at); err != nil {
				return err
			}
			p.addJumps(c, at, found[:n], expected[:n])
			c.addRuns(at, found[:n], expected[:n])
			c.Pages += int(n / procfs.PageSize)
		}
	}
	slices.SortFunc(c.Runs, func(a, b Run) int { return cmp.Compare(a.Address, b.Address) })
	if err := c.classify(); err != nil {
		return err
	}
	return p.findCallProbes(c)
}

// presentText returns all pages of a module's constant segments that are in
// memory. Reading one that is not would only fetch it from the file.
func (p *Process) presentText(m *Module) ([]procfs.PageRange, error) {
	pagemap, err := p.openPagemap()
	if err != nil {
		return nil, err
	}
	var pages []procfs.PageRange
	for _, r := range m.text {
		if pages, err = pagemap.TouchedPages(pages, r.start, r.end); err != nil {
			return nil, err
		}
	}
	return pages, nil
}

// expected fills buf with what the file says for a process address.
func (m *Module) expected(buf []byte, address uint64) error {
	if m.Kind != VDSO {
		return m.Object.ReadMapped(buf, address-m.Bias)
	}
	image, err := ownVDSO()
	if err != nil {
		return err
	}
	at := address - m.start
	if at > uint64(len(image)) || uint64(len(buf)) > uint64(len(image))-at {
		return fmt.Errorf("the vDSO of this kernel has %d bytes, not %d", len(image), m.end-m.start)
	}
	copy(buf, image[at:])
	return nil
}

// ownVDSO returns the vDSO that the kernel gave to this process. All processes
// get the same.
var ownVDSO = sync.OnceValues(func() (image []byte, err error) {
	self, err := procfs.Open(os.Getpid())
	if err != nil {
		return nil, err
	}
	defer self.Close()
	maps, err := self.Maps()
	if err != nil {
		return nil, err
	}
	memory, err := self.OpenMemory()
	if err != nil {
		return nil, err
	}
	defer memory.Close()
	for _, m := range maps {
		if m.Kind == procfs.KindVDSO {
			image = make([]byte, m.Size())
			_, err := memory.ReadAt(image, int64(m.Start))
			return image, err
		}
	}
	return nil, fmt.Errorf("find the vDSO: %w", os.ErrNotExist)
})

// mergeGap is how many equal bytes may lie within one run: an overwritten
// instruction often keeps a byte.
const mergeGap = 3

// addRuns notes where found differs from expected, both mapped at address.
func (c *Comparison) addRuns(address uint64, found, expected []byte) {
	for i := 0; i < len(found) && len(c.Runs) < maxRuns; {
		if i%procfs.PageSize == 0 && len(found)-i >= procfs.PageSize &&
			bytes.Equal(found[i:i+procfs.PageSize], expected[i:i+procfs.PageSize]) {
			i += procfs.PageSize
			continue
		}
		if found[i] == expected[i] {
			i++
			continue
		}
		end := i + 1
		for j := end; j < len(found) && j-end <= mergeGap; j++ {
			if found[j] != expected[j] {
				end = j + 1
			}
		}
		c.Runs = append(c.Runs, Run{
			Address:  address + uint64(i),
			Found:    bytes.Clone(found[i:end]),
			Expected: bytes.Clone(expected[i:end]),
		})
		i = end
	}
}
