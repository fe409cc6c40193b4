package descriptor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// A Returning is the connections that a program gets back. They are made in repair mode,
// and all of their packets are dropped: by the table that has held them since the
// program ended (see Leaving), and by one of vos's own. A vos that is killed leaves what
// there was before: its connections are closed without a word to their peers.
//
//   - Ready takes them out of repair mode, when the program is all but there: in that
//     mode it couldn't use them. The table that has held them now stays for a short time
//     only, whatever becomes of vos: that is how long the program's packets are dropped
//     if vos dies at this very moment.
//   - Go, when the program is there, removes both tables, and tells the peers.
type Returning struct {
	filter      *kernel.Netfilter
	own, held   string // tables
	connections []kernel.Connection
	made        []returned
	ready, gone bool
}

// returned is one of them.
type returned struct {
	raw kernel.Raw
	s   *image.Socket
}

// checkConnection makes sure that what an image says of a connection can be made.
func checkConnection(s *image.Socket) error {
	if !isConnection(s) {
		return nil
	}
	if _, ok := connectionBetween(s.Local, s.Peer); !ok || s.Protocol != levelTCP {
		return errors.New("it is connected from nowhere, or to nowhere")
	}
	t := s.TCP
	if t == nil {
		return nil
	}
	const windowBytes, most = 20, 1 << 30
	if len(t.Window) != windowBytes || len(t.Options) > 8 || t.SendBuffer < 0 || t.SendBuffer > most || t.ReceiveBuffer < 0 || t.ReceiveBuffer > most {
		return errors.New("the state of the connection is none")
	}
	for _, o := range t.Options {
		if len(o.Value) != 4 || !slices.Contains([]int{optionSegment, optionScales, optionSelective, optionTimestamps}, o.Name) {
			return fmt.Errorf("the connection has option %d, which this vos does not know", o.Name)
		}
	}
	return nil
}

// planConnection returns what speaks against going on with a connection.
func (p *planning) planConnection(i int, s *image.Socket) []api.Refusal {
	if p.CloseConnections {
		return nil
	}
	what := fmt.Sprintf("its connection from %s to %s ", inetText(s.Local), inetText(s.Peer))
	lost := func(why string) []api.Refusal {
		return []api.Refusal{p.refusal(codeLost, i, what+why, "--close-connections: the program is told that its connections have ended")}
	}
	if s.TCP == nil || p.image.Held == "" {
		return lost("went on with the program, which was not ended by its checkpoint")
	}
	c, _ := connectionBetween(s.Local, s.Peer)
	held, err := p.filter.Blocked(p.image.Held, c)
	if err != nil {
		return []api.Refusal{p.refusal(codeLost, i, what+"can't be found: "+err.Error(), "run vos with CAP_NET_ADMIN")}
	}
	if !held {
		return lost(fmt.Sprintf("is not held any more: it was restored already, more than %v ago was its end, or the machine or its network namespace is another one", HeldFor))
	}
	raw, err := newSocket(s)
	if err == nil {
		if err = raw.SetOption(levelTCP, tcpRepair, word(repairOn)); err == nil {
			err = raw.Bind(s.Local)
		}
		err = errors.Join(err, raw.Close())
	}
	if err != nil {
		return []api.Refusal{p.refusal(codeAddress, i, fmt.Sprintf("a socket at %s can't be made: %v", inetText(s.Local), err), "end what has the address, or give this machine the address")}
	}
	return nil
}

// block begins to drop the packets of the image's connections.
func (o *Opened) block() error {
	if o.CloseConnections {
		return nil
	}
	r := &Returning{held: o.image.Held, own: ownPrefix + strings.TrimPrefix(o.image.Held, heldPrefix)}
	for i := range o.image.Files {
		if s := o.image.Files[i].Socket; isConnection(s) {
			c, _ := connectionBetween(s.Local, s.Peer)
			r.connections = append(r.connections, c)
		}
	}
	if len(r.connections) == 0 {
		return nil
	}
	var err error
	if r.filter, err = kernel.OpenNetfilter(); err != nil {
		return err
	}
	o.returning = r
	return r.filter.Replace([]kernel.Block{{Table: r.own, Connections: r.connections, Owned: true}})
}

// openConnection makes a connection again, in repair mode, with what it has received and
// sent. What was not sent yet comes later (see Ready).
func (o *Opened) openConnection(i int, s *image.Socket) (_ kernel.Raw, err error) {
	if o.CloseConnections {
		return openEnded(s)
	}
	t, c := s.TCP, o.returning.connections
	if t == nil {
		return -1, o.planConnection(i, s)[0]
	}
	here, _ := connectionBetween(s.Local, s.Peer)
	if held, err := o.returning.filter.Blocked(o.image.Held, here); err != nil || !held || !slices.Contains(c, here) {
		return -1, errors.Join(err, fmt.Errorf("the connection from %s to %s is not held any more", inetText(s.Local), inetText(s.Peer)))
	}
	raw, err := newSocket(s)
	if err != nil {
		return -1, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, raw.Close())
		}
	}()
	if err := restoreConnection(raw, s); err != nil {
		return -1, fmt.Errorf("make the connection from %s to %s: %w", inetText(s.Local), inetText(s.Peer), err)
	}
	own, err := raw.Copy()
	if err != nil {
		return -1, err
	}
	o.returning.made = append(o.returning.made, returned{own, s})
	return raw, nil
}

// restoreConnection gives a new socket the state of a connection. It stays in repair mode.
func restoreConnection(raw kernel.Raw, s *image.Socket) error {
	t, end, theirs := s.TCP, uint32(0), uint32(0)
	if s.Shutdown&shutSend != 0 {
		end = 1 // it has a sequence number of its own
	}
	if t.PeerEnded {
		theirs = 1
	}
	if err := raw.SetOption(levelTCP, tcpRepair, word(repairOn)); err != nil {
		return err
	}
	for queue, first := range map[int]uint32{queueSend: t.SendSequence - end - uint32(len(t.Sent)+len(t.Unsent)), queueReceive: t.ReceiveSequence - theirs - uint32(len(t.Received))} {
		err := raw.SetOption(levelTCP, tcpQueue, word(queue))
		if err == nil {
			err = raw.SetOption(levelTCP, tcpQueueSeq, binary.NativeEndian.AppendUint32(nil, first))
		}
		if err != nil {
			return err
		}
	}
	if err := raw.Bind(s.Local); err != nil {
		return err
	}
	err := raw.Connect(s.Peer)
	if errors.Is(err, syscall.EADDRNOTAVAIL) {
		err = connectAgain(raw, s)
	}
	if err != nil {
		return err
	}
	var agreed []byte
	for _, o := range t.Options {
		agreed = append(binary.NativeEndian.AppendUint32(agreed, uint32(o.Name)), o.Value...)
	}
	if err := raw.SetOption(levelTCP, tcpOptions, agreed); err != nil {
		return err
	}
	if err := raw.SetOption(levelTCP, tcpTimestamp, binary.NativeEndian.AppendUint32(nil, t.Timestamp)); err != nil {
		return err
	}
	for option, bytes := range map[int]int{soSendForce: len(t.Sent) + len(t.Unsent), soReceiveForce: len(t.Received)} {
		// What small pieces take beside their bytes is several times that.
		if err := raw.SetOption(levelSocket, option, word(min(bytes, 1<<27)*4+1<<20)); err != nil {
			return err
		}
	}
	for queue, bytes := range map[int][]byte{queueReceive: t.Received, queueSend: t.Sent} {
		if err := raw.SetOption(levelTCP, tcpQueue, word(queue)); err != nil {
			return err
		}
		if err := fill(raw, bytes); err != nil {
			return err
		}
	}
	if t.PeerEnded {
		if err := endByPeer(raw, s); err != nil {
			return err
		}
	}
	if s.Shutdown&shutSend != 0 {
		// It only counts as sent where this queue is chosen.
		if err := raw.SetOption(levelTCP, tcpQueue, word(queueSend)); err != nil {
			return err
		}
		if err := raw.Shutdown(shutdownHow(shutSend)); err != nil {
			return err
		}
	}
	if s.Shutdown&shutReceive != 0 {
		if err := raw.Shutdown(shutdownHow(shutReceive)); err != nil {
			return err
		}
	}
	return raw.SetOption(levelTCP, tcpWindow, t.Window)
}

// endByPeer lets a connection receive the end that its peer has sent before.
func endByPeer(raw kernel.Raw, s *image.Socket) error {
	t := s.TCP
	here, _ := connectionBetween(s.Local, s.Peer)
	if err := kernel.DeliverEnd(here, t.ReceiveSequence-1, t.SendSequence-uint32(len(t.Sent)+len(t.Unsent))); err != nil {
		return err
	}
	info, err := raw.Option(levelTCP, tcpInfo)
	if err == nil && (len(info) == 0 || info[0] != tcpCloseWait) {
		err = errors.New("it does not receive the end that its peer has sent: something else than vos drops packets to it")
	}
	return err
}

// connectAgain connects in place of what is left of the connection: where vos has died
// at the moment at which it was to be closed, it tries to tell its peer so.
func connectAgain(raw kernel.Raw, s *image.Socket) (err error) {
	diag, err := kernel.OpenSocketDiag(nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, diag.Close()) }()
	here, _ := connectionBetween(s.Local, s.Peer)
	if _, err := diag.DestroyOrphan(here); err != nil {
		return err
	}
	return raw.Connect(s.Peer)
}

// openEnded makes a connection that has ended: its next user is told ECONNABORTED.
func openEnded(s *image.Socket) (_ kernel.Raw, err error) {
	raw, err := newSocket(s)
	if err != nil {
		return -1, err
	}
	err = raw.SetOption(levelTCP, tcpRepair, word(repairOn))
	if err == nil {
		err = raw.Connect(s.Peer)
	}
	if err == nil {
		err = raw.Disconnect()
	}
	if err == nil {
		err = raw.SetOption(levelTCP, tcpRepair, word(repairOffMute))
	}
	if err == nil {
		err = raw.SetOption(levelSocket, soReuseAddress, reuse(s))
	}
	if err != nil {
		return -1, errors.Join(err, raw.Close())
	}
	return raw, nil
}

// reuse returns SO_REUSEADDR, which repair mode has changed.
func reuse(s *image.Socket) []byte {
	for _, o := range s.Options {
		if o.Level == levelSocket && o.Name == soReuseAddress {
			return o.Value
		}
	}
	return word(0)
}

// Returning returns the connections, which are now the caller's to close; nil are none.
func (o *Opened) Returning() *Returning {
	r := o.returning
	o.returning = nil
	return r
}

// Ready makes the connections usable, and is called last before the program is there.
// No packet is sent.
func (r *Returning) Ready() error {
	if r == nil {
		return nil
	}
	r.ready = true
	for _, m := range r.made {
		if err := m.ready(); err != nil {
			return fmt.Errorf("make the connection from %s to %s usable: %w", inetText(m.s.Local), inetText(m.s.Peer), err)
		}
	}
	return r.filter.Replace([]kernel.Block{{Table: r.held, Connections: r.connections, Limit: crossing}})
}

func (m *returned) ready() error {
	if err := m.raw.SetOption(levelTCP, tcpRepair, word(repairOffMute)); err != nil {
		return err
	}
	if err := m.raw.SetOption(levelSocket, soReuseAddress, reuse(m.s)); err != nil {
		return err
	}
	if err := fill(m.raw, m.s.TCP.Unsent); err != nil {
		return err
	}
	for _, o := range m.s.Options {
		if o.Level == levelTCP && o.Name == tcpClamp { // connecting has set it
			if err := m.raw.SetOption(o.Level, o.Name, o.Value); err != nil {
				return err
			}
		}
	}
	// The kernel goes on choosing the size of those buffers that nobody has set.
	locked := 0
	for bit, b := range []struct{ option, size int }{{soSendBuffer, m.s.TCP.SendBuffer}, {soReceive, m.s.TCP.ReceiveBuffer}} {
		if err := setOption(m.raw, image.Option{Level: levelSocket, Name: b.option, Value: word(b.size)}); err != nil {
			return err
		}
		if slices.ContainsFunc(m.s.Options, func(o image.Option) bool { return o.Level == levelSocket && o.Name == b.option }) {
			locked |= 1 << bit
		}
	}
	return m.raw.SetOption(levelSocket, soBufferLock, word(locked))
}

// Go lets the packets pass, and is called when the program is there and does not run yet.
func (r *Returning) Go() error {
	if r == nil {
		return nil
	}
	r.gone = true
	if err := r.filter.Replace(nil, r.own, r.held); err != nil {
		return err
	}
	ring, err := kernel.OpenRing()
	if err != nil {
		return err // the peers' packets, or what was not acknowledged, will wake them
	}
	for _, m := range r.made {
		// Leaving repair mode asks the peer for its window. Meanwhile nobody may see it.
		_, failed := ring.Run([]kernel.RingStep{
			{Socket: m.raw, Level: levelTCP, Name: tcpRepair, Value: word(repairOn)},
			{Socket: m.raw, Level: levelTCP, Name: tcpRepair, Value: word(repairOff)},
			{Socket: m.raw, Level: levelSocket, Name: soReuseAddress, Value: reuse(m.s)},
		})
		err = errors.Join(err, failed)
	}
	return errors.Join(err, ring.Close())
}

// Close gives up vos's part. Before Go, that is all there is of the connections: they go
// on waiting for a restore.
func (r *Returning) Close() (err error) {
	if r == nil {
		return nil
	}
	for _, m := range r.made {
		if !r.gone {
			err = errors.Join(err, m.raw.SetOption(levelTCP, tcpRepair, word(repairOn)))
		}
		err = errors.Join(err, m.raw.Close())
	}
	r.made = nil
	if r.ready && !r.gone {
		err = errors.Join(err, r.filter.Replace([]kernel.Block{{Table: r.held, Connections: r.connections, Limit: HeldFor}}))
	}
	return errors.Join(err, r.filter.Close())
}
