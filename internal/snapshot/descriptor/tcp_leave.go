package descriptor

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"time"

	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// A Leaving is the connections of a program that ends behind its checkpoint. None of
// their packets pass from the moment on at which their state was read:
//
//   - While vos holds the program a table of nf_tables drops them that is vos's own. It
//     is gone when vos is, and the connections go on as after any loss of packets.
//   - Before the program is ended (Hold) another table drops them, which stays for a
//     short time whatever becomes of vos.
//   - When it has ended (Ended) that table is to stay for a day, and vos's copies of the
//     connections are closed in repair mode: nothing tells the peers.
//
// A table that holds a connection says, too, that nobody has gone on with it since: what
// is restored is the connection as its peer knows it.
type Leaving struct {
	filter      *kernel.Netfilter
	own, held   string // tables
	connections []kernel.Connection
	copies      []kernel.Raw
	holds       bool
}

const (
	ownPrefix, heldPrefix = "vos-now-", "vos-held-"

	// crossing is how long packets are dropped if vos dies at the very moment at which a
	// program ends, or is there again.
	crossing = 10 * time.Second

	// HeldFor is how long connections wait for their restore.
	HeldFor = 24 * time.Hour
)

// heldName is how what holds an image's connections is called: no other table is removed.
var heldName = regexp.MustCompile("^" + heldPrefix + "[A-Z2-7]{26}$")

// leave begins to drop the packets of a program's connections.
func (d *dumping) leave(groups []group) (err error) {
	if !d.ends {
		return nil
	}
	var all []kernel.Connection
	for i, g := range groups {
		if h := g[0]; h.Kind == handle.KindSocket && h.Socket.Protocol == "tcp" && !d.inherited(h) {
			if c, ok := connectionOf(d.taken[i]); ok {
				all = append(all, c)
			}
		}
	}
	if len(all) == 0 {
		return nil
	}
	name := rand.Text()
	l := &Leaving{own: ownPrefix + name, held: heldPrefix + name, connections: all}
	if l.filter, err = kernel.OpenNetfilter(); err != nil {
		return err
	}
	if err := l.filter.Replace([]kernel.Block{{Table: l.own, Connections: all, Owned: true}}); err != nil {
		return errors.Join(err, l.filter.Close())
	}
	d.leaving = l
	return nil
}

// connectionOf returns the two ends of a connection.
func connectionOf(raw kernel.Raw) (c kernel.Connection, ok bool) {
	local, err := raw.LocalName()
	if err != nil {
		return c, false
	}
	remote, err := raw.PeerName()
	if err != nil {
		return c, false
	}
	return connectionBetween(local, remote)
}

func connectionBetween(local, remote []byte) (c kernel.Connection, ok bool) {
	c = kernel.Connection{Local: inetAddress(local), Remote: inetAddress(remote)}
	return c, c.Local.IsValid() && c.Remote.IsValid() && unmapped(c.Local).Is4() == unmapped(c.Remote).Is4()
}

func unmapped(a netip.AddrPort) netip.Addr { return a.Addr().Unmap() }

func (l *Leaving) add(raw kernel.Raw) error {
	if l == nil {
		return errors.New("it was connected while it was held")
	}
	own, err := raw.Copy()
	if err == nil {
		l.copies = append(l.copies, own)
	}
	return err
}

// Name says what holds the connections, for image.Image; "" is that there are none.
func (l *Leaving) Name() string {
	if l == nil {
		return ""
	}
	return l.held
}

// Hold is called before the program is ended.
func (l *Leaving) Hold() error {
	if l == nil {
		return nil
	}
	l.holds = true
	return l.filter.Replace([]kernel.Block{{Table: l.held, Connections: l.connections, Limit: crossing}})
}

// Ended is called when SIGKILL was sent to the program. It says what stays behind.
func (l *Leaving) Ended() string {
	if l == nil {
		return ""
	}
	l.holds = false
	err := l.mute()
	if replaced := l.filter.Replace([]kernel.Block{{Table: l.held, Connections: l.connections, Limit: HeldFor}}); replaced != nil {
		return fmt.Sprintf("%d connections wait for the restore for %v only: %v", len(l.connections), crossing, replaced)
	}
	note := fmt.Sprintf("%d connections wait for the restore, at most %v: until then nf_tables drops their packets (table inet %s)", len(l.connections), HeldFor, l.held)
	if err != nil {
		note += fmt.Sprintf("; some of their peers may have been told of an end: %v", err)
	}
	return note
}

// mute lets the copies be closed without a word to the peers.
func (l *Leaving) mute() (err error) {
	for _, raw := range l.copies {
		err = errors.Join(err, raw.SetOption(levelTCP, tcpRepair, word(repairOn)), raw.Close())
	}
	l.copies = nil
	return err
}

// Close gives all up that was not completed: where the program was not ended its
// connections go on.
func (l *Leaving) Close() (err error) {
	if l == nil {
		return nil
	}
	for _, raw := range l.copies {
		err = errors.Join(err, raw.Close())
	}
	l.copies = nil
	if l.holds {
		l.holds = false
		err = errors.Join(err, l.filter.Replace(nil, l.held))
	}
	return errors.Join(err, l.filter.Close())
}

// isConnection reports whether a socket of an image is a connection of TCP.
func isConnection(s *image.Socket) bool {
	return s != nil && s.State == stateConnected && s.Family != kernel.FamilyUnix && isTCP(s)
}
