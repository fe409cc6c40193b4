package descriptor

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// end keeps a process with its connections and kills it.
func (h *held) end() *image.Image {
	h.t.Helper()
	im, leaving := h.leave()
	h.kill()
	if note := leaving.Ended(); strings.Contains(note, "only") || strings.Contains(note, "told") {
		h.t.Error(note)
	}
	if err := leaving.Close(); err != nil {
		h.t.Error(err)
	}
	return im
}

// leave keeps a process that is about to be killed.
func (h *held) leave() (*image.Image, *Leaving) {
	h.t.Helper()
	found, refusals, err := Look(testContext(h.t), []*procfs.Process{h.process()}, Options{})
	if err != nil || len(refusals) > 0 {
		h.t.Fatalf("refused: %v, error %v", refusals, err)
	}
	pages := &pagesInMemory{}
	kept, err := found.Dump(testContext(h.t), Store{Append: pages.append})
	if err != nil {
		h.t.Fatal(err)
	}
	im := &image.Image{Files: kept.Files, Held: kept.Leaving.Name(), Processes: []image.Process{{PID: h.pid, Root: "/", Descriptors: kept.Descriptors[h.pid]}}}
	pagesOf[im] = pages
	h.t.Cleanup(func() { unheld(h.t, im.Held) })
	if err := kept.Leaving.Hold(); err != nil {
		h.t.Fatal(err)
	}
	return im, kept.Leaving
}

// unheld removes what holds connections.
func unheld(t *testing.T, table string) {
	t.Helper()
	filter, err := kernel.OpenNetfilter()
	if err == nil {
		err = errors.Join(filter.Replace(nil, table), filter.Close())
	}
	if err != nil {
		t.Error(err)
	}
}

// returns makes the descriptors again, with the connections up to a point: 0 is made, 1
// is usable, 2 is that they go on.
func returns(t *testing.T, im *image.Image, point int) *held {
	t.Helper()
	r := Restoring{ReadPages: pagesOf[im].read}
	refusals, err := Plan(im, r)
	if err != nil || len(refusals) > 0 {
		t.Fatalf("refused: %v, error %v", refusals, err)
	}
	h := newHeld(t)
	o, err := Open(im, r)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Give(h, &im.Processes[0]); err != nil {
		t.Fatal(err)
	}
	back := o.Returning()
	err = o.Close()
	if point > 0 {
		err = errors.Join(err, back.Ready())
	}
	if point > 1 {
		err = errors.Join(err, back.Go())
	} else {
		h.kill()
	}
	if err := errors.Join(err, back.Close()); err != nil {
		t.Fatal(err)
	}
	return h
}

// state is what is to be the same of a connection.
func (h *held) state(fd int) string {
	info := h.option(fd, levelTCP, tcpInfo)
	text := fmt.Sprintf("bound %q, connected %q, options %x, scales %x, unread %d", h.name(syscall.SYS_GETSOCKNAME, fd), h.name(syscall.SYS_GETPEERNAME, fd),
		info[infoOptions]&7, info[infoScales], h.waiting(fd))
	for level, names := range keptOptions {
		for _, name := range names {
			// IPV6_V6ONLY is set by binding to an address of IPv6.
			if !slices.Contains(notOfConnections[level], name) && (level != levelIPv6 || name != 26) {
				text += fmt.Sprintf("\noption %d of level %d: %q", name, level, h.option(fd, level, name))
			}
		}
	}
	for _, name := range []int{soType, soProtocol, soDomain, soSendBuffer, soReceive, soBufferLock} {
		text += fmt.Sprintf("\noption %d: %q", name, h.option(fd, levelSocket, name))
	}
	lines := strings.Split(text, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func (h *held) waiting(fd int) int {
	h.t.Helper()
	n := make([]byte, 4)
	h.call(syscall.SYS_IOCTL, fd, 0x541b, n)
	return int(n[0]) | int(n[1])<<8 | int(n[2])<<16
}

// connects makes a connection of descriptor fd, that the process itself has made or
// accepted.
func (h *held) connects(fd int, address string, accepts bool) *net.TCPConn {
	h.t.Helper()
	family := kernel.FamilyIPv4
	if strings.Contains(address, "[") {
		family = kernel.FamilyIPv6
	}
	if !accepts {
		l, err := net.Listen("tcp", strings.Replace(address, "[::ffff:127.0.0.1]", "127.0.0.1", 1))
		if err != nil {
			h.t.Fatal(err)
		}
		defer l.Close()
		h.socket(fd, family, socketStream)
		to := l.Addr().(*net.TCPAddr)
		name := inetName(h.t, to.String())
		if strings.Contains(address, "ffff") {
			name = []byte{10, 0, byte(to.Port >> 8), byte(to.Port), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 127, 0, 0, 1, 0, 0, 0, 0}
		}
		h.connect(fd, name)
		c, err := l.Accept()
		if err != nil {
			h.t.Fatal(err)
		}
		return h.peer(c)
	}
	listener := fd + 1
	h.socket(listener, family, socketStream)
	h.setOption(listener, levelSocket, soReuseAddress, 1)
	h.bind(listener, inetName(h.t, address))
	h.call(sysListen, listener, 5)
	own, err := netip.ParseAddrPort(inetText([]byte(h.name(syscall.SYS_GETSOCKNAME, listener))))
	if err != nil {
		h.t.Fatal(err)
	}
	c, err := net.Dial("tcp", own.String())
	if err != nil {
		h.t.Fatal(err)
	}
	accepted := h.call(syscall.SYS_ACCEPT4, listener, 0, 0, 0)
	h.call(sysDup3, accepted, fd, 0)
	h.call(sysClose, accepted)
	return h.peer(c)
}

func (h *held) peer(c net.Conn) *net.TCPConn {
	h.t.Helper()
	h.t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		h.t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

// TestConnectionsAreKept keeps connections that do nothing, have data in all queues and
// have ended on one side, of both families and made by either end.
func TestConnectionsAreKept(t *testing.T) {
	for name, of := range map[string]struct {
		address string
		accepts bool
	}{
		"accepted": {"127.0.0.1:0", true}, "connected": {"127.0.0.1:0", false},
		"accepted IPv6": {"[::1]:0", true}, "connected IPv6": {"[::1]:0", false}, "connected to IPv4 by IPv6": {"[::ffff:127.0.0.1]:0", false},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHeld(t)
			quiet, busy := h.connects(10, of.address, of.accepts), h.connects(20, of.address, of.accepts)
			half, deaf := h.connects(30, of.address, of.accepts), h.connects(40, of.address, of.accepts)
			left, gone := h.connects(50, of.address, of.accepts), h.connects(60, of.address, of.accepts)
			h.setOption(10, levelTCP, 1, 1)
			h.setOption(10, levelSocket, 9, 1)
			h.setOption(10, levelTCP, 4, 33)
			h.setOption(20, levelSocket, soReceive, 300000)
			mine, theirs := random(3_000_000), random(100_000)
			written := h.fills(20, mine)
			if _, err := busy.Write(theirs); err != nil {
				t.Fatal(err)
			}
			for h.waiting(20) < len(theirs) {
				time.Sleep(time.Millisecond)
			}
			h.write(30, "last words")
			h.call(syscall.SYS_SHUTDOWN, 30, 1)
			h.call(syscall.SYS_SHUTDOWN, 40, 0)
			for _, c := range []*net.TCPConn{left, gone} {
				if _, err := c.Write([]byte("farewell")); err != nil {
					t.Fatal(err)
				}
				if err := c.CloseWrite(); err != nil {
					t.Fatal(err)
				}
			}
			h.wants(60, "farewell")
			for _, fd := range []int{50, 60} {
				for h.option(fd, levelTCP, tcpInfo)[0] != tcpCloseWait {
					time.Sleep(time.Millisecond)
				}
			}
			before := map[int]string{50: h.state(50), 60: h.state(60), 10: h.state(10), 20: h.state(20), 30: h.state(30), 40: h.state(40)}

			im := h.end()
			// What peers send and want meanwhile comes later.
			for _, c := range []*net.TCPConn{quiet, half} {
				if _, err := c.Write([]byte("meanwhile")); err != nil {
					t.Fatal(err)
				}
			}
			returns(t, im, 0) // fails
			returns(t, im, 1) // fails later
			h = returns(t, im, 2)

			for fd, was := range before {
				now := h.state(fd)
				if fd == 10 || fd == 30 {
					now = strings.Replace(now, "unread 9", "unread 0", 1) // it may be there already
				}
				if diff := cmp.Diff(was, now); diff != "" {
					t.Errorf("descriptor %d (-kept +restored):\n%s", fd, diff)
				}
			}
			h.wants(10, "meanwhile")
			h.wants(30, "meanwhile")
			h.write(10, "answer")
			expect(t, quiet, "answer")
			h.wants(50, "farewell")
			for fd, c := range map[int]*net.TCPConn{50: left, 60: gone} {
				h.wants(fd, "")
				h.write(fd, "to you, too")
				expect(t, c, "to you, too")
				h.call(syscall.SYS_SHUTDOWN, fd, 1)
				if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
					t.Errorf("behind its own farewell: %d, %v", n, err)
				}
			}
			h.write(40, "from the deaf")
			expect(t, deaf, "from the deaf")
			h.wants(40, "")
			expect(t, half, "last words")
			if n, err := half.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Errorf("behind the last words: %d, %v", n, err)
			}
			got := make([]byte, written)
			if _, err := io.ReadFull(busy, got); err != nil || !bytes.Equal(got, mine[:written]) {
				t.Errorf("what was sent is not what is received: %v", err)
			}
			if read := h.reads(20, len(theirs)); !bytes.Equal(read, theirs) {
				t.Error("what was received is not what is read")
			}
			for _, c := range []*net.TCPConn{quiet, busy} {
				if err := c.CloseWrite(); err != nil {
					t.Fatal(err)
				}
			}
			h.wants(10, "")
			h.wants(20, "")
			// Nobody goes on with them twice.
			refusals, err := Plan(im, Restoring{})
			for _, code := range codes(refusals) {
				if code != codeLost && code != codeAddress {
					t.Errorf("once more: %v", refusals)
				}
			}
			if err != nil || len(refusals) < 4 {
				t.Errorf("once more: %v, error %v", refusals, err)
			}
		})
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

// fills writes as much as there is room for.
func (h *held) fills(fd int, data []byte) (written int) {
	h.t.Helper()
	h.call(sysFcntl, fd, 4, nonBlock)
	for written < len(data) {
		n, err := h.try(syscall.SYS_WRITE, fd, data[written:min(len(data), written+500_000)], min(len(data)-written, 500_000))
		if errors.Is(err, syscall.EAGAIN) {
			break
		}
		if err != nil {
			h.t.Fatal(err)
		}
		written += int(n)
	}
	h.call(sysFcntl, fd, 4, 0)
	return written
}

func (h *held) reads(fd, most int) (all []byte) {
	h.t.Helper()
	for len(all) < most {
		part, err := h.read(fd, 100_000)
		if err != nil || part == "" {
			h.t.Fatalf("%d bytes were read: %v", len(all), err)
		}
		all = append(all, part...)
	}
	return all
}

func expect(t *testing.T, c net.Conn, want string) {
	t.Helper()
	b := make([]byte, len(want))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
		t.Errorf("the peer has %q, error %v; want %q", b, err, want)
	}
}

// TestConnectionsGoOn lets vos give up at each point of keeping: nothing is lost, and
// nothing stays.
func TestConnectionsGoOn(t *testing.T) {
	h := newHeld(t)
	peer := h.connects(10, "127.0.0.1:0", true)
	before := h.state(10)
	im, leaving := h.leave()
	h.write(10, "held")
	if err := leaving.Close(); err != nil {
		t.Fatal(err)
	}
	expect(t, peer, "held")
	if diff := cmp.Diff(before, h.state(10)); diff != "" {
		t.Errorf("(-before +after):\n%s", diff)
	}
	// As one that is killed does.
	_, leaving = h.leave()
	h.write(10, "again")
	die(t, leaving.filter, leaving.copies)
	expect(t, peer, "again") // in some seconds
	refusals, err := Plan(im, Restoring{})
	if want := []api.Code{codeAddress, codeLost}; err != nil || !cmp.Equal(codes(refusals), want) {
		t.Errorf("refused: %v, error %v; want %v", refusals, err, want)
	}
	if _, err := Open(im, Restoring{}); err == nil {
		t.Error("a connection that is not held was made again")
	}
}

// TestConnectionsOutliveVOS lets vos die when the program has just been killed, and when
// it is just about to be there again: what is left tries to tell the peer of an end.
func TestConnectionsOutliveVOS(t *testing.T) {
	h := newHeld(t)
	peer, six := h.connects(10, "127.0.0.1:0", true), h.connects(20, "[::1]:0", false)
	im, leaving := h.leave()
	h.kill()
	die(t, leaving.filter, leaving.copies)
	for range 2 {
		r := Restoring{ReadPages: pagesOf[im].read}
		o, err := Open(im, r)
		if err != nil {
			t.Fatal(err)
		}
		back := o.Returning()
		if err := errors.Join(back.Ready(), o.Close()); err != nil {
			t.Fatal(err)
		}
		var copies []kernel.Raw
		for _, m := range back.made {
			copies = append(copies, m.raw)
		}
		die(t, back.filter, copies)
	}
	h = returns(t, im, 2)
	h.write(10, "alive")
	expect(t, peer, "alive")
	h.write(20, "alive")
	expect(t, six, "alive")
}

// die closes what vos has, as its death does.
func die(t *testing.T, filter *kernel.Netfilter, copies []kernel.Raw) {
	t.Helper()
	for _, raw := range copies {
		if err := raw.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := filter.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestConnectionsAreClosed restores without the connections.
func TestConnectionsAreClosed(t *testing.T) {
	h := newHeld(t)
	h.connects(10, "[::1]:0", false)
	h.connects(20, "127.0.0.1:0", false)
	im := keep(t, h)
	if refusals, err := Plan(im, Restoring{}); err != nil || !cmp.Equal(codes(refusals), []api.Code{codeLost, codeLost}) {
		t.Errorf("refused: %v, error %v", refusals, err)
	}
	h.kill()
	h = again(t, im, Restoring{CloseConnections: true})
	for _, fd := range []int{10, 20} {
		if _, err := h.read(fd, 1); !errors.Is(err, syscall.ECONNABORTED) {
			t.Errorf("descriptor %d: %v", fd, err)
		}
	}
}

// TestConnectionsThatAreRefused has what can't be read or made again.
func TestConnectionsThatAreRefused(t *testing.T) {
	h := newHeld(t)
	peer := h.connects(10, "127.0.0.1:0", false)
	raw, err := peer.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	// Urgent data.
	if failed := raw.Control(func(fd uintptr) { err = syscall.Sendto(int(fd), []byte("!"), 1, nil) }); failed != nil || err != nil {
		t.Fatal(failed, err)
	}
	for {
		if found, _, err := Look(testContext(t), []*procfs.Process{h.process()}, Options{GoesOn: true}); err != nil {
			t.Fatal(err)
		} else if _, err = found.Dump(testContext(t), Store{}); err != nil {
			break // it has come
		}
	}
	refusedNow(t, h, codeConnection)
	h.call(sysClose, 10)

	h.connects(10, "127.0.0.1:0", false)
	h.setOption(10, levelSocket, soPeekOffset, 0)
	refusedNow(t, h, codeConnection)
	h.call(sysClose, 10)

	// A key for the peer's address.
	h.socket(10, kernel.FamilyIPv4, socketStream)
	key := make([]byte, 216) // struct tcp_md5sig
	copy(key, inetName(t, "127.0.0.1:1"))
	key[129], key[130], key[131] = 0, 3, 0
	copy(key[136:], "key")
	h.call(syscall.SYS_SETSOCKOPT, 10, levelTCP, 14, key, len(key))
	h.bind(10, inetName(t, "127.0.0.1:0"))
	h.call(sysListen, 10, 5)
	refused(t, h, codeConnection)
	h.call(sysClose, 10)
	refused(t, h)

	for name, spoil := range map[string]func(im *image.Image){
		"name":    func(im *image.Image) { im.Held = "filter" },
		"window":  func(im *image.Image) { im.Files[0].Socket.TCP.Window = nil },
		"option":  func(im *image.Image) { im.Files[0].Socket.TCP.Options[0].Name = 99 },
		"address": func(im *image.Image) { im.Files[0].Socket.Peer = inetName(t, "[::1]:5") },
		"buffer":  func(im *image.Image) { im.Files[0].Socket.TCP.SendBuffer = -1 },
	} {
		h := newHeld(t)
		h.connects(10, "127.0.0.1:0", false)
		im := h.end()
		held := im.Held
		spoil(im)
		if refusals, err := Plan(im, Restoring{}); err == nil {
			t.Errorf("%s: %v", name, refusals)
		}
		unheld(t, held)
	}
}
