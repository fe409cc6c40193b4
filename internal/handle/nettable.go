package handle

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// parseNetTable reads /proc/PID/net/tcp, udp, raw and the like, each line
//
//	sl local_address rem_address st tx_queue:rx_queue tr:tm retrnsmt uid timeout inode …
//
// where addresses are words in the machine's order: 0100007F:1F90.
func (t *socketTable) parseNetTable(text []byte, protocol string) error {
	for i, line := range strings.Split(string(text), "\n") {
		f := strings.Fields(line)
		if i == 0 || len(f) < 10 {
			continue
		}
		local, err := parseHexAddress(f[1])
		if err != nil {
			return err
		}
		remote, err := parseHexAddress(f[2])
		if err != nil {
			return err
		}
		state, err := strconv.ParseUint(f[3], 16, 8)
		if err != nil {
			return err
		}
		send, receive, _ := strings.Cut(f[4], ":")
		inode, err := strconv.ParseUint(f[9], 10, 64)
		if err != nil {
			return err
		}
		s := *newSocket(protocol)
		s.Found, s.State, s.Local = true, socketState(int(state)), local
		if remote.Port() != 0 || !remote.Addr().IsUnspecified() {
			s.Remote = remote
		}
		s.Send, s.Receive = hexQueue(send), hexQueue(receive)
		t.add(inode, s)
	}
	return nil
}

func hexQueue(text string) uint32 {
	n, err := strconv.ParseUint(text, 16, 32)
	if err != nil {
		return 0
	}
	return uint32(n)
}

func parseHexAddress(text string) (netip.AddrPort, error) {
	address, port, found := strings.Cut(text, ":")
	b, err := hex.DecodeString(address)
	number, portErr := strconv.ParseUint(port, 16, 16)
	if !found || err != nil || portErr != nil || len(b) != 4 && len(b) != 16 {
		return netip.AddrPort{}, fmt.Errorf("%.60q is not an address", text)
	}
	for i := 0; i < len(b); i += 4 {
		binary.BigEndian.PutUint32(b[i:], binary.NativeEndian.Uint32(b[i:]))
	}
	a, _ := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a, uint16(number)), nil
}

// parseUnixTable reads /proc/PID/net/unix, each line
//
//	Num: RefCount Protocol Flags Type St Inode Path
//
// A path may have newlines, and so make up lines of its own: a socket that has
// more than one line is left out. Abstract names have @ for their NULs.
func (t *socketTable) parseUnixTable(text []byte) {
	lines := map[uint64]int{}
	found := map[uint64]Socket{}
	_, text, _ = bytes.Cut(text, []byte("\n"))
	for line := range bytes.Lines(text) {
		line = bytes.TrimSuffix(line, []byte("\n"))
		head, path := cutFields(line, 7)
		f := strings.Fields(string(head))
		if len(f) < 7 {
			continue
		}
		kind, err1 := strconv.ParseUint(f[4], 16, 16)
		state, err2 := strconv.ParseUint(f[5], 16, 8)
		flags, err3 := strconv.ParseUint(f[3], 16, 32)
		inode, err4 := strconv.ParseUint(f[6], 10, 64)
		if err1 != nil || err2 != nil || err3 != nil || err4 != nil {
			continue
		}
		// These are states of a struct socket: 1 unconnected, 3 connected.
		s := Socket{Family: "unix", Type: socketTypes[int(kind)], Found: true, State: "unconnected"}
		switch {
		case flags&0x10000 != 0: // __SO_ACCEPTCON
			s.State = "listen"
		case state == 3:
			s.State = "established"
		}
		if s.Name, s.Abstract = strings.CutPrefix(string(path), "@"); !s.Abstract {
			s.Name = string(path)
		}
		lines[inode]++
		found[inode] = s
	}
	for inode, s := range found {
		if lines[inode] == 1 {
			t.add(inode, s)
		}
	}
}

// cutFields cuts a line behind its first n fields and one space.
func cutFields(line []byte, n int) (head, rest []byte) {
	i := 0
	for range n {
		for i < len(line) && line[i] == ' ' {
			i++
		}
		for i < len(line) && line[i] != ' ' {
			i++
		}
	}
	if i == len(line) {
		return line, nil
	}
	return line[:i], line[i+1:]
}

// netlinkFamilies are the protocols of netlink(7).
var netlinkFamilies = map[string]string{
	"0": "route", "2": "usersock", "4": "sock_diag", "6": "xfrm", "9": "audit", "12": "netfilter",
	"15": "kobject_uevent", "16": "generic",
}

// parseNetlinkTable reads /proc/PID/net/netlink: sk Eth Pid Groups Rmem Wmem Dump
// Locks Drops Inode.
func (t *socketTable) parseNetlinkTable(text []byte) {
	for i, line := range strings.Split(string(text), "\n") {
		f := strings.Fields(line)
		if i == 0 || len(f) < 10 {
			continue
		}
		inode, err := strconv.ParseUint(f[9], 10, 64)
		if err != nil {
			continue
		}
		s := Socket{Family: "netlink", Protocol: f[1], Found: true, State: "unconnected"}
		if name, ok := netlinkFamilies[f[1]]; ok {
			s.Protocol = name
		}
		receive, _ := strconv.ParseUint(f[4], 10, 32)
		send, _ := strconv.ParseUint(f[5], 10, 32)
		s.Receive, s.Send = uint32(receive), uint32(send)
		t.add(inode, s)
	}
}

// parsePacketTable reads /proc/PID/net/packet: sk RefCnt Type Proto Iface R Rmem
// User Inode.
func (t *socketTable) parsePacketTable(text []byte) {
	for i, line := range strings.Split(string(text), "\n") {
		f := strings.Fields(line)
		if i == 0 || len(f) < 9 {
			continue
		}
		inode, err := strconv.ParseUint(f[8], 10, 64)
		if err != nil {
			continue
		}
		kind, _ := strconv.Atoi(f[2])
		t.add(inode, Socket{Family: "packet", Type: socketTypes[kind], Protocol: "0x" + f[3], Found: true, State: "unconnected"})
	}
}
