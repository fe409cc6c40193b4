package descriptor

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// Restoring is how an image's descriptors are made again.
type Restoring struct {
	// Inherit are the open files in place of those that the image does not hold, by
	// the number of any descriptor that leads to one. They stay the caller's.
	Inherit map[int]*os.File

	// ReadPages reads pages that the image holds, as image.Reader does.
	ReadPages func(image.Place, []byte) error

	// Object returns the memory that is the image's object i, with all that is in
	// it. It stays the caller's.
	Object func(i int) (*os.File, error)

	// Terminals are the image's pseudo terminals, when there are any.
	Terminals *Terminals

	// Map returns where a path of the image is to be looked up; nil is there. What is
	// elsewhere is not compared with what it stands for.
	Map func(path string) string

	// Force takes files that are no longer as they were.
	Force bool

	// CloseConnections makes connections of TCP again as ones that have ended with
	// ECONNABORTED.
	CloseConnections bool
}

// planning is one look at what an image needs.
type planning struct {
	Restoring
	image *image.Image
	root  *kernel.Directory

	filter *kernel.Netfilter // where there are connections
}

// Plan returns what speaks against making an image's descriptors again, and changes
// nothing. The error is of what it can't look at, or of an image that contradicts
// itself.
func Plan(im *image.Image, r Restoring) (refusals []api.Refusal, err error) {
	if err := check(im); err != nil {
		return nil, err
	}
	root, err := kernel.OpenDirectory("/")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	p := &planning{Restoring: r, image: im, root: root}
	if slices.ContainsFunc(im.Files, func(f image.File) bool { return isConnection(f.Socket) }) && !r.CloseConnections {
		if p.filter, err = kernel.OpenNetfilter(); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, p.filter.Close()) }()
	}
	for i := range im.Files {
		f := &im.Files[i]
		if f.Kind == image.Inherited {
			if fd, ok := p.given(i); !ok {
				refusals = append(refusals, p.refusal(codeInherited, i, "the image does not hold what it led to: "+f.Was,
					fmt.Sprintf("give it: --inherit %d", fd)))
			}
			continue
		}
		refusals = append(refusals, kinds[handle.Kind(f.Kind)].plan(p, i)...)
	}
	return refusals, nil
}

// check makes sure that all is there that the kinds use.
func check(im *image.Image) error {
	if im.Held != "" && !heldName.MatchString(im.Held) {
		return fmt.Errorf("what holds the image's connections can't have the name %.100q", im.Held)
	}
	for i, f := range im.Files {
		missing := false
		switch handle.Kind(f.Kind) {
		case image.Inherited:
		case handle.KindFile, handle.KindDirectory, handle.KindPath, handle.KindDevice:
			missing = f.Regular == nil || f.Regular.Mapped && (f.Object < 0 || f.Object >= len(im.Objects) || im.Objects[f.Object].Kind != "file")
		case handle.KindPipe:
			missing = f.Pipe == nil
		case handle.KindFIFO:
			missing = f.Pipe == nil || f.Pipe.Path == ""
		case handle.KindEventfd:
			missing = f.Event == nil
		case handle.KindTimerfd:
			missing = f.TimerFD == nil
		case handle.KindMemfd:
			missing = f.Object < 0 || f.Object >= len(im.Objects) || im.Objects[f.Object].Kind != "memfd"
		case handle.KindSocket:
			err := checkSocket(f.Socket)
			if err == nil && f.Socket.Family == kernel.FamilyUnix {
				_, err = listener(im, f.Socket)
			}
			if err != nil {
				return fmt.Errorf("the image's open file %d is a socket: %w", i, err)
			}
		case handle.KindTerminal:
			if err := checkTerminal(im, f.Terminal); err != nil {
				return fmt.Errorf("the image's open file %d is a terminal: %w", i, err)
			}
		case handle.KindEpoll, handle.KindSignalfd, handle.KindInotify, handle.KindPidfd:
		default:
			return fmt.Errorf("the image's open file %d is of kind %.40q, which this vos can't make", i, f.Kind)
		}
		if missing {
			return fmt.Errorf("the image's open file %d of kind %s is without what it needs", i, f.Kind)
		}
	}
	for _, p := range im.Processes {
		for j, d := range p.Descriptors {
			if d.File < 0 || d.File >= len(im.Files) || d.Number < 0 || d.Number > maxNumber || j > 0 && d.Number <= p.Descriptors[j-1].Number {
				return fmt.Errorf("the image's descriptor %d of process %d leads nowhere", d.Number, p.PID)
			}
		}
	}
	return nil
}

// maxNumber bounds the numbers of descriptors, as fs.nr_open does by default.
const maxNumber = 1<<20 - 1

// at returns where a path of the image is to be looked up.
func (p *planning) at(path string) string {
	if p.Map == nil {
		return path
	}
	return p.Map(path)
}

// numbers returns the descriptors that lead to file i.
func (p *planning) numbers(i int) (places []place) {
	for _, process := range p.image.Processes {
		for _, d := range process.Descriptors {
			if d.File == i {
				places = append(places, place{process.PID, d.Number})
			}
		}
	}
	return places
}

// refusal is one of making file i again.
func (p *planning) refusal(code api.Code, i int, detail, remedy string) api.Refusal {
	r := api.Refusal{Code: code, Subject: fmt.Sprintf("open file %d", i), Detail: detail, Remedy: remedy}
	if at := p.numbers(i); len(at) > 0 {
		r.Subject = subject(at[0].pid, at[0].fd)
	}
	return r
}

// given reports whether the caller gave file i, and by which number, or which it may
// be given by.
func (p *planning) given(i int) (fd int, ok bool) {
	for _, at := range p.numbers(i) {
		if p.Inherit[at.fd] != nil {
			return at.fd, true
		}
		fd = at.fd
	}
	return fd, false
}
