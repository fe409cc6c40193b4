package kernel

import (
	"bytes"
	"encoding/binary"
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

func number32(n int32) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(n)) }

// TestRing reads the queue of what a connection has sent and nobody has received, and
// leaves the connection as it was.
func TestRing(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	file, err := c.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	raw, err := CopyRaw(file)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	// What the other end's window does not take stays in the queue.
	big := bytes.Repeat([]byte("0123456789"), 1<<20)
	sent, err := raw.Write(big)
	for err == nil && sent < len(big) {
		var n int
		if n, err = unix.SendmsgN(int(raw), big[sent:], nil, nil, unix.MSG_DONTWAIT); err == nil {
			sent += n
		}
	}
	if err != unix.EAGAIN {
		t.Fatalf("fill the queue: %d, %v", sent, err)
	}
	r, err := OpenRing()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	queue := make([]byte, len(big))
	for range 100 { // the ring comes round
		results, err := r.Run([]RingStep{
			{Socket: raw, Level: unix.IPPROTO_TCP, Name: unix.TCP_REPAIR, Value: number32(1)},
			{Socket: raw, Level: unix.IPPROTO_TCP, Name: unix.TCP_REPAIR_QUEUE, Value: number32(2)},
			{Socket: raw, Peek: queue},
			{Socket: raw, Level: unix.IPPROTO_TCP, Name: unix.TCP_REPAIR, Value: number32(-1)},
			{Socket: raw, Level: unix.IPPROTO_TCP, Name: 9999, Value: number32(1)},
		})
		if err != nil {
			t.Fatal(err)
		}
		if results[0] != 0 || results[1] != 0 || results[3] != 0 || results[4] != -int(unix.ENOPROTOOPT) {
			t.Fatalf("results %v", results)
		}
		n := results[2]
		if n <= 0 || n > sent || !bytes.Equal(queue[:n], bytes.Repeat([]byte("0123456789"), sent/10+1)[sent-n:sent]) {
			t.Fatalf("the queue has %d bytes of %d", n, sent)
		}
	}
	if on, err := raw.Option(unix.IPPROTO_TCP, unix.TCP_REPAIR); err != nil || on[0] != 0 {
		t.Errorf("repair mode %v, %v", on, err)
	}
	if seq, err := raw.Option(unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ); err != nil || len(seq) != 4 {
		t.Errorf("sequence %v, %v", seq, err)
	}
	got := 0
	for buf := make([]byte, 1<<20); got < sent; {
		n, err := s.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		got += n
	}
}
