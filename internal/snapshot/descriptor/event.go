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
	f := &o.image.Files[i]
	raw, err := kernel.NewEvent(f.Event.Semaphore)
	if err != nil {
		return -1, err
	}
	if f.Event.Count > 0 {
		_, err = raw.Write(binary.NativeEndian.AppendUint64(nil, f.Event.Count))
	}
	if err == nil {
		err = raw.SetFlags(int(f.Flags) & settable)
	}
	if err != nil {
		_ = raw.Close()
		return -1, err
	}
	return raw, nil
}
