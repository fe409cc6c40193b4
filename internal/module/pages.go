package module

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// textPages are pages of text as they were when they were first looked at, with
// all threads stopped: what is on one page is read, and written, by one system
// call, as each of them costs the program a microsecond or more.
type textPages struct {
	session *tracee.Session
	read    map[uint64][]byte // by number
}

func readPages(s *tracee.Session) *textPages {
	return &textPages{session: s, read: make(map[uint64][]byte)}
}

// found returns n bytes at an address.
func (t *textPages) found(address uint64, n int) ([]byte, error) {
	number, at := address/procfs.PageSize, int(address%procfs.PageSize)
	if at+n > procfs.PageSize {
		b := make([]byte, n)
		_, err := t.session.Memory().ReadAt(b, int64(address))
		return b, err
	}
	page := t.read[number]
	if page == nil {
		page = make([]byte, procfs.PageSize)
		if _, err := t.session.Memory().ReadAt(page, int64(number*procfs.PageSize)); err != nil {
			return nil, err
		}
		t.read[number] = page
	}
	return page[at : at+n], nil
}

// changeTo is changeTo of text.
func (t *textPages) changeTo(address uint64, wanted, other []byte) ([]Write, error) {
	found, err := t.found(address, len(wanted))
	if err != nil {
		return nil, err
	}
	return changeFrom(address, found, wanted, other)
}

// changeFrom returns the write that puts bytes where other was found; none where
// they were found.
func changeFrom(address uint64, found, wanted, other []byte) ([]Write, error) {
	switch {
	case bytes.Equal(found, wanted):
		return nil, nil
	case !bytes.Equal(found, other):
		return nil, fmt.Errorf("%x at 0x%x: %w", found, address, errChanged)
	}
	return []Write{{Address: address, Found: found, Bytes: wanted}}, nil
}

// write carries out writes, which are sorted by address. What lies between two
// of one page of text is written as it was read: nobody writes there meanwhile.
func (t *textPages) write(writes []Write) error {
	for len(writes) > 0 {
		n := t.together(writes)
		first, last := writes[0], writes[n-1]
		found, wanted := first.Found, first.Bytes
		if n > 1 {
			var err error
			if found, err = t.found(first.Address, int(last.Address-first.Address)+len(last.Bytes)); err != nil {
				return err
			}
			wanted = slices.Clone(found)
			for _, w := range writes[:n] {
				copy(wanted[w.Address-first.Address:], w.Bytes)
			}
		}
		if err := t.session.WriteOver(first.Address, found, wanted); err != nil {
			return err
		}
		writes = writes[n:]
	}
	return nil
}

// together returns how many of the first writes are within one page of text.
func (t *textPages) together(writes []Write) int {
	number := writes[0].Address / procfs.PageSize
	if t.read[number] == nil {
		return 1
	}
	n := 0
	for n < len(writes) && (writes[n].Address+uint64(len(writes[n].Bytes))-1)/procfs.PageSize == number {
		n++
	}
	return max(n, 1)
}
