package descriptor

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// A terminal is a pseudo terminal whose master belongs to the program, with its settings,
// size, and who is in the foreground. It gets its number back, by which processes and the
// files of their terminal know it. What was typed and not read, or written and not shown,
// can't be read without being taken: the checkpoint is to be tried again.
type terminal struct{}

// isMaster reports whether a handle is of a master.
func isMaster(h *handle.Handle) bool {
	major, minor := kernel.Device(h.Special)
	return h.Kind == handle.KindTerminal && major == 5 && minor == 2 && h.Terminal >= 0
}

func isSlave(h *handle.Handle) bool {
	major, _ := kernel.Device(h.Special)
	return h.Kind == handle.KindTerminal && major >= 136 && major <= 143
}

// HasMaster reports whether the master of a pseudo terminal is the program's.
func (f *Found) HasMaster(number int) bool { return f.masters[number] }

// HasMaster is the same of what was kept.
func (k *Kept) HasMaster(number int) bool {
	return slices.ContainsFunc(k.Files, func(f image.File) bool { return f.Terminal != nil && f.Terminal.Master && f.Terminal.Index == number })
}

func (terminal) look(l *looking, h *handle.Handle) []api.Refusal {
	refuse := func(detail, remedy string) []api.Refusal {
		return []api.Refusal{refusal(codeTerminal, h, leadsTo(h)+", "+detail, remedy)}
	}
	switch {
	case isMaster(h):
		return nil
	case !isSlave(h):
		return refuse("which is no pseudo terminal", inheritRemedy(h.FD))
	case !l.masters[h.Terminal]:
		return refuse("whose other end is not the program's", inheritRemedy(h.FD))
	}
	if others := l.outside(h.Peers); len(others) > 0 {
		return refuse("which "+holdersText(others)+" has open, too", "end that first")
	}
	var own syscall.Stat_t
	if err := syscall.Stat(kernel.SlavePath(h.Terminal), &own); err != nil || own.Ino != h.Inode || own.Rdev != h.Special {
		return refuse("which is not "+kernel.SlavePath(h.Terminal)+" here", "run vos in the same namespaces")
	}
	return nil
}

func (terminal) dump(d *dumping, h *handle.Handle, raw kernel.Raw, f *image.File) error {
	waiting, err := waitingIn(raw)
	if err != nil && !errors.Is(err, syscall.EIO) { // nobody has the other end open
		return err
	}
	if waiting > 0 {
		return refusal(codeWaiting, h, fmt.Sprintf("%s, from which %d bytes were not read", leadsTo(h), waiting), TryAgain)
	}
	f.Offset = 0
	f.Terminal = &image.Terminal{Index: h.Terminal, Master: isMaster(h)}
	if !f.Terminal.Master {
		return nil
	}
	return keepMaster(raw, f.Terminal)
}

// keepMaster writes down what a master tells.
func keepMaster(raw kernel.Raw, t *image.Terminal) error {
	settings, err := raw.Settings()
	if err != nil {
		return err
	}
	size, err := raw.TerminalSize()
	if err != nil {
		return err
	}
	if t.Foreground, err = raw.Foreground(); err != nil {
		return err
	}
	if t.Packet, err = raw.PacketMode(); err != nil {
		return err
	}
	if t.Locked, err = raw.Locked(); err != nil {
		return err
	}
	var node syscall.Stat_t
	if err := syscall.Stat(kernel.SlavePath(t.Index), &node); err != nil {
		return &os.PathError{Op: "stat", Path: kernel.SlavePath(t.Index), Err: err}
	}
	t.Settings, t.Window = settings[:], size
	t.UID, t.GID, t.Mode = node.Uid, node.Gid, node.Mode&0o7777
	return nil
}

func (terminal) plan(p *planning, i int) []api.Refusal {
	t := p.image.Files[i].Terminal
	if !t.Master || p.Terminals.has(t.Index) {
		return nil
	}
	if _, err := os.Stat(kernel.SlavePath(t.Index)); err == nil {
		return []api.Refusal{p.refusal(codeTerminalTaken, i, "somebody else has the pseudo terminal "+kernel.SlavePath(t.Index), "close that terminal")}
	}
	return nil
}

// checkTerminal makes sure that an image's terminal can be made.
func checkTerminal(im *image.Image, t *image.Terminal) error {
	const most = 1 << 20
	switch {
	case t == nil || t.Index < 0 || t.Index >= most:
		return errors.New("it has no number that a pseudo terminal can have")
	case t.Master && len(t.Settings) != len(kernel.TerminalSettings{}):
		return fmt.Errorf("it has settings of %d bytes", len(t.Settings))
	case !t.Master && !slices.ContainsFunc(im.Files, func(f image.File) bool { return f.Terminal != nil && f.Terminal.Master && f.Terminal.Index == t.Index }):
		return fmt.Errorf("the image does not have the master of pseudo terminal %d", t.Index)
	}
	return nil
}

// Terminals are an image's pseudo terminals, made in vos's own process.
type Terminals struct{ masters map[int]kernel.Raw }

// OpenTerminals makes the pseudo terminals of an image, before its processes, which they
// control. The caller closes them once all processes have theirs.
func OpenTerminals(im *image.Image) (_ *Terminals, err error) {
	t := &Terminals{masters: map[int]kernel.Raw{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Close())
		}
	}()
	for i := range im.Files {
		f := im.Files[i].Terminal
		if f == nil || !f.Master {
			continue
		}
		if err := checkTerminal(im, f); err != nil {
			return nil, err
		}
		raw, err := kernel.NewTerminal(f.Index)
		if errors.Is(err, syscall.EBUSY) {
			return nil, api.Refusal{Code: codeTerminalTaken, Subject: kernel.SlavePath(f.Index), Detail: "somebody else has this pseudo terminal", Remedy: "close that terminal"}
		}
		if err != nil {
			return nil, err
		}
		t.masters[f.Index] = raw
		if err := makeMaster(raw, f); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func makeMaster(raw kernel.Raw, t *image.Terminal) error {
	if err := raw.SetSettings(kernel.TerminalSettings(t.Settings)); err != nil {
		return err
	}
	if err := raw.SetTerminalSize(t.Window); err != nil {
		return err
	}
	if err := raw.SetPacketMode(t.Packet); err != nil {
		return err
	}
	if err := os.Chown(kernel.SlavePath(t.Index), int(t.UID), int(t.GID)); err != nil {
		return err
	}
	if err := syscall.Chmod(kernel.SlavePath(t.Index), t.Mode&0o7777); err != nil {
		return &os.PathError{Op: "chmod", Path: kernel.SlavePath(t.Index), Err: err}
	}
	return raw.SetLocked(false) // until the other end is open
}

func (t *Terminals) has(number int) bool {
	if t == nil {
		return false
	}
	_, ok := t.masters[number]
	return ok
}

// Slave opens the other end of a pseudo terminal.
func (t *Terminals) Slave(number int) (*os.File, error) {
	if !t.has(number) {
		return nil, fmt.Errorf("the image does not have the master of pseudo terminal %d", number)
	}
	return kernel.OpenTerminal(number)
}

// Close closes vos's own descriptors of them.
func (t *Terminals) Close() error {
	var errs []error
	for _, raw := range t.masters {
		errs = append(errs, raw.Close())
	}
	t.masters = nil
	return errors.Join(errs...)
}

func (terminal) open(o *Opened, i int) (kernel.Raw, error) {
	f := &o.image.Files[i]
	if !o.Terminals.has(f.Terminal.Index) {
		return -1, fmt.Errorf("pseudo terminal %d was not made", f.Terminal.Index)
	}
	master := o.Terminals.masters[f.Terminal.Index]
	if !f.Terminal.Master {
		return withFlags(o, i, func() (kernel.Raw, error) { return master.OpenSlave(int(f.Flags) & syscall.O_ACCMODE) })
	}
	if f.Terminal.Locked {
		o.later = append(o.later, func() error { return master.SetLocked(true) })
	}
	return withFlags(o, i, master.Copy)
}
