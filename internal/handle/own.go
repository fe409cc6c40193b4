package handle

import (
	"os"
	"slices"
	"strings"

	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// An Own tells why a descriptor is vOS's own in a program.
type Own string

// The reasons. A descriptor that is the program's is OwnNot.
const (
	OwnNot    Own = ""
	OwnRecord Own = "record" // of a redirection that holds
	OwnKept   Own = "kept"   // what was there before a redirection, for the way back
	OwnLeft   Own = "left"   // by a vos that was killed: the next one closes it
)

// ownMemfd begins the names of the memfds that vOS makes in a program. But for a
// record they are closed within one stop.
const ownMemfd = memfdPrefix + "vos-"

// markOwn finds what vOS itself has in the program, and what it has bound to
// something else, by the records that are there. These are read as hostile input,
// and believed where they agree with what the descriptors lead to.
func markOwn(p *procfs.Process, handles []Handle) {
	for i := range handles {
		h := &handles[i]
		if h.Kind != KindMemfd || !strings.HasPrefix(h.Link, ownMemfd) {
			continue
		}
		h.Own = OwnLeft
		if h.Link != recordLink {
			continue
		}
		r, err := openRecord(p, h)
		if err != nil || r.Record != h.FD || r.Back {
			continue
		}
		h.Own = OwnRecord
		for i := range handles {
			other := &handles[i]
			now := identity{other.Device, other.Inode}
			switch {
			case other.FD == r.Kept && now == r.Old:
				other.Own = OwnKept
			case slices.Contains(r.Bound, other.FD) && now == r.New:
				other.Was = r.From
			}
		}
	}
}

// openRecord reads the record that a descriptor leads to. Opening a memfd anew does
// nothing to who has it open; what has become another file since is not opened.
func openRecord(p *procfs.Process, h *Handle) (*redirectRecord, error) {
	found, err := p.OpenDescriptor(h.FD, kernel.PathOnly)
	if err != nil {
		return nil, err
	}
	defer found.Close()
	stat, err := kernel.StatFile(found)
	if err != nil {
		return nil, err
	}
	if stat.Mode != 0 || stat.Device != h.Device || stat.Inode != h.Inode {
		return nil, errRecord
	}
	file, err := kernel.Reopen(found, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return readRecord(file)
}
