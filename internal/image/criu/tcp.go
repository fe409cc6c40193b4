package criu

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/virtualizing-os/vos/internal/image"
)

// Codes of TCP_REPAIR_OPTIONS, and what CRIU has for them: TCPI_OPT_….
const (
	codeSegment, codeScales, codeSelective, codeTimestamps = 2, 3, 4, 8

	hasTimestamps, hasSelective, hasScales = 1, 2, 4
)

const (
	stateFinWait = 4 // TCP_FIN_WAIT1
	shutSend     = 2 // of image.Socket.Shutdown
	windowBytes  = 20
)

// stream adds the state of connection i, of which the bytes follow: those that were
// received, and those that were written.
func (x *export) stream(i int, inode uint32, s *image.Socket) {
	t := s.TCP
	if t == nil {
		x.refuse(x.fileSubject(i), "its connection went on with the program, which was not ended by its checkpoint",
			"export an image whose checkpoint has ended the program")
		return
	}
	if len(t.Window) != windowBytes {
		x.refuseFile(i, fmt.Sprintf("the window of its connection has %d bytes", len(t.Window)))
		return
	}
	window := words32(t.Window)
	e := tcpStream{
		Received: uint32(len(t.Received)), ReceiveSequence: t.ReceiveSequence,
		Written: uint32(len(t.Sent) + len(t.Unsent)), SendSequence: t.SendSequence, Unsent: uint32(len(t.Unsent)),
		SendFrom: window[0], SendWindow: window[1], MostWindow: window[2], Window: window[3], WindowAt: window[4],
	}
	for _, o := range t.Options {
		if len(o.Value) != 4 {
			continue
		}
		switch v := binary.LittleEndian.Uint32(o.Value); o.Name {
		case codeSegment:
			e.MostSegment = v
		case codeScales:
			e.Options |= hasScales
			e.SendScale, e.ReceiveScale = v&0xffff, new(v>>16)
		case codeSelective:
			e.Options |= hasSelective
		case codeTimestamps:
			e.Options |= hasTimestamps
			e.Timestamp = &t.Timestamp
		}
	}
	x.add(fmt.Sprintf("tcp-stream-%x.img", inode), magicStream, e, rawBytes(slices.Concat(t.Received, t.Sent, t.Unsent)))
}
