package kernel

import (
	"fmt"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// PageCategories are the PAGE_IS_* bits of PAGEMAP_SCAN, linux/fs.h.
type PageCategories uint64

// What PAGEMAP_SCAN knows of a page, PAGEMAP_SCAN(2const).
const (
	PageWPAllowed PageCategories = 1 << iota // asynchronous write protection is on
	PageWritten                              // written since it was last write-protected
	PageFile                                 // of the file (or shared memory), not a private copy
	PagePresent                              // in memory
	PageSwapped                              // swapped out
	PagePFNZero                              // the shared page of zeros: read, never written
	PageHuge                                 // part of a huge page
	PageSoftDirty                            // soft-dirty, where the kernel is built with it
	PageGuard                                // a guard page of MADV_GUARD_INSTALL (Linux 6.15)
)

// Flags of a PageQuery, linux/fs.h.
const (
	ScanProtectMatching  = 1 << 0 // PM_SCAN_WP_MATCHING: write-protect the pages that match
	ScanCheckWriteAsync  = 1 << 1 // PM_SCAN_CHECK_WPASYNC: fail where a page can't be write-protected
	pagemapScanIoctl     = 0xc0606610
	pagemapScanArgSize   = 96
	pageSize             = 4096
	leastRegionsPerAlloc = 64
)

// A PageRegion is a run of pages that match in the same categories. Its layout
// is the kernel's struct page_region.
type PageRegion struct {
	Start, End uint64         // addresses, End exclusive
	Categories PageCategories // those of the query's Return that hold
}

// A PageQuery selects pages by their categories. A page matches where, after
// the categories in Inverted are negated, it has all of All and, unless Any is
// zero, at least one of Any.
type PageQuery struct {
	Inverted PageCategories
	All      PageCategories
	Any      PageCategories
	Return   PageCategories // which categories to tell apart and report
	Flags    uint64
	MaxPages uint64 // stop after so many matching pages; 0 is no limit
}

// pagemapScanArg is struct pm_scan_arg of linux/fs.h. Vec is a pointer, not a
// number, so that a stack that moves takes the address along.
type pagemapScanArg struct {
	size, flags         uint64
	start, end, walkEnd uint64
	vec                 unsafe.Pointer
	vecLen, maxPages    uint64
	inverted            PageCategories
	mask, anyOf, result PageCategories
}

// ScanPages asks once for the pages of [start, end) that match, through a
// descriptor of /proc/PID/pagemap, and fills regions in ascending order. It
// returns how many it filled and where the walk stopped: end when it is done,
// less when regions or MaxPages ran out, so that the caller goes on from there.
// Start and end must be multiples of the page size.
//
// Once the address space is gone newer kernels say ESRCH; older ones find no
// pages, without an error.
func ScanPages(pagemap *os.File, start, end uint64, query *PageQuery, regions []PageRegion) (filled int, walkEnd uint64, err error) {
	arg := pagemapScanArg{
		size: pagemapScanArgSize, flags: query.Flags, start: start, end: end,
		vec: unsafe.Pointer(unsafe.SliceData(regions)), vecLen: uint64(len(regions)), maxPages: query.MaxPages,
		inverted: query.Inverted, mask: query.All, anyOf: query.Any, result: query.Return,
	}
	for {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, pagemap.Fd(), pagemapScanIoctl, uintptr(unsafe.Pointer(&arg)))
		switch errno {
		case 0:
			filled, walkEnd = int(n), arg.walkEnd
			// The kernel gathers 512 regions at a time. It tells where it has stopped
			// for the last time to pass them on, also when it went on to the end then.
			if filled > 0 {
				walkEnd = max(walkEnd, regions[filled-1].End)
			}
			return filled, walkEnd, nil
		case unix.EINTR:
			continue
		case unix.ENOTTY:
			return 0, start, notSupported("PAGEMAP_SCAN", "finds private pages", pagemapScanLeast)
		default:
			return 0, start, fmt.Errorf("scan pages %#x-%#x: %w", start, end, errno)
		}
	}
}

// AppendPages appends to regions the runs of pages of [start, end) that match,
// ascending and joined where they touch with the same categories. It repeats
// ScanPages until the walk has reached end (query.MaxPages then bounds one
// step, not the whole), and allocates only where regions lacks room.
func AppendPages(regions []PageRegion, pagemap *os.File, start, end uint64, query *PageQuery) ([]PageRegion, error) {
	first := len(regions)
	for start < end {
		if len(regions) == cap(regions) {
			regions = slices.Grow(regions, max(leastRegionsPerAlloc, len(regions)))
		}
		room := regions[len(regions):cap(regions)]
		filled, walkEnd, err := ScanPages(pagemap, start, end, query, room)
		if err != nil {
			return regions[:first], err
		}
		if walkEnd <= start {
			return regions[:first], fmt.Errorf("scan pages %#x-%#x: the walk stays where it is", start, end)
		}
		last := len(regions)
		regions = regions[:last+filled]
		if last > first && filled > 0 && regions[last-1].End == regions[last].Start &&
			regions[last-1].Categories == regions[last].Categories {
			regions[last-1].End = regions[last].End
			regions = slices.Delete(regions, last, last+1)
		}
		start = walkEnd
	}
	return regions, nil
}

var pagemapScanLeast = Version{Major: 6, Minor: 7}

// PagemapScan reports whether PAGEMAP_SCAN works here: nil, or a
// NotSupportedError. It is tried once, on a page of vOS itself.
func PagemapScan() error { return pagemapScan() }

var pagemapScan = feature("PAGEMAP_SCAN", "finds private pages", pagemapScanLeast, func() error {
	file, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return err
	}
	defer file.Close()
	own := make([]PageRegion, 1)
	page := uint64(uintptr(unsafe.Pointer(&own[0]))) &^ (pageSize - 1)
	query := PageQuery{Any: PagePresent | PageSwapped, Return: PagePresent}
	_, _, err = ScanPages(file, page, page+pageSize, &query, own)
	return err
})
