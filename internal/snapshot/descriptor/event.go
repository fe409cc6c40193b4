package descriptor

import (
	"encoding/binary"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// An event is an eventfd, kept with its count.
type event struct{}

func (event) look(*looking, *handle.Handle) []api.Refusal { return nil }

func (event) dump(d *dumping, h *handle.Handle, raw kernel.Raw, f *image.File) error {
	f.Event = &image.Event{Count: h.Event.Count, Semaphore: h.Event.Semaphore}
	return nil
}

func (event) plan(*planning, int) []api.Refusal { return nil }

func (event) open(o *Opened, i int) (kernel.Raw, error) {
	e := o.image.Files[i].Event
	return withFlags(o, i, func() (kernel.Raw, error) {
		raw, err := kernel.NewEvent(e.Semaphore)
		if err != nil || e.Count == 0 {
			return raw, err
		}
		if _, err := raw.Write(binary.NativeEndian.AppendUint64(nil, e.Count)); err != nil {
			_ = raw.Close()
			return -1, err
		}
		return raw, nil
	})
}
