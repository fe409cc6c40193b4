package descriptor

import (
	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// A signalfd is kept with the signals that it takes; those that are pending are the
// process's.
type signalfd struct{}

func (signalfd) look(*looking, *handle.Handle) []api.Refusal { return nil }

func (signalfd) dump(d *dumping, h *handle.Handle, raw kernel.Raw, f *image.File) error {
	f.Signals = uint64(h.Signals)
	return nil
}

func (signalfd) plan(*planning, int) []api.Refusal { return nil }

func (signalfd) open(o *Opened, i int) (kernel.Raw, error) {
	return withFlags(o, i, func() (kernel.Raw, error) { return kernel.NewSignals(o.image.Files[i].Signals) })
}
