package descriptor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// A connection of TCP is kept if the program ends behind its checkpoint; where the
// program goes on, so does the connection, and the image only says that it was there.
//
// Its state is read while all of its packets are dropped (see Leaving), by the repair
// mode of TCP. In that mode the program can't use the connection, so it lasts only for
// the one system call of a kernel.Ring: a vos that is killed leaves none behind. What
// takes no repair mode to be read is read by itself.

// States of TCP in struct tcp_info, linux/tcp_states.h.
const (
	tcpEstablished = 1
	tcpFinWait1    = 4
	tcpFinWait2    = 5
	tcpClosed      = 7
	tcpCloseWait   = 8
	tcpListening   = 10
)

// Options of TCP, linux/tcp.h.
const (
	tcpMaxSegment = 2
	tcpClamp      = 10 // TCP_WINDOW_CLAMP
	tcpRepair     = 19
	tcpQueue      = 20
	tcpQueueSeq   = 21
	tcpOptions    = 22
	tcpTimestamp  = 24
	tcpWindow     = 29
	tcpAuthInfo   = 40 // TCP_AO_INFO

	repairOn      = 1
	repairOff     = 0
	repairOffMute = -1 // without a packet to the peer

	queueReceive, queueSend = 1, 2

	soZeroCopy = 60
)

// Offsets in struct tcp_info.
const (
	infoOptions    = 5
	infoScales     = 6
	infoSegment    = 16
	infoUnacked    = 24
	infoNotSent    = 144
	infoSendWindow = 228
	infoOwnWindow  = 232
	infoSize       = 236
)

// What of tcp_info's options was agreed upon, and the codes that TCP_REPAIR_OPTIONS has
// for it.
const (
	agreedTimestamps, agreedSelective, agreedScales = 1, 2, 4

	optionSegment, optionScales, optionSelective, optionTimestamps = 2, 3, 4, 8
)

// notOfConnections are options that a connection has values of, without having been given
// them: the size of its segments, and what is for multicast.
var notOfConnections = map[int][]int{levelTCP: {tcpMaxSegment}, levelIP: {32, 33, 34, 49}, levelIPv6: {17, 18, 19}}

const shutReceive, shutSend = 1, 2 // of image.Socket.Shutdown

// lookAtConnection returns what speaks against keeping a connection.
func (l *looking) lookAtConnection(h *handle.Handle) []api.Refusal {
	s := h.Socket
	switch {
	case s.Protocol == "mptcp":
		return []api.Refusal{connectionRefusal(h, "of MPTCP")}
	case s.State != stateConnected && s.State != "fin_wait1" && s.State != "fin_wait2" && s.State != "close_wait":
		return []api.Refusal{connectionRefusal(h, "in the state "+s.State)}
	case !l.ends:
		return nil
	}
	if l.unable == nil {
		err := ableToHold()
		l.unable = &err
	}
	if *l.unable != nil {
		return []api.Refusal{connectionRefusal(h, "and "+(*l.unable).Error())}
	}
	return nil
}

// ableToHold finds out whether the kernel has what keeping a connection takes.
func ableToHold() error {
	ring, err := kernel.OpenRing()
	if err != nil {
		return err
	}
	filter, err := kernel.OpenNetfilter()
	if err != nil {
		return errors.Join(err, ring.Close())
	}
	return errors.Join(ring.Close(), filter.Close())
}

func connectionRefusal(h *handle.Handle, what string) api.Refusal {
	return refusal(codeConnection, h, leadsTo(h)+", a connection "+what+", which is not kept", "try again when it is closed, or "+inheritRemedy(h.FD))
}

// keepConnection writes a connection down. info is its struct tcp_info.
func (d *dumping) keepConnection(h *handle.Handle, raw kernel.Raw, s *image.Socket, info []byte) error {
	state := info[0]
	switch {
	case s.Protocol != levelTCP:
		return connectionRefusal(h, "of MPTCP")
	case state != tcpEstablished && state != tcpFinWait1 && state != tcpFinWait2 && state != tcpCloseWait:
		return connectionRefusal(h, fmt.Sprintf("in state %d (linux/tcp_states.h)", state))
	case len(info) < infoSize:
		return fmt.Errorf("TCP_INFO has %d bytes", len(info))
	}
	if err := d.extraordinary(h, raw, info); err != nil {
		return err
	}
	noMore, err := raw.Ready(kernel.EventPeerEnd)
	if err != nil {
		return err
	}
	if noMore && state != tcpCloseWait {
		s.Shutdown |= shutReceive
	}
	if state == tcpFinWait1 || state == tcpFinWait2 {
		s.Shutdown |= shutSend
	}
	s.Options = slices.DeleteFunc(s.Options, func(o image.Option) bool { return slices.Contains(notOfConnections[o.Level], o.Name) })
	if !d.ends {
		return nil
	}
	if s.TCP, err = d.readConnection(raw, s, info); err != nil {
		return err
	}
	return d.leaving.add(raw)
}

// extraordinary refuses what repair mode does not know.
func (d *dumping) extraordinary(h *handle.Handle, raw kernel.Raw, info []byte) error {
	if offset, err := number(raw, levelSocket, soPeekOffset); err == nil && offset >= 0 {
		return connectionRefusal(h, "that is read with SO_PEEK_OFF")
	}
	if _, err := raw.Option(levelTCP, tcpAuthInfo); err == nil {
		return connectionRefusal(h, "whose segments are signed (TCP-AO)")
	}
	for event, what := range map[int16]string{kernel.EventUrgent: "with urgent data", kernel.EventError: "with an error or a message that was not fetched"} {
		if is, err := raw.Ready(event); err != nil || is {
			return errors.Join(err, connectionRefusal(h, what))
		}
	}
	zero, err := number(raw, levelSocket, soZeroCopy)
	if err == nil && zero != 0 && binary.NativeEndian.Uint32(info[infoUnacked:])+binary.NativeEndian.Uint32(info[infoNotSent:]) > 0 {
		return connectionRefusal(h, "that sends without copying (MSG_ZEROCOPY)")
	}
	return nil
}

// readConnection reads the state of a connection none of whose packets pass. What had
// come in before and is still worked on shows as a difference between two readings.
func (d *dumping) readConnection(raw kernel.Raw, s *image.Socket, info []byte) (_ *image.TCP, err error) {
	if d.ring == nil {
		if d.ring, err = kernel.OpenRing(); err != nil {
			return nil, err
		}
	}
	reuse, err := raw.Option(levelSocket, soReuseAddress)
	if err != nil {
		return nil, err
	}
	for range maxReadings {
		t := &image.TCP{Options: agreed(info), PeerEnded: info[0] == tcpCloseWait}
		received, waiting, err := d.readReceived(raw, t, reuse)
		if err != nil {
			return nil, err
		}
		left, err := d.readSent(raw, s, t, info, reuse)
		if err != nil {
			return nil, err
		}
		stamp, err := number(raw, levelTCP, tcpTimestamp)
		if err != nil {
			return nil, err
		}
		t.Timestamp = uint32(stamp)
		for option, at := range map[int]*int{soSendBuffer: &t.SendBuffer, soReceive: &t.ReceiveBuffer} {
			if *at, err = number(raw, levelSocket, option); err != nil {
				return nil, err
			}
		}
		now, err := raw.Option(levelTCP, tcpInfo)
		if err != nil {
			return nil, err
		}
		t.Window = window(now, t.ReceiveSequence)
		moved, err := d.moved(raw, reuse, received, waiting, left)
		if err != nil || !moved && now[0] == info[0] {
			return t, err
		}
		if now[0] != info[0] {
			return nil, errors.New("its state changes while it is held")
		}
		info = now
	}
	return nil, errors.New("something changes it all the time while it is held")
}

const maxReadings = 100

// repair makes steps in repair mode, within one system call, and returns the result of
// the one that peeks, if any.
func (d *dumping) repair(raw kernel.Raw, reuse []byte, steps ...kernel.RingStep) (read int, err error) {
	set := func(level, name int, value []byte) kernel.RingStep {
		return kernel.RingStep{Socket: raw, Level: level, Name: name, Value: value}
	}
	all := append([]kernel.RingStep{set(levelTCP, tcpRepair, word(repairOn))}, steps...)
	// Repair mode sets SO_REUSEADDR, too.
	all = append(all, set(levelTCP, tcpRepair, word(repairOffMute)), set(levelSocket, soReuseAddress, reuse))
	results, err := d.ring.Run(all)
	if err != nil {
		return 0, err
	}
	for i, result := range results {
		switch {
		case result < 0:
			err = errors.Join(err, fmt.Errorf("step %d of reading a connection: %w", i, syscall.Errno(-result)))
		case all[i].Peek != nil:
			read = result
		}
	}
	return read, err
}

func word(n int) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(int32(n))) }

// choose is the step that makes TCP_QUEUE_SEQ tell of a queue, also later.
func choose(raw kernel.Raw, queue int) kernel.RingStep {
	return kernel.RingStep{Socket: raw, Level: levelTCP, Name: tcpQueue, Value: word(queue)}
}

// readReceived reads what was received and not read yet. It returns the sequence number
// behind it and how much it is.
func (d *dumping) readReceived(raw kernel.Raw, t *image.TCP, reuse []byte) (sequence, waiting int, err error) {
	if _, err = d.repair(raw, reuse, choose(raw, queueReceive)); err != nil {
		return 0, 0, err
	}
	if sequence, err = number(raw, levelTCP, tcpQueueSeq); err != nil {
		return 0, 0, err
	}
	if waiting, err = raw.Waiting(); err != nil || waiting == 0 {
		t.ReceiveSequence = uint32(sequence)
		return sequence, waiting, err
	}
	if t.Received, _, err = raw.Peek(waiting); err != nil {
		return 0, 0, err
	}
	if len(t.Received) != waiting {
		return 0, 0, fmt.Errorf("of %d bytes that were received %d can be read", waiting, len(t.Received))
	}
	t.ReceiveSequence = uint32(sequence)
	return sequence, waiting, nil
}

// readSent reads what was written and is not acknowledged. It returns how much that is,
// an end that was sent included.
func (d *dumping) readSent(raw kernel.Raw, s *image.Socket, t *image.TCP, info, reuse []byte) (left int, err error) {
	if left, err = raw.Unacknowledged(); err != nil {
		return 0, err
	}
	queue := make([]byte, left+1)
	n, err := d.repair(raw, reuse, choose(raw, queueSend), kernel.RingStep{Socket: raw, Peek: queue})
	if err != nil {
		return 0, err
	}
	sequence, err := number(raw, levelTCP, tcpQueueSeq)
	if err != nil {
		return 0, err
	}
	t.SendSequence = uint32(sequence)
	unsent := min(n, int(binary.NativeEndian.Uint32(info[infoNotSent:])))
	if s.Shutdown&shutSend != 0 {
		unsent = 0 // the end is behind it: all of it is sent again
	}
	t.Sent, t.Unsent = queue[:n-unsent], queue[n-unsent:n]
	return left, nil
}

// moved reports whether something has changed since it was read.
func (d *dumping) moved(raw kernel.Raw, reuse []byte, sequence, waiting, left int) (bool, error) {
	if _, err := d.repair(raw, reuse, choose(raw, queueReceive)); err != nil {
		return false, err
	}
	for was, read := range map[*int]func() (int, error){
		&sequence: func() (int, error) { return number(raw, levelTCP, tcpQueueSeq) }, &waiting: raw.Waiting, &left: raw.Unacknowledged,
	} {
		if now, err := read(); err != nil || now != *was {
			return true, err
		}
	}
	return false, nil
}

// agreed returns what both ends agreed upon, for TCP_REPAIR_OPTIONS: values of codes.
// The peer's largest segment is one that it takes: repair mode alone tells more.
func agreed(info []byte) (options []image.Option) {
	add := func(code int, value uint32) {
		options = append(options, image.Option{Name: code, Value: binary.NativeEndian.AppendUint32(nil, value)})
	}
	segment := binary.NativeEndian.Uint32(info[infoSegment:])
	if info[infoOptions]&agreedTimestamps != 0 {
		const stampBytes = 12
		segment += stampBytes
		add(optionTimestamps, 0)
	}
	add(optionSegment, segment)
	if info[infoOptions]&agreedSelective != 0 {
		add(optionSelective, 0)
	}
	if info[infoOptions]&agreedScales != 0 {
		add(optionScales, uint32(info[infoScales]&15)|uint32(info[infoScales]>>4)<<16)
	}
	return options
}

// window returns a struct tcp_repair_window.
func window(info []byte, received uint32) []byte {
	theirs, ours := binary.NativeEndian.Uint32(info[infoSendWindow:]), binary.NativeEndian.Uint32(info[infoOwnWindow:])
	largest := max(theirs, 2*binary.NativeEndian.Uint32(info[infoSegment:]))
	var b []byte
	for _, n := range []uint32{received - 1, theirs, largest, ours, received} {
		b = binary.NativeEndian.AppendUint32(b, n)
	}
	return b
}
