package descriptor

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"syscall"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// A connection that was made by a name has that name at the end that was accepted, and it
// is what the other one is connected to. It is kept where both ends are the program's and
// it still listens at the name: it is made again by connecting there, as soon as it
// listens again.

// nameless returns what speaks against the connections by name that the program has.
func (l *looking) nameless() (refusals []api.Refusal) {
	listens := map[string]bool{}
	for _, h := range l.known {
		if s := h.Socket; s != nil && s.Family == "unix" && s.State == "listen" {
			listens[fmt.Sprint(s.Type, s.Abstract, s.Name)] = true
		}
	}
	places := slices.SortedFunc(maps.Keys(l.known), func(a, b place) int { return 2*(a.pid-b.pid) + min(1, max(-1, a.fd-b.fd)) })
	for _, at := range places {
		h := l.known[at]
		s := h.Socket
		if s == nil || s.Family != "unix" || s.Type == "dgram" || s.State != stateConnected || s.Name == "" || l.inherited(&h) {
			continue
		}
		if !listens[fmt.Sprint(s.Type, s.Abstract, s.Name)] {
			refusals = append(refusals, refuseNameless(&h))
		}
	}
	return refusals
}

func refuseNameless(h *handle.Handle) api.Refusal {
	return refusal(codeConnection, h, leadsTo(h)+", a connection by a name at which the program does not listen any more", "try again when it is closed")
}

// keepName makes sure that a connection of the program can be made by its name again.
func (d *dumping) keepName(h *handle.Handle, s *image.Socket) error {
	if unixName(s.Local) == "" {
		return nil
	}
	for i := range d.handles {
		l := d.handles[i].Socket
		if l != nil && l.Family == "unix" && l.State == "listen" && l.Type == h.Socket.Type && l.Abstract == h.Socket.Abstract && l.Name == h.Socket.Name {
			return nil
		}
	}
	return refuseNameless(h)
}

// listener returns the image's socket at which a connection is made again: -1 where it has
// no name, or none that matters, as its other end is gone.
func listener(im *image.Image, s *image.Socket) (int, error) {
	name, needed := s.Local, true
	if unixName(name) == "" {
		// The other end tells, if there is one.
		name, needed = s.Peer, false
	}
	if s.State != stateConnected || s.Type == socketDgram || unixName(name) == "" {
		return -1, nil
	}
	i := slices.IndexFunc(im.Files, func(f image.File) bool { return listensAt(f.Socket, s.Type, name) })
	if i < 0 && needed {
		return -1, fmt.Errorf("it is connected by the name %.100q, at which nothing of the image listens", unixName(name))
	}
	return i, nil
}

func listensAt(s *image.Socket, kind int, name []byte) bool {
	return s != nil && s.Family == kernel.FamilyUnix && s.State == stateListening && s.Type == kind && bytes.Equal(s.Local, name)
}

// order returns the numbers of an image's files, those first at which others connect.
func order(im *image.Image) (all []int) {
	for i := range im.Files {
		all = append(all, i)
	}
	slices.SortStableFunc(all, func(a, b int) int {
		first := func(i int) int {
			if s := im.Files[i].Socket; s != nil && s.Family == kernel.FamilyUnix && s.State == stateListening {
				return 0
			}
			return 1
		}
		return first(a) - first(b)
	})
	return all
}

// connectAt makes the connections again that were made by the name of a socket of the
// image, as soon as it listens. Others who connect in this moment are turned away.
func (o *Opened) connectAt(listening kernel.Raw, at int) error {
	for i := range o.image.Files {
		s := o.image.Files[i].Socket
		if s == nil || s.Family != kernel.FamilyUnix || o.pairs[s.ID] != nil || s.PeerID != 0 && o.pairs[s.PeerID] != nil {
			continue
		}
		if l, err := listener(o.image, s); err != nil || l != at {
			continue
		}
		client, accepted, err := connectUnix(listening, o.image.Files[at].Socket)
		if err != nil {
			return err
		}
		o.scaffold = append(o.scaffold, client, accepted)
		pair := &pairEnds{ends: [2]kernel.Raw{client, accepted}}
		if unixName(s.Local) != "" {
			pair.ends[0], pair.ends[1] = accepted, client
		}
		o.pairs[s.ID] = pair
	}
	return nil
}

// connectUnix connects to a socket that listens, and accepts the connection.
func connectUnix(listening kernel.Raw, l *image.Socket) (client, accepted kernel.Raw, err error) {
	name := l.Local
	if l.Path != nil { // it may have been renamed
		name = kernel.UnixAddress(l.Path.Path)
	}
	if client, err = kernel.NewSocket(kernel.FamilyUnix, l.Type|syscall.SOCK_NONBLOCK, 0); err != nil {
		return -1, -1, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("connect to %.100q: %w", unixName(name), err), client.Close())
		}
	}()
	for connected := false; ; {
		if !connected {
			err = client.Connect(name)
			if connected = err == nil; !connected && !errors.Is(err, syscall.EAGAIN) { // others fill the queue
				return -1, -1, err
			}
		}
		if accepted, err = listening.Accept(); err != nil {
			return -1, -1, err
		}
		who, err := number(accepted, levelSocket, soCredentials)
		if err == nil && who == os.Getpid() {
			return client, accepted, nil
		}
		if err = errors.Join(err, accepted.Close()); err != nil {
			return -1, -1, err
		}
	}
}
