package descriptor

import (
	"errors"
	"fmt"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// A pidfd is kept if it is the process's own. It can be made only once the process is
// there: until then its place among the opened is empty.
type pidfd struct{}

const flagThread handle.Flags = 0o200 // PIDFD_THREAD

func (pidfd) look(l *looking, h *handle.Handle) []api.Refusal {
	if h.Process.PID != h.PID || h.Flags&flagThread != 0 {
		return []api.Refusal{refusal(codeKind, h, fmt.Sprintf("it leads to a pidfd of %d, which is another process, or a thread", h.Process.PID), "close it, and try again")}
	}
	return nil
}

func (pidfd) dump(d *dumping, h *handle.Handle, raw kernel.Raw, f *image.File) error {
	f.PIDFD = h.PID
	return nil
}

func (pidfd) plan(*planning, int) []api.Refusal { return nil }

func (pidfd) open(*Opened, int) (kernel.Raw, error) { return -1, nil }

// openProcess makes what is about the process that is to get it.
func (o *Opened) openProcess(pid int, process *image.Process) error {
	for _, d := range process.Descriptors {
		f := &o.image.Files[d.File]
		if f.Kind != string(handle.KindPidfd) || o.files[d.File] >= 0 {
			continue
		}
		if f.PIDFD != process.PID {
			return fmt.Errorf("the image's descriptor %d is a pidfd of %d, not of %d", d.Number, f.PIDFD, process.PID)
		}
		raw, err := withFlags(o, d.File, func() (_ kernel.Raw, err error) {
			file, err := kernel.OpenPidfd(pid)
			if err != nil {
				return -1, err
			}
			defer func() { err = errors.Join(err, file.Close()) }()
			return kernel.CopyRaw(file)
		})
		if err != nil {
			return err
		}
		o.files[d.File] = raw
	}
	return nil
}
