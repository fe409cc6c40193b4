package dump

import (
	"errors"
	"fmt"
	"slices"

	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// A common object is memory that mappings of any of the processes share.
type common struct {
	object
	process *procfs.Process // that has it mapped
	mapped  uint64          // how often
}

// gather makes one list of the objects of all processes, and lets their mappings, and
// executables, stand for places in it.
func gather(parts []*commit, processes []image.Process) (all []common) {
	for i, c := range parts {
		places := make([]int, len(c.memory.objects))
		for n, o := range c.memory.objects {
			at := slices.IndexFunc(all, func(k common) bool { return k.device == o.device && k.inode == o.inode })
			if at < 0 {
				at = len(all)
				all = append(all, common{object: o, process: c.Process})
			}
			all[at].shared = all[at].shared || o.shared
			all[at].Flags |= o.Flags
			places[n] = at
		}
		for n := range processes[i].Mappings {
			if to := &processes[i].Mappings[n]; to.Kind == image.InObject {
				to.Object = places[to.Object]
				all[to.Object].mapped++
			}
		}
		if running := processes[i].Running; running != nil {
			at := places[*running]
			processes[i].Running = &at
		}
	}
	return all
}

// dumpObjects writes the memory that mappings share.
func dumpObjects(objects []common, w *image.Writer, kept keptFiles) ([]image.Object, error) {
	all := make([]image.Object, 0, len(objects))
	buffer := make([]byte, chunk)
	seen := map[string]int{}
	for _, o := range objects {
		before := earlierObject(w.Parent(), &o.Object, seen)
		file, err := o.process.OpenMapped(o.mapping)
		if err != nil {
			return nil, err
		}
		var to image.Object
		if whole, ok := kept.find(&o.object, file); ok {
			to = whole
		} else if o.Kind == "sysv" {
			to, err = dumpSegment(o.Object, o.mapped, file, w, before, buffer)
		} else {
			to, err = dumpObject(o.Object, file, w, before, buffer)
		}
		if err := errors.Join(err, file.Close()); err != nil {
			return nil, fmt.Errorf("keep %s: %w", o.mapping.Path, err)
		}
		all = append(all, to)
	}
	return all, nil
}

// placeOf returns the place among the objects of an open file, by what stat(2) says of it.
func placeOf(objects []common, device, inode uint64) (int, bool) {
	n := slices.IndexFunc(objects, func(o common) bool { return o.is(device, inode) })
	return n, n >= 0
}
