package descriptor

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// A pipe, or a FIFO, is kept with what is in it, if all of its ends are the program's.
// The ends of a pipe find each other again by the inode that it had; a FIFO is opened
// by its path.
type pipe struct{}

func (pipe) look(l *looking, h *handle.Handle) []api.Refusal {
	if others := l.outside(h.Peers); len(others) > 0 {
		return []api.Refusal{refusal(codeOutside, h, leadsTo(h)+", whose other end has "+holdersText(others), inheritRemedy(h.FD))}
	}
	if h.Kind != handle.KindFIFO {
		return nil
	}
	if h.Deleted {
		return []api.Refusal{refusal(codeDeleted, h, leadsTo(h)+", which no name leads to any more", "close it, and try again")}
	}
	return l.atPath(h)
}

const flagPacket = 0o40000 // O_DIRECT: each write is a packet

func (pipe) dump(d *dumping, h *handle.Handle, raw kernel.Raw, f *image.File) error {
	size, err := raw.PipeSize()
	if err != nil {
		return err
	}
	f.Pipe = &image.Pipe{ID: h.Inode, Size: size, Path: h.Path, Packet: f.Flags&flagPacket != 0}
	if !h.Flags.Readable() {
		return nil
	}
	content, err := pipeContent(raw, size)
	if err != nil {
		return err
	}
	if len(content) == 0 {
		return nil
	}
	for _, o := range d.handles {
		if o.Kind == h.Kind && o.Inode == h.Inode && o.Flags&flagPacket != 0 {
			return refusal(codePackets, h, leadsTo(h)+", which has packets in it", TryAgain)
		}
	}
	// One of several descriptions of the reading end has it.
	for _, other := range d.kept.Files {
		if other.Pipe != nil && other.Pipe.ID == h.Inode && len(other.Content) > 0 {
			return nil
		}
	}
	f.Content = content
	return nil
}

// pipeContent copies what is in a pipe, which stays there.
func pipeContent(raw kernel.Raw, size int) (content []byte, err error) {
	waiting, err := raw.Waiting()
	if err != nil || waiting == 0 {
		return nil, err
	}
	reads, writes, err := kernel.NewPipe(0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, reads.Close(), writes.Close()) }()
	if err := reads.SetPipeSize(size); err != nil {
		return nil, err
	}
	if n, err := raw.Tee(writes, waiting); err != nil || n != waiting {
		return nil, errors.Join(err, fmt.Errorf("%d of %d bytes in it could be copied", n, waiting))
	}
	content = make([]byte, 0, waiting)
	for len(content) < waiting {
		n, err := reads.Read(content[len(content):waiting])
		if err != nil {
			return nil, err
		}
		content = content[:len(content)+n]
	}
	return content, nil
}

func (pipe) plan(p *planning, i int) []api.Refusal {
	f := p.image.Files[i].Pipe
	if f.Path == "" {
		return nil
	}
	stat, err := statInRoot(p.root, p.at(f.Path), false)
	switch {
	case err != nil:
		return []api.Refusal{p.refusal(codeMissing, i, fmt.Sprintf("%s can't be opened: %v", f.Path, err), "put the FIFO back: mkfifo "+f.Path)}
	case stat.Mode&fs.ModeNamedPipe == 0:
		return []api.Refusal{p.refusal(codeChanged, i, f.Path+" is no FIFO", "put the FIFO back: mkfifo "+f.Path)}
	}
	return nil
}

// pipeEnds are both ends of a pipe that is made again. They are taken by the first
// description of each; others open them anew.
type pipeEnds struct {
	reads, writes         kernel.Raw
	readTaken, writeTaken bool
}

func (pipe) open(o *Opened, i int) (kernel.Raw, error) {
	f := &o.image.Files[i]
	ends := o.pipes[f.Pipe.ID]
	if ends == nil {
		var err error
		if ends, err = o.newPipe(f.Pipe); err != nil {
			return -1, err
		}
	}
	end, taken := ends.reads, &ends.readTaken
	access := handle.Flags(f.Flags).Access()
	if access == handle.AccessWrite {
		end, taken = ends.writes, &ends.writeTaken
	}
	if *taken || access == handle.AccessReadWrite {
		return end.Reopen(int(f.Flags) & statusFlags)
	}
	*taken = true
	raw, err := end.Copy()
	if err != nil {
		return -1, err
	}
	if err := raw.SetFlags(int(f.Flags) & settable); err != nil {
		_ = raw.Close()
		return -1, err
	}
	return raw, nil
}

// newPipe makes the pipe with what is in it. Both ends stay open until o is closed.
func (o *Opened) newPipe(p *image.Pipe) (*pipeEnds, error) {
	ends, err := o.pipeEnds(p)
	if err != nil {
		return nil, err
	}
	o.pipes[p.ID] = ends
	if err := ends.reads.SetPipeSize(p.Size); err != nil {
		return nil, err
	}
	for _, f := range o.image.Files {
		if f.Pipe == nil || f.Pipe.ID != p.ID || len(f.Content) == 0 {
			continue
		}
		if err := fill(ends.writes, f.Content); err != nil {
			return nil, err
		}
	}
	return ends, nil
}

func (o *Opened) pipeEnds(p *image.Pipe) (*pipeEnds, error) {
	if p.Path == "" {
		reads, writes, err := kernel.NewPipe(0)
		if err != nil {
			return nil, err
		}
		o.scaffold = append(o.scaffold, reads, writes)
		return &pipeEnds{reads: reads, writes: writes}, nil
	}
	// Of a FIFO all open one end anew, which is never given.
	named, err := o.root.OpenRaw(o.at(p.Path), kernel.PathOnly)
	if err != nil {
		return nil, err
	}
	o.scaffold = append(o.scaffold, named)
	stat, err := named.Stat()
	if err != nil {
		return nil, err
	}
	if stat.Mode&fs.ModeNamedPipe == 0 {
		return nil, fmt.Errorf("%s is no FIFO", p.Path)
	}
	both, err := named.Reopen(syscall.O_RDWR | syscall.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	o.scaffold = append(o.scaffold, both)
	waiting, err := both.Waiting()
	if err == nil && waiting > 0 {
		err = fmt.Errorf("somebody has written to %s", p.Path)
	}
	return &pipeEnds{reads: both, writes: both, readTaken: true, writeTaken: true}, err
}

// fill writes content without waiting.
func fill(to kernel.Raw, content []byte) error {
	const nonBlock = 0o4000
	flags, err := to.Flags()
	if err != nil {
		return err
	}
	if err := to.SetFlags(flags | nonBlock); err != nil {
		return err
	}
	for rest := content; len(rest) > 0; {
		n, err := to.Write(rest)
		if err != nil {
			return fmt.Errorf("put back %d bytes of which %d are left: %w", len(content), len(rest), err)
		}
		rest = rest[n:]
	}
	return to.SetFlags(flags)
}
