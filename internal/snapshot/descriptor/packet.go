package descriptor

import (
	"encoding/binary"
	"errors"
	"syscall"

	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// Packets that wait are read one after the other without being taken, which SO_PEEK_OFF
// makes possible: an option of the program's socket, that Store.Peeking sets and takes
// back. They are sent again by the other end of a pair, or by a socket without a name.

const (
	maxPackets    = 1 << 14
	maxPacketData = 64 << 20 // of one socket
	longestPacket = 4 << 20
)

// ErrNotNow is what Store.Peeking wraps where the program can't do it at this time.
var ErrNotNow = errors.New("no thread of the program can let vos do so")

// keepPackets keeps what waits in a socket of packets: waiting bytes, where its type is
// SOCK_SEQPACKET.
func (d *dumping) keepPackets(h *handle.Handle, raw kernel.Raw, s *image.Socket, waiting int) error {
	if ready, err := raw.Ready(kernel.EventIn); err != nil || !ready {
		return err
	}
	refuse := func(why string) error {
		return refusal(codeWaiting, h, leadsTo(h)+", which has datagrams that were not read"+why, TryAgain)
	}
	if d.store.Peeking == nil || byName(s) || s.State == stateUnconnected && unixName(s.Local) == "" {
		return refuse("")
	}
	if offset, err := number(raw, levelSocket, soPeekOffset); err != nil || offset >= 0 {
		return errors.Join(err, refuse(", some of them by MSG_PEEK (SO_PEEK_OFF)"))
	}
	total := 0
	buffer := make([]byte, longestPacket)
	err := d.store.Peeking(h.PID, h.FD, func() error {
		for {
			p, err := raw.PeekPacket(buffer)
			switch {
			case errors.Is(err, syscall.EAGAIN):
				return nil
			case err != nil:
				return err
			case p.Ancillary:
				return refusal(codeInFlight, h, leadsTo(h)+", which has received descriptors or credentials that were not read", TryAgain)
			case p.Named:
				return refuse(", by senders with names, which are not vos's to use")
			case len(p.Data) == 0 && s.Type == socketPacket:
				// The end, if the other one has closed: an empty packet looks the same.
				if (s.PeerID == 0 || s.Shutdown&1 != 0) && total == waiting {
					return nil
				}
				return refuse(", one of them empty")
			}
			if total += len(p.Data); p.Cut || total > maxPacketData || len(s.Queue) == maxPackets {
				return refuse(", more than are kept")
			}
			s.Queue = append(s.Queue, image.Packet{Data: append([]byte{}, p.Data...)})
		}
	})
	if errors.Is(err, ErrNotNow) {
		return refuse(" and can't be looked at: " + err.Error())
	}
	return err
}

// putPackets sends packets, to a name or to where the socket is connected, with as large a
// buffer as they take together.
func putPackets(from kernel.Raw, packets []image.Packet, to []byte) error {
	if len(packets) == 0 {
		return nil
	}
	size, err := from.Option(levelSocket, soSendBuffer)
	if err != nil {
		return err
	}
	const each = 4096 // more than the kernel adds to one
	total := 0
	for _, p := range packets {
		total += 2*len(p.Data) + each
	}
	room := binary.NativeEndian.AppendUint32(nil, uint32(min(total, 1<<29)))
	if err := from.SetOption(levelSocket, soSendForce, room); err != nil {
		return err
	}
	for _, p := range packets {
		if err := from.Send(p.Data, to); err != nil {
			return err
		}
	}
	return setOption(from, image.Option{Level: levelSocket, Name: soSendBuffer, Value: size})
}

// fillBound sends what waited in a socket that is bound to a name to it.
func (o *Opened) fillBound(s *image.Socket) error {
	if s.Type == socketStream || len(s.Queue) == 0 {
		return nil
	}
	sender, err := kernel.NewSocket(kernel.FamilyUnix, s.Type, 0)
	if err != nil {
		return err
	}
	o.scaffold = append(o.scaffold, sender)
	to := s.Local
	if s.Path != nil { // it may have been renamed
		to = kernel.UnixAddress(s.Path.Path)
	}
	return putPackets(sender, s.Queue, to)
}
