package handle

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// connectTimeout is what one address gets to answer.
const connectTimeout = 5 * time.Second

// createdMode is the permissions of a file that is made.
const createdMode = 0o640

// An opened resource is what a descriptor will be bound to.
type opened struct {
	*description
	foreign bool         // another process has it as well: its flags are not ours to set
	root    *procfs.Root // below which a file was made for it; nil if none was
	path    string       // of that file
}

// open opens a resource in the world of a process: below its root directory, in its
// network, by the rights of its user, or, with asCaller, by those of vOS. Nothing
// of the program is touched. What can't be had is a refusal.
func (r resource) open(ctx context.Context, p *procfs.Process, old *description, asCaller bool) (*opened, error) {
	if r.kind == toFD {
		return r.openForeign()
	}
	status, err := p.Status()
	if err != nil {
		return nil, err
	}
	var identity *kernel.Identity
	if !asCaller {
		identity = &kernel.Identity{UID: status.UIDs.Filesystem, GID: status.GIDs.Filesystem, Groups: status.Groups}
	}
	o := &opened{}
	var file *os.File
	switch r.kind {
	case toFile, toAppend:
		o.path = r.path
		file, o.root, err = r.openFile(p, old, identity)
	default:
		file, err = r.openConnection(ctx, p, identity)
	}
	if err != nil {
		return nil, r.refused(ctx, err, status.UIDs.Filesystem)
	}
	link, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(file.Fd())))
	if err == nil {
		o.description, err = describe(file, link)
	}
	if err == nil {
		err = r.prepare(o.description, old)
	}
	if err != nil {
		o.description = &description{file: file}
		err = errors.Join(err, o.undo())
		o.close()
		return nil, err
	}
	return o, nil
}

// undo takes out a file that was made.
func (o *opened) undo() error {
	if o.root == nil {
		return nil
	}
	return o.root.Remove(o.path, o.file)
}

func (o *opened) close() {
	o.description.close()
	if o.root != nil {
		o.root.Close()
	}
}

// statusFlags are what F_SETFL can carry over. Readiness by signal is not among
// them: it is set within the process, see rebindCalls.
const statusFlags = syscall.O_APPEND | syscall.O_NONBLOCK | syscall.O_DIRECT | syscall.O_NOATIME

// prepare gives a new description what the old one has of flags and options.
func (r resource) prepare(d, old *description) error {
	flags := old.flags & statusFlags
	if r.kind == toAppend {
		flags |= syscall.O_APPEND
	}
	if d.class != classFile || old.class != classFile {
		flags &= syscall.O_NONBLOCK
	}
	if err := kernel.SetFileFlags(d.file, flags); err != nil {
		return err
	}
	d.flags = d.flags&^statusFlags | flags
	if old.flags&syscall.O_ASYNC != 0 {
		if err := kernel.CopySignalOwner(d.file, old.file); err != nil {
			return err
		}
	}
	if d.class == classConnection && old.class == classConnection {
		return kernel.CopySocketOptions(d.file, old.file)
	}
	return nil
}

// openFile opens a file, or makes it: made is then the root directory below which.
func (r resource) openFile(p *procfs.Process, old *description, identity *kernel.Identity) (file *os.File, made *procfs.Root, err error) {
	root, err := p.OpenRoot()
	if err != nil {
		return nil, nil, err
	}
	flags := old.flags&(syscall.O_ACCMODE|syscall.O_DSYNC|syscall.O_SYNC) | syscall.O_NONBLOCK | syscall.O_NOCTTY
	if old.socket != nil { // standard output of a service
		flags = flags&^syscall.O_ACCMODE | syscall.O_RDWR
	}
	created := false
	err = kernel.As(identity, nil, func() (err error) {
		file, err = root.OpenFile(r.path, flags)
		if errors.Is(err, fs.ErrNotExist) && Flags(flags).Writable() {
			file, err = root.Create(r.path, flags, createdMode)
			created = err == nil
		}
		return err
	})
	if err != nil {
		return nil, nil, errors.Join(err, root.Close())
	}
	stat, err := kernel.StatFile(file)
	if err == nil && stat.Mode != 0 && stat.Mode != fs.ModeNamedPipe && (stat.Mode&fs.ModeCharDevice == 0 || !plainDevice(stat.Special)) {
		err = api.Refusal{Code: codeWrongType, Subject: r.path, Detail: "it is neither a file nor a pipe nor a terminal",
			Remedy: "name one of these"}
	}
	if err != nil {
		return nil, nil, errors.Join(err, file.Close(), root.Close())
	}
	if !created {
		return file, nil, root.Close()
	}
	return file, root, nil
}

func (r resource) openConnection(ctx context.Context, p *procfs.Process, identity *kernel.Identity) (file *os.File, err error) {
	network, err := otherNetwork(p)
	if err != nil {
		return nil, err
	}
	if network != nil {
		defer network.Close()
	}
	if r.kind == toUnix {
		return r.openUnix(p, network, identity)
	}
	addresses, err := net.DefaultResolver.LookupNetIP(ctx, "ip", r.host)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(r.port, 10, 16)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, a := range addresses {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		err := kernel.As(identity, network, func() (err error) {
			file, err = kernel.Connect(netip.AddrPortFrom(a, uint16(port)), connectTimeout)
			return err
		})
		if err == nil {
			return file, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// openUnix connects to a unix socket. One with a path is opened first, below the
// program's root, and connected to by what was opened.
func (r resource) openUnix(p *procfs.Process, network *os.File, identity *kernel.Identity) (file *os.File, err error) {
	name := r.path
	if name[0] != '@' {
		root, err := p.OpenRoot()
		if err != nil {
			return nil, err
		}
		defer root.Close()
		var at *os.File
		err = kernel.As(identity, nil, func() (err error) {
			at, err = root.OpenFile(r.path, kernel.PathOnly)
			return err
		})
		if err != nil {
			return nil, err
		}
		defer at.Close()
		name = "/proc/self/fd/" + strconv.Itoa(int(at.Fd()))
	}
	err = kernel.As(identity, network, func() (err error) {
		file, err = kernel.ConnectUnix(name, connectTimeout)
		return err
	})
	return file, err
}

// otherNetwork opens the network namespace of a process, where it is not vOS's own.
func otherNetwork(p *procfs.Process) (*os.File, error) {
	self, err := procfs.Open(os.Getpid())
	if err != nil {
		return nil, err
	}
	defer self.Close()
	own, err := self.Namespaces()
	if err != nil {
		return nil, err
	}
	its, err := p.Namespaces()
	if err != nil || its.Net == own.Net {
		return nil, err
	}
	return p.OpenNetwork()
}

// openForeign shares what another process has open.
func (r resource) openForeign() (*opened, error) {
	link := ""
	file, err := takeFrom(r.pid, r.fd)
	if err == nil {
		var p *procfs.Process
		if p, err = procfs.Open(r.pid); err == nil {
			link, err = p.Descriptor(r.fd)
			p.Close()
		}
		if err != nil {
			file.Close()
		}
	}
	switch {
	case errors.Is(err, syscall.EBADF), errors.Is(err, fs.ErrNotExist):
		return nil, closedRefusal(r.pid, r.fd)
	case errors.Is(err, procfs.ErrGone), errors.Is(err, syscall.ESRCH), errors.Is(err, syscall.EINVAL):
		return nil, api.Refusal{Code: codeUnreachable, Subject: fmt.Sprintf("process %d", r.pid),
			Detail: "there is no such process", Remedy: "vos ps lists what runs now"}
	case err != nil:
		return nil, r.refused(context.Background(), err, os.Geteuid())
	}
	d, err := describe(file, link)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	if err := d.replaceable(r.pid, r.fd); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return &opened{description: d, foreign: true}, nil
}

// takeFrom returns a copy of a descriptor of a process.
func takeFrom(pid, fd int) (*os.File, error) {
	pidfd, err := kernel.OpenPidfd(pid)
	if err != nil {
		return nil, err
	}
	defer pidfd.Close()
	return kernel.TakeDescriptor(pidfd, fd)
}

// refused words why a resource can't be had.
func (r resource) refused(ctx context.Context, err error, uid int) error {
	if len(api.Refusals(err)) > 0 || ctx.Err() != nil || errors.Is(err, procfs.ErrGone) || errors.Is(err, kernel.ErrNotSupported) {
		return err
	}
	what := r.path
	switch r.kind {
	case toTCP:
		what = net.JoinHostPort(r.host, r.port)
	case toFD:
		what = subject(r.pid, r.fd)
	}
	if errors.Is(err, fs.ErrPermission) && r.kind != toFD {
		return api.Refusal{Code: codeNoPermission, Subject: what,
			Detail: fmt.Sprintf("the program's user (%d) may not use it: %v", uid, err),
			Remedy: "give that user the right, or say --as-caller as root"}
	}
	if errors.Is(err, fs.ErrPermission) {
		return err
	}
	return api.Refusal{Code: codeUnreachable, Subject: what, Detail: err.Error(),
		Remedy: "see to it that it exists and answers where the program runs, and try again"}
}
