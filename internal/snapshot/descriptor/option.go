package descriptor

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// Levels and names of setsockopt(2).
const (
	levelSocket = 1
	levelIP     = 0
	levelIPv6   = 41
	levelTCP    = 6
	levelUDP    = 17
	levelRaw    = 255
	levelICMP   = 1
	levelICMPv6 = 58

	soReuseAddress = 2
	soType         = 3
	soSendBuffer   = 7
	soReceive      = 8
	soCredentials  = 17 // SO_PEERCRED: process, user, group
	soDevice       = 25
	soAccepts      = 30
	soSendForce    = 32
	soReceiveForce = 33
	soProtocol     = 38
	soDomain       = 39
	soPeekOffset   = 42
	soLockFilter   = 44
	soBufferLock   = 72

	protocolMPTCP = 262

	ipMTU   = 14 // of what it is connected to
	tcpInfo = 11
	tcpULP  = 31
)

// keptOptions are those that are kept, in the order in which they are set. What a
// socket does not know is left out, and what a new one has by itself is not set.
var keptOptions = map[int][]int{
	levelSocket: {soReuseAddress, 15, 5, 6, 9, 10, 12, 13, 16, 18, 20, 21, soDevice, 29, 34, 35, 36, 37, 40, soPeekOffset, 46, 47, 60, 69, 75, 76, 83},
	levelIP:     {1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 15, 19, 20, 21, 23, 24, 25, 32, 33, 34, 49, 50},
	levelIPv6:   {26, 16, 17, 18, 19, 23, 25, 49, 51, 53, 54, 56, 58, 66, 67, 70, 72, 73, 74, 75, 76, 78},
	levelTCP:    {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 16, 18, 23, 25, 27, 30, 36},
	levelUDP:    {1, 100, 101, 102, 103, 104},
	levelRaw:    {1, 7},
	levelICMPv6: {1},

	levelNetlink: {3, 4, 5, 8, 10, 11, 12},
}

// levelsOf returns the levels of options that a socket has.
func levelsOf(s *image.Socket) []int {
	switch s.Family {
	case kernel.FamilyUnix:
		return []int{levelSocket}
	case kernel.FamilyNetlink:
		return []int{levelSocket, levelNetlink}
	}
	levels := []int{levelSocket, levelIP}
	if s.Family == kernel.FamilyIPv6 {
		levels = append(levels, levelIPv6)
	}
	switch {
	case isTCP(s):
		return append(levels, levelTCP)
	case s.Type == socketRaw:
		levels = append(levels, levelRaw)
	}
	if s.Protocol == levelUDP || s.Protocol == levelICMPv6 {
		levels = append(levels, s.Protocol)
	}
	return levels
}

// keepOptions keeps the options of a socket, and its filter. One of eBPF is refused.
func keepOptions(h *handle.Handle, raw kernel.Raw, s *image.Socket) error {
	var err error
	if s.Filter, err = raw.Filter(); errors.Is(err, syscall.EACCES) {
		return refusal(codeFilter, h, leadsTo(h)+", with a filter of eBPF", "none is known")
	} else if err != nil {
		return err
	}
	if locked, err := number(raw, levelSocket, soLockFilter); err == nil && locked != 0 {
		return refusal(codeFilter, h, leadsTo(h)+", whose filter is locked", "none is known")
	}
	for _, level := range levelsOf(s) {
		for _, name := range keptOptions[level] {
			if value, err := raw.Option(level, name); err == nil {
				s.Options = append(s.Options, image.Option{Level: level, Name: name, Value: value})
			}
		}
	}
	locked, err := raw.Option(levelSocket, soBufferLock)
	if err != nil {
		return err
	}
	for bit, name := range []int{soSendBuffer, soReceive} {
		// Otherwise the kernel chooses.
		if locked[0]&(1<<bit) != 0 {
			value, err := raw.Option(levelSocket, name)
			if err != nil {
				return err
			}
			s.Options = append(s.Options, image.Option{Level: levelSocket, Name: name, Value: value})
		}
	}
	return nil
}

// setOptions gives a new socket its options: one may change another (IP_TOS sets SO_PRIORITY): all are looked at twice.
func setOptions(raw kernel.Raw, s *image.Socket) error {
	for _, o := range slices.Concat(s.Options, s.Options) {
		if !slices.Contains(keptOptions[o.Level], o.Name) && (o.Level != levelSocket || o.Name != soSendBuffer && o.Name != soReceive) {
			return fmt.Errorf("the image has socket option %d of level %d, which this vos does not know", o.Name, o.Level)
		}
		if now, err := raw.Option(o.Level, o.Name); err == nil && bytes.Equal(now, o.Value) && o.Name != soSendBuffer && o.Name != soReceive {
			continue
		}
		if err := setOption(raw, o); err != nil {
			return err
		}
	}
	if len(s.Filter) > 0 {
		return raw.SetFilter(s.Filter)
	}
	return nil
}

func setOption(raw kernel.Raw, o image.Option) error {
	if o.Level == levelSocket && (o.Name == soSendBuffer || o.Name == soReceive) {
		if len(o.Value) != 4 {
			return fmt.Errorf("the image has a socket's buffer size of %d bytes", len(o.Value))
		}
		// The kernel doubles what is set.
		half := binary.NativeEndian.AppendUint32(nil, binary.NativeEndian.Uint32(o.Value)/2)
		force := map[int]int{soSendBuffer: soSendForce, soReceive: soReceiveForce}[o.Name]
		return raw.SetOption(levelSocket, force, half)
	}
	return raw.SetOption(o.Level, o.Name, o.Value)
}

// number returns an option that is an int.
func number(raw kernel.Raw, level, name int) (int, error) {
	b, err := raw.Option(level, name)
	if err != nil {
		return 0, err
	}
	if len(b) < 4 {
		return 0, fmt.Errorf("socket option %d of level %d has %d bytes", name, level, len(b))
	}
	return int(int32(binary.NativeEndian.Uint32(b))), nil
}
