package handle

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// child starts a process that holds files as its descriptors from 3 on, and nothing
// else of this process but what it has as 0 to 2.
func child(t *testing.T, files ...*os.File) *procfs.Process {
	t.Helper()
	cmd := exec.Command(testbed.NeedTool(t, "sleep"), "60")
	cmd.ExtraFiles = files
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	p, err := procfs.Open(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// survey lists a process's handles, completed.
func survey(t *testing.T, p *procfs.Process) map[int]Handle {
	t.Helper()
	handles, restless, err := List(p)
	if err != nil || len(restless) > 0 {
		t.Fatal(restless, err)
	}
	s := NewSurvey()
	defer s.Close()
	if err := s.Complete(t.Context(), p, handles); err != nil {
		t.Fatal(err)
	}
	byFD := map[int]Handle{}
	for _, h := range handles {
		byFD[h.FD] = h
	}
	return byFD
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

func socketpair(t *testing.T, kind int) (a, b *os.File) {
	t.Helper()
	ends, err := syscall.Socketpair(syscall.AF_UNIX, kind|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, b = os.NewFile(uintptr(ends[0]), "a"), os.NewFile(uintptr(ends[1]), "b")
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func hold(p *procfs.Process, fd int) Holder { return Holder{p.PID(), "sleep", fd} }

func TestPeersAndSharers(t *testing.T) {
	r, w := pipe(t)
	a, b := socketpair(t, syscall.SOCK_SEQPACKET)
	fifo := filepath.Join(t.TempDir(), "fifo\n(deleted)")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	both, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer both.Close()
	reads, err := os.Open(fifo)
	if err != nil {
		t.Fatal(err)
	}
	defer reads.Close()
	null1, null2 := open2(t, "/dev/null"), open2(t, "/dev/null")

	first := child(t, r, a, both, null1, null1, null2)
	second := child(t, w, b, reads, null1)
	one, two := survey(t, first), survey(t, second)
	for _, test := range []struct {
		what      string
		got, want []Holder
	}{
		{"who writes to the pipe", one[3].Peers, []Holder{hold(second, 3)}},
		{"who reads the pipe", two[3].Peers, []Holder{hold(first, 3)}},
		{"the socket's other end", one[4].Peers, []Holder{hold(second, 4)}},
		{"and back", two[4].Peers, []Holder{hold(first, 4)}},
		{"who reads the FIFO", one[5].Peers, []Holder{hold(second, 5)}},
		{"who writes to the FIFO", two[5].Peers, []Holder{hold(first, 5)}},
		{"who shares a device", one[6].Sharers, []Holder{hold(first, 7), hold(second, 6)}},
		{"its duplicate", one[7].Sharers, []Holder{hold(first, 6), hold(second, 6)}},
		{"the other process's", two[6].Sharers, []Holder{hold(first, 6), hold(first, 7)}},
		{"one opened apart", one[8].Sharers, nil},
		{"a pipe's end", one[3].Sharers, nil},
	} {
		if !slices.Equal(test.got, test.want) {
			t.Errorf("%s: %v, want %v", test.what, test.got, test.want)
		}
	}
	if h := one[5]; h.Kind != KindFIFO || h.Path != fifo || h.Deleted {
		t.Errorf("%+v", h)
	}
	if s := one[4].Socket; s == nil || s.Family != "unix" || s.Type != "seqpacket" || s.State != "established" {
		t.Errorf("%+v", s)
	}
}

func open2(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// fileOf takes the descriptor out of the net package's hands.
func fileOf(t *testing.T, c interface{ File() (*os.File, error) }) *os.File {
	t.Helper()
	f, err := c.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestSockets(t *testing.T) {
	var plain net.ListenConfig
	plain.SetMultipathTCP(false)
	for network, address := range map[string]string{"tcp4": "127.0.0.1:0", "tcp6": "[::1]:0"} {
		listener, err := plain.Listen(t.Context(), network, address)
		if err != nil {
			t.Logf("%s: %v", network, err) // a machine without IPv6
			continue
		}
		defer listener.Close()
		dialled, err := net.Dial(network, listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer dialled.Close()
		accepted, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer accepted.Close()
		if _, err := dialled.Write(make([]byte, 1234)); err != nil {
			t.Fatal(err)
		}
		server := child(t, fileOf(t, listener.(*net.TCPListener)), fileOf(t, accepted.(*net.TCPConn)))
		client := child(t, fileOf(t, dialled.(*net.TCPConn)))
		family := map[string]string{"tcp4": "inet", "tcp6": "inet6"}[network]
		ofServer, ofClient := survey(t, server), survey(t, client)
		if s := ofServer[3].Socket; s.Family != family || s.Type != "stream" || s.State != "listen" || s.Protocol != "tcp" ||
			s.LocalAddress() != listener.Addr().String() || s.RemoteAddress() != "" {
			t.Errorf("%s: %+v", network, s)
		}
		if s := ofServer[4].Socket; s.State != "established" || s.Receive != 1234 ||
			s.LocalAddress() != listener.Addr().String() || s.RemoteAddress() != dialled.LocalAddr().String() {
			t.Errorf("%s: %+v", network, s)
		}
		if got, want := ofServer[4].Peers, []Holder{hold(client, 3)}; !slices.Equal(got, want) {
			t.Errorf("%s: peers of the server %v, want %v", network, got, want)
		}
		if got, want := ofClient[3].Peers, []Holder{hold(server, 4)}; !slices.Equal(got, want) {
			t.Errorf("%s: peers of the client %v, want %v", network, got, want)
		}
	}
	var files []*os.File
	socket := func(family, kind, protocol int) {
		t.Helper()
		fd, err := syscall.Socket(family, kind|syscall.SOCK_CLOEXEC, protocol)
		if err != nil {
			t.Logf("socket %d %d %d: %v", family, kind, protocol, err)
			fd = create(t, "/dev/null", os.O_RDONLY)
		}
		f := os.NewFile(uintptr(fd), "socket")
		t.Cleanup(func() { f.Close() })
		files = append(files, f)
	}
	socket(syscall.AF_INET, syscall.SOCK_STREAM, 0) // 3: in no table
	socket(syscall.AF_INET6, syscall.SOCK_DGRAM, 0) // 4: likewise
	socket(syscall.AF_NETLINK, syscall.SOCK_RAW, 0) // 5
	socket(syscall.AF_INET, syscall.SOCK_DGRAM, 0)  // 6
	socket(syscall.AF_UNIX, syscall.SOCK_DGRAM, 0)  // 7
	socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0) // 8
	if err := syscall.Bind(int(files[3].Fd()), &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	name := "abstract\n\x1b[2J" + t.Name()
	if err := syscall.Bind(int(files[4].Fd()), &syscall.SockaddrUnix{Name: "@" + name}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "with\nnewline")
	if err := syscall.Bind(int(files[5].Fd()), &syscall.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(int(files[5].Fd()), 7); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Bind(int(files[2].Fd()), &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}); err != nil {
		t.Fatal(err)
	}
	p := child(t, files...)
	all := survey(t, p)
	for fd, want := range map[int]Socket{
		3: {Family: "inet", Type: "stream", Protocol: "tcp"},
		4: {Family: "inet6", Type: "dgram", Protocol: "udp"},
		5: {Family: "netlink", Protocol: "route", Found: true, State: "unconnected"},
		7: {Family: "unix", Type: "dgram", Found: true, State: "unconnected", Name: name, Abstract: true},
		8: {Family: "unix", Type: "stream", Found: true, State: "listen", Name: path, Send: 7},
	} {
		got := all[fd].Socket
		if got != nil && want.Name != "" && !want.Abstract {
			info, err := os.Lstat(want.Name)
			if err != nil {
				t.Fatal(err)
			}
			want.FileInode = uint32(info.Sys().(*syscall.Stat_t).Ino)
		}
		if got == nil || *got != want {
			t.Errorf("%d: %+v, want %+v", fd, got, want)
		}
	}
	bound, err := syscall.Getsockname(int(files[3].Fd()))
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("127.0.0.1:%d", bound.(*syscall.SockaddrInet4).Port)
	if s := all[6].Socket; s.Protocol != "udp" || s.State != "unconnected" || s.LocalAddress() != want || s.RemoteAddress() != "" {
		t.Errorf("%+v, want %s", s, want)
	}

	// Without sock_diag /proc says the same, but for the queues and the file's inode.
	table := &socketTable{byInode: map[uint64]Socket{}, byPair: map[addressPair]uint64{}, loaded: map[string]bool{}}
	for _, fd := range []int{6, 7, 8} {
		h := all[fd]
		if err := table.load(p, h.Socket); err != nil {
			t.Fatal(err)
		}
		got, want := table.byInode[h.Inode], *h.Socket
		got.Send, want.Send, want.FileInode = 0, 0, 0
		if fd != 6 { // a name with a newline breaks the line
			want.Name, _, _ = cutLine(want.Name)
		}
		if got != want {
			t.Errorf("by /proc, %d: %+v, want %+v", fd, got, want)
		}
	}
}

func cutLine(s string) (before, after string, found bool) {
	for i, c := range s {
		if c == '\n' {
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}

// A socket whose name makes up a line of the table is left out, not believed.
func TestMadeUpSockets(t *testing.T) {
	const head = "Num       RefCount Protocol Flags    Type St Inode Path\n"
	line := func(inode int, path string) string {
		return fmt.Sprintf("000000004d63eaf1: 00000003 00000000 00010000 0001 01 %d %s\n", inode, path)
	}
	table := &socketTable{byInode: map[uint64]Socket{}}
	table.parseUnixTable([]byte(head + line(5, "/a\n"+strings.TrimSuffix(line(6, "/made up"), "\n")) + line(6, "/real") + line(7, "") + "rubbish\n"))
	if len(table.byInode) != 2 || table.byInode[5].Name != "/a" || table.byInode[7].State != "listen" {
		t.Errorf("%+v", table.byInode)
	}
}

func FuzzDiag(f *testing.F) {
	f.Add(make([]byte, 72))
	f.Add(append(make([]byte, 16), 5, 0, 0, 0, 'x'))
	f.Fuzz(func(t *testing.T, b []byte) {
		parseInet(b, "TCP")
		parseUnix(b)
		table := &socketTable{byInode: map[uint64]Socket{}, byPair: map[addressPair]uint64{}}
		table.parseNetTable(b, "TCPv6")
		table.parseUnixTable(b)
		table.parseNetlinkTable(b)
		table.parsePacketTable(b)
	})
}

// Connections by MPTCP have sockets of TCP below them, which nobody holds.
func TestMultipathSockets(t *testing.T) {
	var config net.ListenConfig
	config.SetMultipathTCP(true)
	listener, err := config.Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	var dialer net.Dialer
	dialer.SetMultipathTCP(true)
	dialled, err := dialer.DialContext(t.Context(), "tcp4", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer dialled.Close()
	accepted, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	want := "mptcp"
	if multipath, err := dialled.(*net.TCPConn).MultipathTCP(); err != nil || !multipath {
		t.Logf("no MPTCP here: %v", err)
		want = "tcp"
	}
	server := child(t, fileOf(t, accepted.(*net.TCPConn)))
	client := child(t, fileOf(t, dialled.(*net.TCPConn)))
	h := survey(t, server)[3]
	if s := h.Socket; s.Protocol != want || s.State != "established" || s.LocalAddress() != listener.Addr().String() ||
		s.RemoteAddress() != dialled.LocalAddr().String() {
		t.Errorf("%+v", s)
	}
	if got := []Holder{hold(client, 3)}; !slices.Equal(h.Peers, got) {
		t.Errorf("peers %v, want %v", h.Peers, got)
	}
}
