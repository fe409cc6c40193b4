package kernel

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
)

// TestNetfilter blocks one of two connections, of each family, and unblocks it again in
// each of the ways in which that happens.
func TestNetfilter(t *testing.T) {
	for _, address := range []string{"127.0.0.1", "[::1]"} {
		t.Run(address, func(t *testing.T) {
			l, err := net.Listen("tcp", address+":0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			blocked, free := connected(t, l), connected(t, l)
			own, other := open(t), open(t)
			here := Connection{addressOf(blocked[0].LocalAddr()), addressOf(blocked[0].RemoteAddr())}
			table := fmt.Sprintf("vos-test-%d", os.Getpid())
			t.Cleanup(func() {
				if err := other.Replace(nil, table); err != nil {
					t.Error(err)
				}
			})
			want := func(want bool) {
				t.Helper()
				if is, err := other.Blocked(table, here); err != nil || is != want {
					t.Errorf("blocked: %v, %v", is, err)
				}
				if is, err := other.Blocked(table, Connection{here.Remote, here.Local}); err != nil || is {
					t.Errorf("the other end is blocked: %v, %v", is, err)
				}
			}
			want(false)
			block := Block{Table: table, Connections: []Connection{here}, Owned: true}
			if err := own.Replace([]Block{block}); err != nil {
				t.Fatal(err)
			}
			want(true)
			if err := other.Replace(nil, table); err == nil {
				t.Error("another one has removed the table")
			}
			for i := range blocked {
				if _, err := blocked[i].Write([]byte("held")); err != nil {
					t.Fatal(err)
				}
			}
			passes(t, free)
			for i := range blocked {
				if err := blocked[i].SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
					t.Fatal(err)
				}
				if n, err := blocked[i].Read(make([]byte, 1)); err == nil {
					t.Errorf("%d bytes have passed", n)
				}
			}
			if err := own.Close(); err != nil {
				t.Fatal(err)
			}
			want(false)
			for i := range blocked {
				receives(t, blocked[i], "held")
			}
			block.Owned, block.Limit = false, time.Hour
			if err := other.Replace([]Block{block}); err != nil {
				t.Fatal(err)
			}
			want(true)
			block.Limit = time.Millisecond
			if err := other.Replace([]Block{block}); err != nil {
				t.Fatal(err)
			}
			for is := true; is; {
				if is, err = other.Blocked(table, here); err != nil {
					t.Fatal(err)
				}
			}
			passes(t, blocked)
			if err := other.Replace(nil, table, "vos-test-none"); err != nil {
				t.Error(err)
			}
		})
	}
	// As many as one message to the kernel does not take.
	n := open(t)
	var many []Connection
	for port := range uint16(5000) {
		many = append(many, Connection{netip.MustParseAddrPort("10.1.2.3:80"), netip.AddrPortFrom(netip.MustParseAddr("10.3.2.1"), port)},
			Connection{netip.MustParseAddrPort("[fd00::1]:80"), netip.AddrPortFrom(netip.MustParseAddr("fd00::2"), port)})
	}
	table := fmt.Sprintf("vos-test-many-%d", os.Getpid())
	if err := n.Replace([]Block{{Table: table, Connections: many, Owned: true}}); err != nil {
		t.Fatal(err)
	}
	for _, c := range many {
		if is, err := n.Blocked(table, c); err != nil || !is {
			t.Fatalf("%v: %v, %v", c, is, err)
		}
	}
	if err := n.Replace(nil, table); err != nil {
		t.Error(err)
	}
}

func open(t *testing.T) *Netfilter {
	t.Helper()
	n, err := OpenNetfilter()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = n.Close() })
	return n
}

func connected(t *testing.T, l net.Listener) (ends [2]net.Conn) {
	t.Helper()
	var err error
	if ends[0], err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if ends[1], err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ends[0].Close(); ends[1].Close() })
	return ends
}

func addressOf(a net.Addr) netip.AddrPort { return a.(*net.TCPAddr).AddrPort() }

func passes(t *testing.T, ends [2]net.Conn) {
	t.Helper()
	for i := range ends {
		if _, err := ends[i].Write([]byte("free")); err != nil {
			t.Fatal(err)
		}
		receives(t, ends[1-i], "free")
	}
}

func receives(t *testing.T, c net.Conn, want string) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, len(want))
	for n := 0; n < len(b); {
		more, err := c.Read(b[n:])
		if n += more; err != nil {
			t.Fatalf("%d bytes, %v", n, err)
		}
	}
	if string(b) != want {
		t.Errorf("received %q", b)
	}
}
