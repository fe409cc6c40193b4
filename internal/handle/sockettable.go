package handle

import (
	"errors"
	"io/fs"
	"os"

	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// A socketTable is the sockets of one network namespace, of the families that were
// asked for.
type socketTable struct {
	byInode map[uint64]Socket
	byPair  map[addressPair]uint64 // connected ones of inet and inet6

	diag   *kernel.SocketDiag // nil where it can't be had: then /proc must do
	loaded map[string]bool
}

// openSocketTable opens the table of a process's network namespace; own tells that
// it is vos's too.
func openSocketTable(p *procfs.Process, own bool) *socketTable {
	t := &socketTable{byInode: map[uint64]Socket{}, byPair: map[addressPair]uint64{}, loaded: map[string]bool{}}
	var namespace *os.File
	if !own {
		var err error
		if namespace, err = p.OpenNetwork(); err != nil {
			return t
		}
		defer namespace.Close()
	}
	if diag, err := kernel.OpenSocketDiag(namespace); err == nil {
		t.diag = diag
	}
	return t
}

func (t *socketTable) close() error {
	if t.diag == nil {
		return nil
	}
	return t.diag.Close()
}

func (t *socketTable) add(inode uint64, s Socket) {
	if inode == 0 { // TIME_WAIT and the like: no program's any more
		return
	}
	t.byInode[inode] = s
	if s.Remote.IsValid() {
		t.byPair[s.pair()] = inode
	}
}

// load reads the sockets of the kind that s is of, once.
func (t *socketTable) load(p *procfs.Process, s *Socket) error {
	what := s.Family
	if what == "inet" || what == "inet6" {
		what = s.Protocol
	}
	if t.loaded[what] {
		return nil
	}
	t.loaded[what] = true
	switch what {
	case "tcp", "mptcp":
		// A connection may have an end of each.
		t.loaded["tcp"], t.loaded["mptcp"] = true, true
		if t.diag == nil || t.dumpInet(t.diag, protocolTCP, "TCP") != nil {
			return t.loadInet(p, "TCP", "tcp", "tcp6")
		}
		// Where the kernel does not tell of MPTCP, such sockets are not found.
		_ = t.dumpInet(t.diag, protocolMPTCP, "MPTCP")
		return nil
	case "udp":
		if t.diag == nil || t.dumpInet(t.diag, protocolUDP, "UDP") != nil {
			return t.loadInet(p, "UDP", "udp", "udp6")
		}
		return nil
	case "udplite":
		return t.loadInet(p, "UDPLITE", "udplite", "udplite6")
	case "raw":
		return t.loadInet(p, "RAW", "raw", "raw6")
	case "icmp":
		return t.loadInet(p, "PING", "icmp", "icmp6")
	case "unix":
		if t.diag == nil || t.dumpUnix(t.diag) != nil {
			return t.loadText(p, "unix", t.parseUnixTable)
		}
		return nil
	case "netlink":
		return t.loadText(p, "netlink", t.parseNetlinkTable)
	case "packet":
		return t.loadText(p, "packet", t.parsePacketTable)
	}
	return nil // of others is known what the handle says
}

func (t *socketTable) loadInet(p *procfs.Process, protocol, four, six string) error {
	for name, protocol := range map[string]string{four: protocol, six: protocol + "v6"} {
		err := p.NetworkTable(name, func(text []byte) error { return t.parseNetTable(text, protocol) })
		if err != nil && !missing(err) {
			return err
		}
	}
	return nil
}

func (t *socketTable) loadText(p *procfs.Process, name string, parse func([]byte)) error {
	err := p.NetworkTable(name, func(text []byte) error {
		parse(text)
		return nil
	})
	if missing(err) {
		return nil
	}
	return err
}

// missing reports whether a kernel has no such table, and so no such sockets.
func missing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) && !errors.Is(err, procfs.ErrGone)
}
