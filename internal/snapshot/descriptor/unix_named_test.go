package descriptor

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// accept connects descriptor client to the name that descriptor listening is bound to,
// and accepts it as another.
func (h *held) accept(listening, client, accepted, kind int, name []byte) {
	h.t.Helper()
	h.socket(client, kernel.FamilyUnix, kind|nonBlock)
	h.connect(client, name)
	fd := h.call(syscall.SYS_ACCEPT4, listening, 0, 0, nonBlock)
	h.call(sysDup3, fd, accepted, 0)
	h.call(sysClose, fd)
}

func TestUnixConnectionsAreKept(t *testing.T) {
	h := newHeld(t)
	folder := t.TempDir()
	path, renamed := filepath.Join(folder, "listens"), filepath.Join(folder, "renamed")
	abstract := "\x00vos-test-" + filepath.Base(folder)
	h.connections(t, path, abstract)
	if err := os.Rename(path, renamed); err != nil {
		t.Fatal(err)
	}
	h.write(20, "to the server")
	h.write(11, "to the client")
	h.call(syscall.SYS_SHUTDOWN, 22, 1)
	h.call(sysClose, 23) // the client of 13 is gone
	h.call(sysClose, 14) // the server of 24 is gone

	h = h.sockets(10, 11, 12, 13, 20, 21, 22, 24, 30, 31, 32)

	h.wants(10, "to the server")
	h.wants(21, "to the client")
	h.wants(12, "")
	h.wants(13, "")
	h.wants(24, "")
	for _, from := range []int{10, 20, 11, 21, 12, 31, 32} {
		to := map[int]int{10: 20, 20: 10, 11: 21, 21: 11, 12: 22, 31: 32, 32: 31}[from]
		h.write(from, "one")
		h.wants(to, "one")
	}
	for network, name := range map[string]string{"unix": renamed, "unixpacket": "@" + abstract[1:]} {
		c, err := net.Dial(network, name)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
}

// connections makes five connections by a path, of which 10 to 14 are accepted, and one of
// packets by an abstract name.
func (h *held) connections(t *testing.T, path, abstract string) {
	t.Helper()
	// The first client is opened before what it connects to.
	h.socket(20, kernel.FamilyUnix, socketStream|nonBlock)
	h.socket(29, kernel.FamilyUnix, socketStream|nonBlock)
	h.bind(29, kernel.UnixAddress(path))
	h.call(sysListen, 29, 0)
	h.connect(20, kernel.UnixAddress(path))
	fd := h.call(syscall.SYS_ACCEPT4, 29, 0, 0, nonBlock)
	h.call(sysDup3, fd, 10, 0)
	h.call(sysClose, fd)
	for i := 1; i < 5; i++ {
		h.accept(29, 20+i, 10+i, socketStream, kernel.UnixAddress(path))
	}
	h.call(sysDup3, 29, 30, 0)
	h.call(sysClose, 29)
	name := append([]byte{1, 0}, abstract...)
	h.socket(33, kernel.FamilyUnix, socketPacket|nonBlock)
	h.bind(33, name)
	h.call(sysListen, 33, 3)
	h.accept(33, 31, 32, socketPacket, name)
}

func TestUnixConnectionsThatAreRefused(t *testing.T) {
	h := newHeld(t)
	path := filepath.Join(t.TempDir(), "listens")
	h.socket(10, kernel.FamilyUnix, socketStream)
	h.bind(10, kernel.UnixAddress(path))
	h.call(sysListen, 10, 1)
	h.accept(10, 11, 12, socketStream, kernel.UnixAddress(path))
	refused(t, h)
	im := keep(t, h)

	// Both ends have a name.
	h.socket(13, kernel.FamilyUnix, socketStream)
	h.bind(13, append([]byte{1, 0}, "\x00vos-test-named"...))
	h.connect(13, kernel.UnixAddress(path))
	fd := h.call(syscall.SYS_ACCEPT4, 10, 0, 0, 0)
	refused(t, h, codeConnection)
	h.call(sysClose, 13)
	h.call(sysClose, fd)

	// Nothing listens.
	h.call(sysClose, 10)
	refused(t, h, codeConnection)
	h.kill()
	for i := range im.Files {
		if s := im.Files[i].Socket; s != nil && s.State == stateListening {
			im.Files[i].Kind, s.State = image.Inherited, ""
		}
	}
	if _, err := Plan(im, Restoring{}); err == nil || !strings.Contains(err.Error(), "nothing of the image listens") {
		t.Errorf("an image whose connection leads nowhere: %v", err)
	}
}

func TestConnectionToADisplayIsRefused(t *testing.T) {
	for _, name := range []string{"\x00/tmp/.X11-unix/X4321", "\x00/run/user/0/wayland-0"} {
		server, h := newHeld(t), newHeld(t)
		at := append([]byte{1, 0}, name...)
		server.socket(10, kernel.FamilyUnix, socketStream)
		server.bind(10, at)
		server.call(sysListen, 10, 1)
		h.socket(10, kernel.FamilyUnix, socketStream)
		h.connect(10, at)
		server.call(syscall.SYS_ACCEPT4, 10, 0, 0, 0)
		if r := refused(t, h, codeOutside); !strings.Contains(r[0].Remedy, "xvfb-run") {
			t.Errorf("%s: the remedy is %q", name[1:], r[0].Remedy)
		}
	}
}
