package descriptor

import (
	"fmt"
	"slices"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// An inotify is kept with its watches, each by the path that leads to what it watches.
// Events that were not read are refused.
type inotify struct{}

func (inotify) look(l *looking, h *handle.Handle) (refusals []api.Refusal) {
	if len(h.Watches) == 0 {
		return nil
	}
	roots, err := handleRoots(l.process(h.PID))
	if err != nil {
		return []api.Refusal{refusal(codeHidden, h, fmt.Sprintf("what it watches can't be told: %v", err), "run vos as root")}
	}
	for _, w := range h.Watches {
		if path, err := l.watched(h, w, roots); err != nil {
			refusals = append(refusals, refusal(codeHidden, h, fmt.Sprintf("what it watches as %d can't be told: %v", w.Number, err), "none is known"))
		} else {
			l.watches[watch{h.PID, w.Device, w.Inode}] = path
		}
	}
	return refusals
}

// A watch is what an inotify of a process watches.
type watch struct {
	pid           int
	device, inode uint64
}

// watched returns the path of what is watched.
func (l *looking) watched(h *handle.Handle, w handle.Watch, roots map[uint64][]string) (string, error) {
	if path, ok := l.watches[watch{h.PID, w.Device, w.Inode}]; ok {
		if stat, err := statAt(path); err == nil && stat.Inode == w.Inode {
			return path, nil
		}
	}
	if len(w.FileHandle) == 0 {
		return "", fmt.Errorf("its file system does not tell")
	}
	err := fmt.Errorf("its file system is mounted nowhere")
	for _, root := range roots[w.Device] {
		var path string
		if path, err = kernel.PathOfHandle(root, w.FileHandleType, w.FileHandle); err != nil {
			continue
		}
		var stat kernel.RawStat
		if stat, err = statAt(path); err != nil {
			continue
		}
		if stat.Inode == w.Inode {
			return path, nil
		}
		err = fmt.Errorf("%s leads to something else", path)
	}
	return "", err
}

func statAt(path string) (kernel.RawStat, error) {
	root, err := kernel.OpenDirectory("/")
	if err != nil {
		return kernel.RawStat{}, err
	}
	defer root.Close()
	return statInRoot(root, path, true)
}

func (inotify) dump(d *dumping, h *handle.Handle, raw kernel.Raw, f *image.File) error {
	waiting, err := raw.Waiting()
	if err != nil {
		return err
	}
	if waiting > 0 {
		return refusal(codeWaiting, h, leadsTo(h)+", which has events that were not read", TryAgain)
	}
	for _, w := range slices.Backward(h.Watches) { // the kernel tells the newest first
		f.Inotify = append(f.Inotify, image.Inotify{ID: w.Number, Path: d.watches[watch{h.PID, w.Device, w.Inode}], Mask: w.Events, Inode: w.Inode})
	}
	return nil
}

func (inotify) plan(p *planning, i int) (refusals []api.Refusal) {
	for _, w := range p.image.Files[i].Inotify {
		stat, err := statInRoot(p.root, p.at(w.Path), true)
		switch {
		case err != nil:
			refusals = append(refusals, p.refusal(codeMissing, i, fmt.Sprintf("it watches %s: %v", w.Path, err), "put it back"))
		case stat.Inode != w.Inode && !p.Force && p.at(w.Path) == w.Path:
			refusals = append(refusals, p.refusal(codeChanged, i, "it watches "+w.Path+", which is another file", "put it back as it was, or take it as it is by --force-files"))
		}
	}
	return refusals
}

func (inotify) open(o *Opened, i int) (kernel.Raw, error) {
	return withFlags(o, i, func() (_ kernel.Raw, err error) {
		raw, err := kernel.NewInotify()
		if err != nil {
			return -1, err
		}
		for _, w := range o.image.Files[i].Inotify {
			if err := o.watch(raw, w); err != nil {
				_ = raw.Close()
				return -1, err
			}
		}
		return raw, nil
	})
}

func (o *Opened) watch(raw kernel.Raw, w image.Inotify) (err error) {
	const noFollow = 0o400000
	named, err := o.root.OpenRaw(o.at(w.Path), kernel.PathOnly|noFollow)
	if err != nil {
		return err
	}
	defer named.Close()
	return raw.AddWatch(named, w.ID, w.Mask)
}
