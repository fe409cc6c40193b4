package restore

import (
	"fmt"
	"syscall"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/image"
)

const standardDescriptors = 3

// refuseDescriptors refuses what is not given to the process by whoever restores it:
// only its standard descriptors are.
func refuseDescriptors(img *image.Image, p *image.Process) (refusals []api.Refusal) {
	for _, d := range p.Descriptors {
		switch {
		case d.File < 0 || d.File >= len(img.Files):
			refusals = append(refusals, notRestorable(fmt.Sprintf("descriptor %d", d.Number), "the image does not have its file"))
		case d.Number >= standardDescriptors || d.Number < 0:
			refusals = append(refusals, notRestorable(fmt.Sprintf("descriptor %d", d.Number),
				"it leads to a "+img.Files[d.File].Kind+", and only standard descriptors are restored"))
		}
	}
	return refusals
}

// setDescriptors leaves those of the standard descriptors that the process had.
func (p *process) setDescriptors(of *image.Process) error {
	var had [standardDescriptors]bool
	b := p.batch()
	for _, d := range of.Descriptors {
		had[d.Number] = true
		if d.OnClose {
			b.add(fmt.Sprintf("let descriptor %d end at execve", d.Number), syscall.SYS_FCNTL, uint64(d.Number), syscall.F_SETFD, syscall.FD_CLOEXEC)
		}
	}
	for n, ok := range had {
		if !ok {
			b.add(fmt.Sprintf("close descriptor %d", n), syscall.SYS_CLOSE, uint64(n))
		}
	}
	_, err := b.run()
	return err
}
