package descriptor

import (
	"errors"
	"fmt"
	"slices"

	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// Opened is an image's open files, opened in vos's own process.
type Opened struct {
	planning
	files    []kernel.Raw
	pipes    map[uint64]*pipeEnds
	pairs    map[uint64]*pairEnds
	deleted  map[fileID]kernel.Raw
	scaffold []kernel.Raw   // what is only needed until all is given
	later    []func() error // what is done to files once all are open

	returning *Returning
}

// Open opens all of an image's files: after Plan, with the same arguments. The caller
// closes what is returned once all processes have theirs.
func Open(im *image.Image, r Restoring) (_ *Opened, err error) {
	if err := check(im); err != nil {
		return nil, err
	}
	o := &Opened{planning: planning{Restoring: r, image: im}, pipes: map[uint64]*pipeEnds{}, pairs: map[uint64]*pairEnds{}, deleted: map[fileID]kernel.Raw{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, o.Close())
		}
	}()
	if o.root, err = kernel.OpenDirectory("/"); err != nil {
		return nil, err
	}
	if err := o.block(); err != nil {
		return nil, err
	}
	o.files = slices.Repeat([]kernel.Raw{-1}, len(im.Files))
	for _, i := range order(im) {
		if o.files[i], err = o.open(i); err != nil {
			return nil, fmt.Errorf("make open file %d, a %s: %w", i, im.Files[i].Kind, err)
		}
	}
	for _, f := range o.later {
		if err := f(); err != nil {
			return nil, err
		}
	}
	return o, nil
}

func (o *Opened) open(i int) (kernel.Raw, error) {
	f := &o.image.Files[i]
	if f.Kind != image.Inherited {
		return kinds[handle.Kind(f.Kind)].open(o, i)
	}
	fd, ok := o.given(i)
	if !ok {
		return -1, o.refusal(codeInherited, i, "the image does not hold what it led to: "+f.Was, fmt.Sprintf("give it: --inherit %d", fd))
	}
	return kernel.CopyRaw(o.Inherit[fd])
}

// Close closes vos's own descriptors: what processes took stays theirs.
func (o *Opened) Close() error {
	var errs []error
	if o.root != nil {
		errs = append(errs, o.root.Close())
	}
	for _, raw := range append(o.files, o.scaffold...) {
		errs = append(errs, raw.Close())
	}
	o.files, o.scaffold, o.root = nil, nil, nil
	return errors.Join(append(errs, o.returning.Close())...)
}
