package descriptor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// Kept is the descriptors of a program, as an image has them.
type Kept struct {
	Files       []image.File
	Descriptors map[int][]image.Descriptor // by process, ascending
	Objects     []image.Object             // that follow those of Store.Objects
	Leaving     *Leaving                   // if there are connections and the program ends; the caller closes it
}

// dumping is one Dump.
type dumping struct {
	*looking
	store    Store
	handles  []handle.Handle
	files    map[place]int             // what descriptors lead to
	taken    []kernel.Raw              // copies of these
	memories map[uint64]int            // objects, by inode
	tables   map[uint64]*handle.Socket // unix sockets, by inode
	deleted  map[fileID]bool           // whose content is written down
	locks    map[processLock]bool      // whether they are written down
	kept     Kept
	ring     *kernel.Ring // for connections
	leaving  *Leaving
}

// Dump writes down what the descriptors lead to, while all processes are held still.
// What speaks against it is an error that wraps api.Refusals: of what has changed since
// Look, and of what only shows now.
func (f *Found) Dump(ctx context.Context, store Store) (_ *Kept, err error) {
	d := &dumping{looking: &f.looking, store: store, files: map[place]int{}, memories: map[uint64]int{}, deleted: map[fileID]bool{}, locks: map[processLock]bool{},
		kept: Kept{Descriptors: map[int][]image.Descriptor{}}}
	var refusals []api.Refusal
	if d.handles, refusals, err = d.list(); err != nil {
		return nil, err
	}
	more, err := d.judgeAgain(ctx)
	if err != nil {
		return nil, err
	}
	if refusals = append(refusals, more...); len(refusals) > 0 {
		return nil, joined(refusals)
	}
	groups, err := groupsOf(d.handles)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, raw := range d.taken {
			err = errors.Join(err, raw.Close())
		}
		if d.ring != nil {
			err = errors.Join(err, d.ring.Close())
		}
		if err != nil {
			err = errors.Join(err, d.leaving.Close())
		}
	}()
	if err := d.take(groups); err != nil {
		return nil, err
	}
	if err := d.leave(groups); err != nil {
		return nil, err
	}
	for i, g := range groups {
		if err := d.dump(g, d.taken[i], &d.kept.Files[i]); err != nil {
			return nil, err
		}
	}
	d.kept.Leaving = d.leaving
	return &d.kept, d.lostLocks()
}

// judgeAgain judges what was not there at Look, and asks the kinds about the rest.
func (d *dumping) judgeAgain(ctx context.Context) (refusals []api.Refusal, err error) {
	var fresh []handle.Handle
	for i := range d.handles {
		h := &d.handles[i]
		known, ok := d.known[place{h.PID, h.FD}]
		if !ok || known.File() != h.File() || known.Kind != h.Kind {
			fresh = append(fresh, *h)
			continue
		}
		h.Peers, h.Sharers = known.Peers, known.Sharers
		if h.Kind == handle.KindSocket {
			h.Socket = known.Socket
		}
		refusals = append(refusals, d.judgeOne(h)...)
	}
	if len(fresh) == 0 {
		return refusals, nil
	}
	more, err := d.judge(ctx, fresh)
	return append(refusals, more...), err
}

// take gives each group its place among the files, and takes a copy of its first
// descriptor.
func (d *dumping) take(groups []group) (err error) {
	pidfds := map[int]*os.File{}
	defer func() {
		for _, pidfd := range pidfds {
			err = errors.Join(err, pidfd.Close())
		}
	}()
	d.kept.Files = make([]image.File, len(groups))
	for i, g := range groups {
		for _, h := range g {
			d.files[place{h.PID, h.FD}] = i
		}
		h := g[0]
		pidfd := pidfds[h.PID]
		if pidfd == nil {
			if pidfd, err = kernel.OpenPidfd(h.PID); err != nil {
				return err
			}
			pidfds[h.PID] = pidfd
		}
		raw, err := kernel.TakeRaw(pidfd, h.FD)
		if err != nil {
			return err
		}
		d.taken = append(d.taken, raw)
	}
	for i := range d.handles {
		h := &d.handles[i]
		d.kept.Descriptors[h.PID] = append(d.kept.Descriptors[h.PID], image.Descriptor{
			Number: h.FD, File: d.files[place{h.PID, h.FD}], OnClose: h.Flags&handle.FlagCloseExec != 0})
	}
	return nil
}

// dump writes down one description.
func (d *dumping) dump(g group, raw kernel.Raw, f *image.File) error {
	h := g[0]
	*f = image.File{Kind: string(h.Kind), Flags: uint32(h.Flags) & statusFlags, Offset: h.Offset}
	for _, h := range g {
		if d.inherit[h.FD] {
			f.Kind = image.Inherited
			f.Was = h.Link
			return nil
		}
	}
	err := d.keepOwner(h, raw, f)
	if err == nil {
		err = kinds[h.Kind].dump(d, h, raw, f)
	}
	if err != nil {
		if len(api.Refusals(err)) > 0 {
			return err
		}
		return fmt.Errorf("keep %s (%s): %w", subject(h.PID, h.FD), leadsTo(h), err)
	}
	return nil
}

func joined(refusals []api.Refusal) error {
	errs := make([]error, len(refusals))
	for i, r := range refusals {
		errs[i] = r
	}
	return errors.Join(errs...)
}

// process returns a process of the program.
func (l *looking) process(pid int) *procfs.Process {
	return l.processes[slices.IndexFunc(l.processes, func(p *procfs.Process) bool { return p.PID() == pid })]
}
