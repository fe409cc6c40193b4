package dump

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// addSegment adds a mapping of System V shared memory, whose inode is the segment's id.
func (m *memory) addSegment(from procfs.Mapping, to image.Mapping) error {
	to.Kind = image.InObject
	device := kernel.DeviceNumber(from.DevMajor, from.DevMinor)
	var known bool
	if to.Object, known = m.object(device, from.Inode); !known {
		s, err := kernel.StatSegment(int(from.Inode))
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it was detached, and has ended: the mappings have changed
		}
		if err != nil {
			return err
		}
		o := object{device: device, inode: from.Inode, mapping: from, shared: true}
		o.Kind, o.ID, o.Key, o.Size = "sysv", int32(s.ID), s.Key, s.Size
		to.Object = len(m.objects)
		m.objects = append(m.objects, o)
	}
	m.mappings = append(m.mappings, to)
	return nil
}

// dumpSegment writes a segment down, while the program is held, which has it attached so
// many times. The content of one that somebody else has attached, too, is theirs as well:
// it is not kept.
func dumpSegment(o image.Object, own uint64, file *os.File, w *image.Writer, before *earlier, buffer []byte) (image.Object, error) {
	s, err := kernel.StatSegment(int(o.ID))
	if err != nil {
		return o, err
	}
	if s.Size != o.Size {
		return o, fmt.Errorf("segment %d has %d bytes, and had %d", s.ID, s.Size, o.Size)
	}
	if s.Attached <= own {
		if o, err = dumpObject(o, file, w, before, buffer); err != nil {
			return o, err
		}
		o.Size = s.Size // that of the file is in whole pages
	}
	o.Key, o.Mode, o.UID, o.GID, o.Outside = s.Key, s.Mode, s.UID, s.GID, s.Attached > own
	return o, nil
}
