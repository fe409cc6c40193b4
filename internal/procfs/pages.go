package procfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/virtualizing-os/vos/internal/kernel"
)

// A PageRange is a run of whole pages, End exclusive.
type PageRange struct{ Start, End uint64 }

// Pages returns the number of pages in the range.
func (r PageRange) Pages() int { return int((r.End - r.Start) / PageSize) }

// Bits of an entry of /proc/PID/pagemap, Documentation/admin-guide/mm/pagemap.
const (
	entryBytes   = 8
	entryGuard   = 1 << 58 // of MADV_GUARD_INSTALL, since Linux 6.15
	entryFile    = 1 << 61 // of the file, or shared
	entrySwapped = 1 << 62
	entryPresent = 1 << 63
	// chunkEntries are read at once: 4096 entries, 16 MiB of addresses.
	chunkEntries = 4096
)

// A Pagemap answers which pages of a process are there and whose they are. It
// asks by PAGEMAP_SCAN, where the kernel has it, and else reads the entries of
// every page. Like a Memory it belongs to the program that ran when it was
// opened. One goroutine at a time may use it, as its buffers are reused.
type Pagemap struct {
	pid     int
	file    *os.File
	scan    bool // by PAGEMAP_SCAN
	regions []kernel.PageRegion
	chunk   []byte
}

// OpenPagemap opens the page map. It needs the right to read the process
// (PTRACE_MODE_READ).
func (p *Process) OpenPagemap() (*Pagemap, error) {
	file, err := p.openMemoryFile("pagemap", syscall.O_RDONLY)
	if err != nil {
		return nil, p.failed("open page map of", err)
	}
	return &Pagemap{pid: p.pid, file: file, scan: kernel.PagemapScan() == nil}, nil
}

// Close closes the page map.
func (m *Pagemap) Close() error { return m.file.Close() }

// A pageClass is a question about pages, in both of the kernel's languages.
type pageClass struct {
	query   kernel.PageQuery
	matches func(entry uint64) bool
}

var (
	// A page of a private file mapping is the file's own until it is written;
	// then it is an anonymous copy, present or swapped out.
	privatePages = pageClass{
		kernel.PageQuery{
			Inverted: kernel.PageFile, All: kernel.PageFile,
			Any: kernel.PagePresent | kernel.PageSwapped,
		},
		func(e uint64) bool { return e&entryFile == 0 && e&(entryPresent|entrySwapped) != 0 },
	}
	touchedPages = pageClass{
		kernel.PageQuery{Any: kernel.PagePresent | kernel.PageSwapped},
		func(e uint64) bool { return e&(entryPresent|entrySwapped) != 0 },
	}
	guardPages = pageClass{
		kernel.PageQuery{Any: kernel.PageGuard},
		func(e uint64) bool { return e&entryGuard != 0 },
	}
)

// PrivatePages appends the ranges of pages within [start, end) of private file
// mappings that are no longer the file's: copies made by a write, in memory or
// swapped out. Pages not in memory are the file's. Start and end must be
// multiples of PageSize; ranges ascend and do not touch. Of anonymous memory
// it returns what was ever touched.
func (m *Pagemap) PrivatePages(ranges []PageRange, start, end uint64) ([]PageRange, error) {
	return m.find(ranges, start, end, &privatePages)
}

// TouchedPages appends the ranges of pages within [start, end) that are in
// memory or swapped out. A page of private anonymous memory in none of them
// was never touched: it reads as zeros. (One in them may be zeros as well: a
// page that was only read.)
func (m *Pagemap) TouchedPages(ranges []PageRange, start, end uint64) ([]PageRange, error) {
	return m.find(ranges, start, end, &touchedPages)
}

// GuardPages appends the ranges of guard pages (MADV_GUARD_INSTALL) within [start, end).
// Kernels before Linux 6.15 tell of none.
func (m *Pagemap) GuardPages(ranges []PageRange, start, end uint64) ([]PageRange, error) {
	guards, err := m.find(ranges, start, end, &guardPages)
	if errors.Is(err, syscall.EINVAL) {
		return ranges, nil
	}
	return guards, err
}

func (m *Pagemap) find(ranges []PageRange, start, end uint64, class *pageClass) ([]PageRange, error) {
	if start%PageSize != 0 || end%PageSize != 0 || end < start || end >= 1<<63 {
		return ranges, fmt.Errorf("find pages of process %d: %#x-%#x are not whole pages of a program", m.pid, start, end)
	}
	if start == end {
		return ranges, nil
	}
	first := len(ranges)
	var err error
	if m.scan {
		ranges, err = m.findByScan(ranges, start, end, class)
	} else {
		ranges, err = m.findByEntries(ranges, start, end, class)
	}
	if errors.Is(err, syscall.ESRCH) {
		err = ErrGone
	}
	if err != nil {
		return ranges[:first], fmt.Errorf("find pages of process %d: %w", m.pid, err)
	}
	return ranges, nil
}

func (m *Pagemap) findByScan(ranges []PageRange, start, end uint64, class *pageClass) ([]PageRange, error) {
	regions, err := kernel.AppendPages(m.regions[:0], m.file, start, end, &class.query)
	m.regions = regions
	if err != nil {
		return ranges, err
	}
	for _, r := range regions {
		ranges = append(ranges, PageRange{r.Start, r.End})
	}
	// On older kernels a scan of memory that is gone finds no pages, and no
	// fault; but an entry of it can't be read. If one can be now, there was
	// memory all the while.
	var entry [entryBytes]byte
	return ranges, m.readEntries(entry[:], start)
}

func (m *Pagemap) findByEntries(ranges []PageRange, start, end uint64, class *pageClass) ([]PageRange, error) {
	if m.chunk == nil {
		m.chunk = make([]byte, chunkEntries*entryBytes)
	}
	first := len(ranges)
	for start < end {
		chunk := m.chunk[:min(chunkEntries, (end-start)/PageSize)*entryBytes]
		if err := m.readEntries(chunk, start); err != nil {
			return ranges, err
		}
		for ; len(chunk) > 0; chunk = chunk[entryBytes:] {
			if class.matches(binary.LittleEndian.Uint64(chunk)) {
				if n := len(ranges); n > first && ranges[n-1].End == start {
					ranges[n-1].End += PageSize
				} else {
					ranges = append(ranges, PageRange{start, start + PageSize})
				}
			}
			start += PageSize
		}
	}
	return ranges, nil
}

func (m *Pagemap) readEntries(chunk []byte, start uint64) error {
	_, err := m.file.ReadAt(chunk, int64(start/PageSize*entryBytes))
	if errors.Is(err, io.EOF) {
		return ErrGone
	}
	return err
}
