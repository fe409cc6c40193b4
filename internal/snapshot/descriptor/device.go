package descriptor

import (
	"fmt"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// A device is kept by its path if it has no state: /dev/null, zero, full, random and
// urandom, by whatever name.
type device struct{}

// plain are the minor numbers of those devices; the major one is 1.
var plain = map[uint32]bool{3: true, 5: true, 7: true, 8: true, 9: true}

func isPlain(special uint64) bool {
	major, minor := kernel.Device(special)
	return major == 1 && plain[minor]
}

func (device) look(l *looking, h *handle.Handle) []api.Refusal {
	if !isPlain(h.Special) {
		major, minor := kernel.Device(h.Special)
		return []api.Refusal{refusal(codeDevice, h, fmt.Sprintf("%s (%d:%d), which may have a state that can't be kept", leadsTo(h), major, minor), "close it, or "+inheritRemedy(h.FD))}
	}
	return l.atPath(h)
}

func (device) mayShare(h *handle.Handle) bool { return isPlain(h.Special) }

func (device) dump(d *dumping, h *handle.Handle, raw kernel.Raw, f *image.File) error {
	stat, err := raw.Stat()
	if err != nil {
		return err
	}
	f.Regular = &image.Regular{FileRef: reference(h.Path, stat), Mode: stat.Permissions, Device: stat.Special}
	return nil
}

func (device) plan(p *planning, i int) []api.Refusal {
	f := &p.image.Files[i]
	stat, err := statInRoot(p.root, p.at(f.Regular.Path), false)
	switch {
	case err != nil:
		return []api.Refusal{p.refusal(codeMissing, i, fmt.Sprintf("%s can't be opened: %v", f.Regular.Path, err), "put the device back")}
	case stat.Special != f.Regular.Device || !isPlain(stat.Special):
		return []api.Refusal{p.refusal(codeChanged, i, f.Regular.Path+" is not the device that it was", "put the device back")}
	}
	return nil
}

func (device) open(o *Opened, i int) (kernel.Raw, error) {
	f := &o.image.Files[i]
	// The device was looked at before it is opened: opening another one may act.
	named, err := o.root.OpenRaw(o.at(f.Regular.Path), kernel.PathOnly)
	if err != nil {
		return -1, err
	}
	defer named.Close()
	stat, err := named.Stat()
	if err != nil {
		return -1, err
	}
	if stat.Special != f.Regular.Device || !isPlain(stat.Special) {
		return -1, fmt.Errorf("open %s: it is not the device that it was", f.Regular.Path)
	}
	return named.Reopen(int(f.Flags) & statusFlags)
}
