package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Netfilter changes nf_tables of one network namespace. One goroutine may use it at
// a time.
type Netfilter struct {
	fd  int
	seq uint32
}

// A Connection is one of TCP, by its two ends as this machine sees them.
type Connection struct{ Local, Remote netip.AddrPort }

// A Block is a table that drops all packets of connections, both those that come and
// those that this machine sends; but what comes with SegmentMark.
type Block struct {
	Table       string
	Connections []Connection
	Owned       bool          // the table is gone when the Netfilter is closed, or its process ends
	Limit       time.Duration // for how long; 0 is as long as there is the table
}

// OpenNetfilter opens nf_tables in the calling thread's network namespace. It needs
// CAP_NET_ADMIN there.
func OpenNetfilter() (*Netfilter, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if err != nil {
			err = errors.Join(err, unix.Close(fd))
		}
	}
	if errors.Is(err, unix.EPROTONOSUPPORT) {
		err = notSupported("nf_tables", "holds the packets of connections", Version{Major: 5, Minor: 12})
	}
	if err != nil {
		return nil, fmt.Errorf("open nf_tables: %w", err)
	}
	n := &Netfilter{fd: fd}
	// A kernel without the answer is not waited for.
	timeout := unix.Timeval{Sec: 5}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return nil, errors.Join(fmt.Errorf("open nf_tables: %w", err), n.Close())
	}
	return n, nil
}

// Close gives the descriptor back, and takes with it the tables that were owned.
func (n *Netfilter) Close() error {
	fd := n.fd
	n.fd = -1
	if fd < 0 {
		return nil
	}
	return unix.Close(fd)
}

// Names within a table, and the hooks of its chains.
const (
	blockedFour, blockedSix = "four", "six"

	hookIn, hookOut = 1, 3 // NF_INET_LOCAL_IN, NF_INET_LOCAL_OUT

	// Behind the translation of addresses where packets come in, before it where they
	// go out: the addresses are those that the socket has.
	priorityIn, priorityOut = 150, -150

	tableOwner  = 2  // NFT_TABLE_F_OWNER
	setTimeouts = 16 // NFT_SET_TIMEOUT
	batchPieces = 400
)

// Replace makes tables, in place of those of the same names, and removes others: all at
// once or nothing. Tables to remove that aren't there are no error.
func (n *Netfilter) Replace(blocks []Block, remove ...string) error {
	var b netlinkBatch
	for _, made := range blocks {
		remove = append(remove, made.Table)
	}
	for _, name := range remove {
		// What is not there can't be removed: it is made first.
		b.add(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, attribute(unix.NFTA_TABLE_NAME, text(name)))
		b.add(unix.NFT_MSG_DELTABLE, 0, attribute(unix.NFTA_TABLE_NAME, text(name)))
	}
	for i := range blocks {
		b.block(&blocks[i])
	}
	if err := n.commit(&b); err != nil {
		return fmt.Errorf("block connections by nf_tables: %w", err)
	}
	return nil
}

// Blocked reports whether a table blocks a connection still.
func (n *Netfilter) Blocked(table string, c Connection) (bool, error) {
	set, key := c.key()
	message := netlinkMessage(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETSETELEM, unix.NLM_F_REQUEST|unix.NLM_F_ACK, familyInet, 0,
		attribute(unix.NFTA_SET_ELEM_LIST_TABLE, text(table)), attribute(unix.NFTA_SET_ELEM_LIST_SET, text(set)),
		nested(unix.NFTA_SET_ELEM_LIST_ELEMENTS, element(key, 0)))
	n.seq++
	binary.NativeEndian.PutUint32(message[8:], n.seq)
	err := n.ask(message, n.seq, n.seq)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at connections that nf_tables blocks: %w", err)
	}
	return true, nil
}

const familyInet = unix.NFPROTO_INET

// key returns the set that a connection is in, and what it is there.
func (c Connection) key() (set string, key []byte) {
	local, remote := c.Local.Addr().Unmap().WithZone(""), c.Remote.Addr().Unmap().WithZone("")
	set = blockedFour
	if local.Is6() {
		set = blockedSix
	}
	for _, end := range []struct {
		address netip.Addr
		port    uint16
	}{{local, c.Local.Port()}, {remote, c.Remote.Port()}} {
		key = append(key, end.address.AsSlice()...)
		key = binary.BigEndian.AppendUint16(key, end.port)
		key = append(key, 0, 0)
	}
	return set, key
}

// A netlinkBatch is what is done in one transaction.
type netlinkBatch struct{ messages [][]byte }

func (b *netlinkBatch) add(kind, flags uint16, attributes ...[]byte) {
	b.messages = append(b.messages, netlinkMessage(unix.NFNL_SUBSYS_NFTABLES<<8|kind, unix.NLM_F_REQUEST|flags, familyInet, 0, attributes...))
}

func (b *netlinkBatch) block(o *Block) {
	flags := uint32(0)
	if o.Owned {
		flags = tableOwner
	}
	b.add(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, attribute(unix.NFTA_TABLE_NAME, text(o.Table)), attribute(unix.NFTA_TABLE_FLAGS, big(flags)))
	sets := map[string][][]byte{}
	for _, c := range o.Connections {
		set, key := c.key()
		sets[set] = append(sets[set], key)
	}
	for id, s := range []struct {
		name string
		size int
	}{{blockedFour, 16}, {blockedSix, 40}} {
		b.add(unix.NFT_MSG_NEWSET, unix.NLM_F_CREATE, attribute(unix.NFTA_SET_TABLE, text(o.Table)), attribute(unix.NFTA_SET_NAME, text(s.name)),
			attribute(unix.NFTA_SET_FLAGS, big(setTimeouts)), attribute(unix.NFTA_SET_KEY_TYPE, big(0)),
			attribute(unix.NFTA_SET_KEY_LEN, big(uint32(s.size))), attribute(unix.NFTA_SET_ID, big(uint32(id+1))))
		for keys := sets[s.name]; len(keys) > 0; {
			n := min(len(keys), batchPieces)
			var elements [][]byte
			for _, key := range keys[:n] {
				elements = append(elements, element(key, o.Limit))
			}
			b.add(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, attribute(unix.NFTA_SET_ELEM_LIST_TABLE, text(o.Table)),
				attribute(unix.NFTA_SET_ELEM_LIST_SET, text(s.name)), nested(unix.NFTA_SET_ELEM_LIST_ELEMENTS, elements...))
			keys = keys[n:]
		}
	}
	for _, c := range []struct {
		name     string
		hook     uint32
		priority int32
		in       bool
	}{{"in", hookIn, priorityIn, true}, {"out", hookOut, priorityOut, false}} {
		b.add(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, attribute(unix.NFTA_CHAIN_TABLE, text(o.Table)), attribute(unix.NFTA_CHAIN_NAME, text(c.name)),
			nested(unix.NFTA_CHAIN_HOOK, attribute(unix.NFTA_HOOK_HOOKNUM, big(c.hook)), attribute(unix.NFTA_HOOK_PRIORITY, big(uint32(c.priority)))),
			attribute(unix.NFTA_CHAIN_TYPE, text("filter")))
		for _, six := range []bool{false, true} {
			b.add(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, attribute(unix.NFTA_RULE_TABLE, text(o.Table)),
				attribute(unix.NFTA_RULE_CHAIN, text(c.name)), nested(unix.NFTA_RULE_EXPRESSIONS, dropRule(c.in, six)...))
		}
	}
}

// dropRule returns the expressions that drop a packet of a connection in a set.
func dropRule(in, six bool) [][]byte {
	const (
		network, transport = 1, 2 // NFT_PAYLOAD_…
		first32            = 8    // NFT_REG32_00
	)
	protocol, set, size, source, destination := unix.NFPROTO_IPV4, blockedFour, uint32(4), uint32(12), uint32(16)
	if six {
		protocol, set, size, source, destination = unix.NFPROTO_IPV6, blockedSix, 16, 8, 24
	}
	local, remote, localPort, remotePort := source, destination, uint32(0), uint32(2)
	if in {
		local, remote, localPort, remotePort = destination, source, 2, 0
	}
	payload := func(base, offset, length, register uint32) []byte {
		return expression("payload", attribute(unix.NFTA_PAYLOAD_DREG, big(register)), attribute(unix.NFTA_PAYLOAD_BASE, big(base)),
			attribute(unix.NFTA_PAYLOAD_OFFSET, big(offset)), attribute(unix.NFTA_PAYLOAD_LEN, big(length)))
	}
	is := func(what, how uint32, value ...byte) [][]byte {
		return [][]byte{
			expression("meta", attribute(unix.NFTA_META_KEY, big(what)), attribute(unix.NFTA_META_DREG, big(unix.NFT_REG_1))),
			expression("cmp", attribute(unix.NFTA_CMP_SREG, big(unix.NFT_REG_1)), attribute(unix.NFTA_CMP_OP, big(how)),
				nested(unix.NFTA_CMP_DATA, attribute(unix.NFTA_DATA_VALUE, value))),
		}
	}
	var mark [4]byte
	binary.NativeEndian.PutUint32(mark[:], SegmentMark)
	words := size / 4
	rule := append(is(unix.NFT_META_NFPROTO, unix.NFT_CMP_EQ, byte(protocol)), is(unix.NFT_META_L4PROTO, unix.NFT_CMP_EQ, unix.IPPROTO_TCP)...)
	if in {
		rule = append(rule, is(unix.NFT_META_MARK, unix.NFT_CMP_NEQ, mark[:]...)...)
	}
	return append(rule,
		payload(network, local, size, first32), payload(transport, localPort, 2, first32+words),
		payload(network, remote, size, first32+words+1), payload(transport, remotePort, 2, first32+2*words+1),
		expression("lookup", attribute(unix.NFTA_LOOKUP_SET, text(set)), attribute(unix.NFTA_LOOKUP_SREG, big(unix.NFT_REG_1))),
		expression("immediate", attribute(unix.NFTA_IMMEDIATE_DREG, big(unix.NFT_REG_VERDICT)),
			nested(unix.NFTA_IMMEDIATE_DATA, nested(unix.NFTA_DATA_VERDICT, attribute(unix.NFTA_VERDICT_CODE, big(0)))))) // NF_DROP
}

// element is one key of a set.
func element(key []byte, limit time.Duration) []byte {
	parts := [][]byte{nested(unix.NFTA_SET_ELEM_KEY, attribute(unix.NFTA_DATA_VALUE, key))}
	if limit > 0 {
		parts = append(parts, attribute(unix.NFTA_SET_ELEM_TIMEOUT, binary.BigEndian.AppendUint64(nil, uint64(limit.Milliseconds()))))
	}
	return nested(unix.NFTA_LIST_ELEM, parts...)
}

func expression(name string, attributes ...[]byte) []byte {
	return nested(unix.NFTA_LIST_ELEM, attribute(unix.NFTA_EXPR_NAME, text(name)), nested(unix.NFTA_EXPR_DATA, attributes...))
}

func text(s string) []byte { return append([]byte(s), 0) }

func big(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

// attribute encodes one of netlink, netlink(7).
func attribute(kind uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	return append(b, make([]byte, -len(b)&3)...)
}

func nested(kind uint16, attributes ...[]byte) []byte {
	var value []byte
	for _, a := range attributes {
		value = append(value, a...)
	}
	return attribute(kind|unix.NLA_F_NESTED, value)
}

// netlinkMessage encodes a message of nfnetlink; its sequence number is set later.
func netlinkMessage(kind, flags uint16, family byte, resource uint16, attributes ...[]byte) []byte {
	b := make([]byte, netlinkHead, 128)
	binary.NativeEndian.PutUint16(b[4:], kind)
	binary.NativeEndian.PutUint16(b[6:], flags)
	b = append(b, family, 0)
	b = binary.BigEndian.AppendUint16(b, resource)
	for _, a := range attributes {
		b = append(b, a...)
	}
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	return b
}

const (
	batchBegin = 0x10 // NFNL_MSG_BATCH_BEGIN
	batchEnd   = 0x11
)

// commit carries a batch out: all of it, or, with an error, nothing.
func (n *Netfilter) commit(b *netlinkBatch) error {
	last := len(b.messages) - 1
	flags := binary.NativeEndian.Uint16(b.messages[last][6:])
	binary.NativeEndian.PutUint16(b.messages[last][6:], flags|unix.NLM_F_ACK)
	messages := append([][]byte{netlinkMessage(batchBegin, unix.NLM_F_REQUEST, 0, unix.NFNL_SUBSYS_NFTABLES)}, b.messages...)
	messages = append(messages, netlinkMessage(batchEnd, unix.NLM_F_REQUEST, 0, unix.NFNL_SUBSYS_NFTABLES))
	first := n.seq + 1
	var all []byte
	for _, m := range messages {
		n.seq++
		binary.NativeEndian.PutUint32(m[8:], n.seq)
		all = append(all, m...)
	}
	// As long as it is, it is to be one message to the kernel.
	if err := unix.SetsockoptInt(n.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, max(1<<18, 2*len(all))); err != nil {
		return err
	}
	return n.ask(all, first, n.seq-1)
}

// ask sends messages and waits for what is said of the last of them, or for the first
// error.
func (n *Netfilter) ask(message []byte, first, last uint32) error {
	if err := unix.Sendto(n.fd, message, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	for {
		size, err := retry(func() (int, error) {
			size, _, err := unix.Recvfrom(n.fd, buf, 0)
			return size, err
		})
		if err != nil {
			return err
		}
		for rest := buf[:size]; len(rest) >= netlinkHead; {
			size := int(binary.NativeEndian.Uint32(rest))
			if size < netlinkHead || size > len(rest) {
				return fmt.Errorf("a message of %d bytes in %d", size, len(rest))
			}
			kind, seq, payload := binary.NativeEndian.Uint16(rest[4:]), binary.NativeEndian.Uint32(rest[8:]), rest[netlinkHead:size]
			rest = rest[min((size+3)&^3, len(rest)):]
			if seq-first > last-first || kind != unix.NLMSG_ERROR || len(payload) < 4 {
				continue // of what was asked before, or the answer itself
			}
			if errno := int32(binary.NativeEndian.Uint32(payload)); errno != 0 {
				return syscall.Errno(-errno)
			}
			if seq == last {
				return nil
			}
		}
	}
}
