package descriptor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/kernel"
)

func (h *held) pair(a, b, kind int) {
	h.t.Helper()
	fds := make([]byte, 8)
	h.call(syscall.SYS_SOCKETPAIR, kernel.FamilyUnix, kind, 0, fds)
	for i, to := range []int{a, b} {
		from := int(binary.NativeEndian.Uint32(fds[4*i:]))
		h.call(sysDup3, from, to, 0)
		h.call(sysClose, from)
	}
}

func (h *held) socket(number, family, kind int) {
	h.t.Helper()
	fd := h.call(syscall.SYS_SOCKET, family, kind, 0)
	h.call(sysDup3, fd, number, 0)
	h.call(sysClose, fd)
}

func (h *held) bind(fd int, name []byte) { h.t.Helper(); h.call(syscall.SYS_BIND, fd, name, len(name)) }
func (h *held) connect(fd int, name []byte) {
	h.t.Helper()
	h.call(syscall.SYS_CONNECT, fd, name, len(name))
}

// name returns what a socket is bound or connected to.
func (h *held) name(number uint64, fd int) string {
	h.t.Helper()
	b, size := make([]byte, 128), []byte{128, 0, 0, 0}
	if _, err := h.try(number, fd, b, size); err != nil {
		return err.Error()
	}
	return string(b[:size[0]])
}

func (h *held) option(fd, level, name int) string {
	h.t.Helper()
	b, size := make([]byte, 64), []byte{64, 0, 0, 0}
	if _, err := h.try(syscall.SYS_GETSOCKOPT, fd, level, name, b, size); err != nil {
		return err.Error()
	}
	return string(b[:size[0]])
}

func (h *held) setOption(fd, level, name, value int) {
	h.t.Helper()
	h.call(syscall.SYS_SETSOCKOPT, fd, level, name, binary.NativeEndian.AppendUint32(nil, uint32(value)), 4)
}

// sockets wants names and options of sockets to be the same after a round trip.
func (h *held) sockets(fds ...int) *held {
	h.t.Helper()
	look := func(h *held) map[string]string {
		all := map[string]string{}
		for _, fd := range fds {
			all[fmt.Sprintf("%d bound", fd)] = h.name(syscall.SYS_GETSOCKNAME, fd)
			all[fmt.Sprintf("%d connected", fd)] = h.name(syscall.SYS_GETPEERNAME, fd)
			for level, names := range keptOptions {
				for _, name := range names {
					all[fmt.Sprintf("%d option %d of level %d", fd, name, level)] = h.option(fd, level, name)
				}
			}
			for _, name := range []int{soType, soAccepts, soProtocol, soDomain, soSendBuffer, soReceive} {
				all[fmt.Sprintf("%d option %d", fd, name)] = h.option(fd, levelSocket, name)
			}
		}
		return all
	}
	before := look(h)
	other := roundTrip(h.t, h)
	if diff := cmp.Diff(before, look(other)); diff != "" {
		h.t.Errorf("(-kept +restored):\n%s", diff)
	}
	return other
}

func TestUnixPairsAreKept(t *testing.T) {
	h := newHeld(t)
	h.pair(10, 11, socketStream|nonBlock)
	h.pair(12, 13, socketDgram|nonBlock)
	h.pair(14, 15, socketPacket|nonBlock)
	h.pair(16, 17, socketStream|nonBlock) // half closed
	h.pair(18, 19, socketStream|nonBlock) // the other end is closed
	h.pair(20, 21, socketStream|nonBlock) // likewise, with nothing in it
	h.socket(22, kernel.FamilyUnix, socketStream)
	long := strings.Repeat("0123456789abcdef", 6000)
	h.write(10, "to eleven")
	h.write(11, long)
	h.setOption(11, levelSocket, soSendBuffer, 50000)
	h.setOption(12, levelSocket, 16, 1)
	h.write(16, "last words")
	h.call(syscall.SYS_SHUTDOWN, 16, 1)
	h.write(19, "gone")
	h.call(sysClose, 19)
	h.call(sysClose, 21)
	h.call(sysDup3, 10, 30, 0)
	h.newEpoll(50)
	h.watch(50, 10, epollIn, 10)

	h = h.sockets(10, 11, 12, 13, 14, 15, 16, 17, 18, 20, 22)

	h.fires(50, "a:1")
	h.shares(10, 30, true)
	h.wants(11, "to eleven")
	h.wants(30, long)
	if _, err := h.read(10, 1); !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("an empty queue: %v", err)
	}
	h.wants(17, "last words")
	h.wants(17, "")
	for _, from := range []int{10, 12, 14, 17} {
		h.write(from, "one")
		h.wants(from^1, "one")
	}
	h.wants(18, "gone")
	h.wants(18, "")
	h.wants(20, "")
	h.connectNowhere(22)
}

func (h *held) connectNowhere(fd int) {
	h.t.Helper()
	name := kernel.UnixAddress("\x00nobody has this name")
	if _, err := h.try(syscall.SYS_CONNECT, fd, name, len(name)); !errors.Is(err, syscall.ECONNREFUSED) {
		h.t.Errorf("connect: %v", err)
	}
}

func TestUnixNamesAreKept(t *testing.T) {
	folder := t.TempDir()
	path, log, outside := filepath.Join(folder, "listens"), filepath.Join(folder, "log"), filepath.Join(folder, "outside")
	receiver, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: outside, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer receiver.Close()
	abstract := "\x00" + t.Name() + "\x00x"
	h := newHeld(t)
	h.socket(10, kernel.FamilyUnix, socketStream|nonBlock)
	h.bind(10, kernel.UnixAddress(path))
	h.call(sysListen, 10, 7)
	h.socket(11, kernel.FamilyUnix, socketPacket)
	h.bind(11, kernel.UnixAddress(abstract))
	h.call(sysListen, 11, 1)
	h.socket(12, kernel.FamilyUnix, socketDgram)
	h.connect(12, kernel.UnixAddress(outside))
	h.socket(14, kernel.FamilyUnix, socketDgram)
	h.bind(14, kernel.UnixAddress(log))
	h.socket(13, kernel.FamilyUnix, socketDgram)
	h.connect(13, kernel.UnixAddress(log))
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Lchown(path, 12, 34); err != nil {
		t.Fatal(err)
	}

	im := keep(t, h)
	if refusals, err := Plan(im, Restoring{}); err != nil || !cmp.Equal(codes(refusals), []api.Code{codeAddress, codeAddress, codeAddress}) {
		t.Errorf("names that are taken: %v, error %v", refusals, err)
	}
	h = h.sockets(10, 11, 12, 13, 14)

	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); st.Mode&0o7777 != 0o640 || st.Uid != 12 || st.Gid != 34 {
		t.Errorf("mode %o, owner %d:%d", st.Mode, st.Uid, st.Gid)
	}
	for network, name := range map[string]string{"unix": path, "unixpacket": "@" + abstract[1:]} {
		c, err := net.Dial(network, name)
		if err != nil {
			t.Error(err)
			continue
		}
		raw, err := c.(*net.UnixConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		err = raw.Control(func(fd uintptr) {
			who, err := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED) // its first word is the pid
			if err != nil || who != h.pid {
				t.Errorf("%s listens as process %d, error %v; not %d", network, who, err, h.pid)
			}
		})
		if err != nil {
			t.Error(err)
		}
		c.Close()
	}
	h.write(13, "within")
	h.wants(14, "within")
	h.write(12, "out")
	b := make([]byte, 10)
	if n, err := receiver.Read(b); err != nil || string(b[:n]) != "out" {
		t.Errorf("received %q, error %v", b[:n], err)
	}
}

func TestUnixSocketsThatAreRefused(t *testing.T) {
	h := newHeld(t)
	h.pair(10, 11, socketStream)
	h.pair(12, 13, socketDgram)
	// A message of one byte with descriptor 12.
	rights := make([]byte, 20)
	binary.NativeEndian.PutUint64(rights, 20)
	binary.NativeEndian.PutUint32(rights[8:], 1)
	binary.NativeEndian.PutUint32(rights[12:], 1)
	binary.NativeEndian.PutUint32(rights[16:], 12)
	h.sendMessage(10, []byte("x"), rights)
	refusedNow(t, h, codeInFlight)
	h.wants(11, "x")
	refused(t, h)
	h.setOption(11, levelSocket, soPeekOffset, 0)
	h.write(10, "peeked")
	refusedNow(t, h, codeInFlight)
	h.wants(11, "peeked")
	refused(t, h)
	h.write(12, "datagram")
	refusedNow(t, h, codeWaiting)
	h.wants(13, "datagram")
	refused(t, h)

	path := filepath.Join(t.TempDir(), "listens")
	h.socket(14, kernel.FamilyUnix, socketStream)
	h.bind(14, kernel.UnixAddress(path))
	h.call(sysListen, 14, 7)
	client, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	refusedNow(t, h, codeWaiting)
	h.call(syscall.SYS_ACCEPT4, 14, 0, 0, 0)
	os.Remove(path)
	refused(t, h, codeOutside, codeHidden)
}

// sendMessage is sendmsg(2) of one piece and control data.
func (h *held) sendMessage(fd int, data, control []byte) {
	h.t.Helper()
	at := make([]uint64, 2)
	for i, b := range [][]byte{data, control} {
		var err error
		if at[i], err = h.Place(b); err != nil {
			h.t.Fatal(err)
		}
	}
	piece := binary.NativeEndian.AppendUint64(binary.NativeEndian.AppendUint64(nil, at[0]), uint64(len(data)))
	pieceAt, err := h.Place(piece)
	if err != nil {
		h.t.Fatal(err)
	}
	var message []byte
	for _, word := range []uint64{0, 0, pieceAt, 1, at[1], uint64(len(control)), 0} {
		message = binary.NativeEndian.AppendUint64(message, word)
	}
	h.call(syscall.SYS_SENDMSG, fd, message, 0)
}

func inetName(t *testing.T, address string) []byte {
	t.Helper()
	a, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	if four := a.IP.To4(); four != nil {
		b := binary.BigEndian.AppendUint16([]byte{2, 0}, uint16(a.Port))
		return append(append(b, four...), make([]byte, 8)...)
	}
	b := binary.BigEndian.AppendUint16([]byte{10, 0}, uint16(a.Port))
	return append(append(append(b, 0, 0, 0, 0), a.IP.To16()...), 0, 0, 0, 0)
}

func TestInetSocketsAreKept(t *testing.T) {
	h := newHeld(t)
	h.socket(10, kernel.FamilyIPv4, socketStream|nonBlock)
	h.setOption(10, levelSocket, soReuseAddress, 1)
	h.setOption(10, levelSocket, 9, 1)
	h.setOption(10, levelTCP, 1, 1)
	h.setOption(10, levelTCP, 4, 77)
	h.setOption(10, levelSocket, soReceive, 30000)
	h.bind(10, inetName(t, "127.0.0.1:0"))
	h.call(sysListen, 10, 11)
	h.socket(11, kernel.FamilyIPv6, socketStream)
	h.setOption(11, levelIPv6, 26, 1)
	h.bind(11, inetName(t, "[::1]:0"))
	h.call(sysListen, 11, 5)
	h.socket(12, kernel.FamilyIPv4, socketDgram|nonBlock)
	h.bind(12, inetName(t, "127.0.0.1:0"))
	h.socket(13, kernel.FamilyIPv4, socketDgram|nonBlock)
	h.setOption(13, levelIP, 1, 16)
	h.connect(13, []byte(h.name(syscall.SYS_GETSOCKNAME, 12)))
	h.connect(12, []byte(h.name(syscall.SYS_GETSOCKNAME, 13)))
	h.call(sysDup3, h.call(syscall.SYS_SOCKET, kernel.FamilyIPv4, socketStream, protocolMPTCP), 17, 0)
	h.setOption(17, levelSocket, soReuseAddress, 1)
	h.bind(17, inetName(t, "127.0.0.1:0"))
	h.call(sysListen, 17, 9)
	h.socket(14, kernel.FamilyIPv4, socketStream) // new
	h.socket(15, kernel.FamilyIPv4, socketStream) // bound only
	h.bind(15, inetName(t, "127.0.0.1:0"))
	h.socket(16, kernel.FamilyIPv6, socketDgram) // of both families
	h.bind(16, inetName(t, "[::]:0"))

	im := keep(t, h)
	refusals, err := Plan(im, Restoring{})
	if err != nil || len(refusals) != 7 {
		t.Errorf("addresses that are taken: %v, error %v", refusals, err)
	}
	h = h.sockets(10, 11, 12, 13, 14, 15, 16, 17)

	for _, fd := range []int{10, 11, 17} {
		address := []byte(h.name(syscall.SYS_GETSOCKNAME, fd))
		c, err := net.DialTimeout("tcp", inetText(address), 10*time.Second)
		if err != nil {
			t.Error(err)
			continue
		}
		accepted := h.call(syscall.SYS_ACCEPT4, fd, 0, 0, 0)
		h.write(accepted, "hello")
		b := make([]byte, 10)
		if n, err := c.Read(b); err != nil || string(b[:n]) != "hello" {
			t.Errorf("read %q, error %v", b[:n], err)
		}
		c.Close()
	}
	if raw := h.option(10, levelTCP, tcpInfo); raw[28] != 11 {
		t.Errorf("the backlog is %d", raw[28])
	}
	h.write(13, "datagram")
	h.wants(12, "datagram")
}

func TestInetSocketsThatAreRefused(t *testing.T) {
	h := newHeld(t)
	for _, protocol := range []int{levelTCP, protocolMPTCP} {
		for _, multi := range []bool{false, true} {
			h.call(sysDup3, h.call(syscall.SYS_SOCKET, kernel.FamilyIPv4, socketStream, protocol), 10, 0)
			h.call(sysClose, 0)
			h.bind(10, inetName(t, "127.0.0.1:0"))
			h.call(sysListen, 10, 11)
			address := inetText([]byte(h.name(syscall.SYS_GETSOCKNAME, 10)))
			var dialer net.Dialer
			dialer.SetMultipathTCP(multi)
			client, err := dialer.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			refusedNow(t, h, codeWaiting)
			accepted := h.call(syscall.SYS_ACCEPT4, 10, 0, 0, 0)
			if protocol == protocolMPTCP && multi {
				refused(t, h, codeConnection)
			} else {
				refused(t, h)
			}
			client.Close()
			h.wants(accepted, "")
			if protocol == protocolMPTCP && multi {
				refused(t, h, codeConnection)
			} else {
				refused(t, h)
			}
			h.call(sysClose, accepted)
			refused(t, h)
		}
	}

	h.socket(12, kernel.FamilyIPv4, socketStream)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	h.connect(12, inetName(t, listener.Addr().String()))
	peer, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(peer.(*net.TCPConn).SetLinger(0), peer.Close()); err != nil { // a reset
		t.Fatal(err)
	}
	if _, err := h.read(12, 1); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("after a reset: %v", err)
	}
	refusedNow(t, h, codeConnection)
	h.call(sysClose, 12)

	h.socket(11, kernel.FamilyIPv4, socketDgram)
	h.bind(11, inetName(t, "127.0.0.1:0"))
	sender, err := net.Dial("udp", inetText([]byte(h.name(syscall.SYS_GETSOCKNAME, 11))))
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	if _, err := sender.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	refusedNow(t, h, codeWaiting)
	h.wants(11, "x")
	h.setFilter(11, []byte{6, 0, 0, 0, 0, 0, 0, 0}) // ret 0
	h.setOption(11, levelSocket, soLockFilter, 1)
	refusedNow(t, h, codeFilter)
	h.call(sysClose, 11)

	h.socket(11, kernel.FamilyNetlink, socketRaw)
	request := binary.NativeEndian.AppendUint16(binary.NativeEndian.AppendUint32(nil, 17), 18) // RTM_GETLINK
	request = append(binary.NativeEndian.AppendUint16(request, 0x301), make([]byte, 9)...)     // of all
	h.call(syscall.SYS_SENDTO, 11, request, len(request), 0, 0, 0)
	refusedNow(t, h, codeWaiting)
	h.call(sysClose, 11)
	fd := h.call(syscall.SYS_SOCKET, kernel.FamilyNetlink, socketRaw, 12) // of netfilter
	refusedNow(t, h, codeKind)
	h.bind(fd, append([]byte{16}, make([]byte, netlinkNameSize-1)...))
	refused(t, h, codeKind)
	h.call(sysClose, fd)
	fd = h.call(syscall.SYS_SOCKET, kernel.FamilyIPv4, socketRaw, 253)
	h.connect(fd, inetName(t, "127.0.0.1:0"))
	refusedNow(t, h, codeKind)
	h.call(sysClose, fd)
	h.call(syscall.SYS_SOCKET, 17, socketRaw, 0) // of packets
	refused(t, h, codeKind)
}

// TestRenamedUnixSockets: servers bind to a name and rename it when they listen.
func TestRenamedUnixSockets(t *testing.T) {
	folder := t.TempDir()
	made, renamed := filepath.Join(folder, "sock.tmp"), filepath.Join(folder, "sock")
	h := newHeld(t)
	h.socket(10, kernel.FamilyUnix, socketStream)
	h.bind(10, kernel.UnixAddress(made))
	h.call(sysListen, 10, 7)
	if err := os.Rename(made, renamed); err != nil {
		t.Fatal(err)
	}
	h = h.sockets(10)
	c, err := net.Dial("unix", renamed)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	h.call(sysClose, h.call(syscall.SYS_ACCEPT4, 10, 0, 0, 0))
	if _, err := os.Lstat(made); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: %v", made, err)
	}

	im := keep(t, h)
	h.kill()
	os.Remove(renamed)
	other, err := net.Listen("unix", renamed)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if refusals, err := Plan(im, Restoring{}); err != nil || !cmp.Equal(codes(refusals), []api.Code{codeAddress}) {
		t.Errorf("another has the socket: %v, error %v", refusals, err)
	}
	if o, err := Open(im, Restoring{}); err == nil {
		t.Error("another's socket was taken")
		o.Close()
	}
	if c, err := net.Dial("unix", renamed); err != nil {
		t.Errorf("another's socket is gone: %v", err)
	} else {
		c.Close()
	}
}

// TestReplacedUnixSockets: another has bound to the path since.
func TestReplacedUnixSockets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	h := newHeld(t)
	h.socket(10, kernel.FamilyUnix, socketStream)
	h.bind(10, kernel.UnixAddress(path))
	h.call(sysListen, 10, 7)
	os.Remove(path)
	other, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	refused(t, h, codeHidden)
}
