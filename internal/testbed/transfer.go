package testbed

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"hash"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// TransferOptions changes how curl runs. The zero value is the usual one.
type TransferOptions struct {
	Env  []string // added to the environment, as LD_LIBRARY_PATH
	Rate int      // bytes a second; 4 MiB if 0
}

// A Transfer is a curl in the middle of a download by HTTP/2 and TLS, which a
// server in this process sends for as long as it is to go on.
type Transfer struct {
	child    *child
	server   *http.Server
	errors   *lastOutput
	folder   string
	finish   chan struct{} // closed when the server is to end the answer
	once     sync.Once
	requests atomic.Int64
	told     atomic.Int64
	sent     summedBytes
	received summedBytes
}

// summedBytes counts and sums what is written to it, by one goroutine.
type summedBytes struct {
	n   atomic.Int64
	sum hash.Hash
}

// Write implements io.Writer.
func (s *summedBytes) Write(p []byte) (int, error) {
	s.sum.Write(p)
	s.n.Add(int64(len(p)))
	return len(p), nil
}

// StartTransfer starts the server and curl, and waits for the first bytes. The
// caller finishes it.
func StartTransfer(ctx context.Context, o TransferOptions) (_ *Transfer, err error) {
	t := &Transfer{errors: &lastOutput{}, finish: make(chan struct{})}
	t.sent.sum, t.received.sum = sha256.New(), sha256.New()
	defer func() {
		if err != nil {
			t.end()
			err = fmt.Errorf("start a transfer: %w", err)
		}
	}()
	program, err := findProgram("curl")
	if err != nil {
		return nil, err
	}
	if t.folder, err = os.MkdirTemp("", "vos-transfer-"); err != nil {
		return nil, err
	}
	address, err := t.serve(cmp.Or(o.Rate, 4<<20))
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(program, "--disable", "--silent", "--show-error", "--no-buffer", "--http2", "--fail",
		"--cacert", filepath.Join(t.folder, "certificate.pem"), "https://"+address+"/stream")
	cmd.Env = append(os.Environ(), o.Env...)
	cmd.Stdout, cmd.Stderr = &t.received, t.errors
	if t.child, err = startChild(cmd); err != nil {
		return nil, err
	}
	return t, t.Await(ctx, 1)
}

// serve starts the server, which shows an identity of its own.
func (t *Transfer) serve(rate int) (address string, err error) {
	identity, err := newIdentity()
	if err != nil {
		return "", err
	}
	if err := identity.write(t.folder); err != nil {
		return "", err
	}
	pair, err := tls.X509KeyPair(identity.certificate, identity.key)
	if err != nil {
		return "", err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	t.server = &http.Server{
		Handler:   http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { t.answer(w, r, rate) }),
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}},
	}
	go t.server.ServeTLS(toldListener{listener, &t.told}, "", "") // its error is that it was closed
	return listener.Addr().String(), nil
}

// answer sends text until the transfer is to finish.
func (t *Transfer) answer(w http.ResponseWriter, r *http.Request, rate int) {
	if t.requests.Add(1) > 1 || r.ProtoMajor != 2 {
		http.Error(w, "one request by HTTP/2 was expected", http.StatusBadRequest)
		return
	}
	const every = 10 * time.Millisecond
	text := textFile("stream.txt", 1<<20).Content
	piece := max(rate/int(time.Second/every), 1)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for at := 0; ; at = (at + piece) % (len(text) / 2) {
		part := text[at : at+min(piece, len(text)/2)]
		if _, err := w.Write(part); err != nil {
			return // curl is told of by its end
		}
		t.sent.Write(part)
		if err := http.NewResponseController(w).Flush(); err != nil {
			return
		}
		select {
		case <-t.finish:
			return
		case <-r.Context().Done():
			return
		case <-tick.C:
		}
	}
}

// RunTransfer is [StartTransfer] for the length of a test, at whose end what
// arrived must be what was sent.
func RunTransfer(tb TB, o TransferOptions) *Transfer {
	tb.Helper()
	t, err := StartTransfer(context.WithoutCancel(tb.Context()), o)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	tb.Cleanup(func() {
		if err := t.Finish(); err != nil {
			tb.Errorf("%v", err)
		}
	})
	return t
}

// Pid returns the process id of curl.
func (t *Transfer) Pid() int { return t.child.pid() }

// Received returns how many bytes came out of curl.
func (t *Transfer) Received() int64 { return t.received.n.Load() }

// Told returns how many bytes, encrypted, curl sent to the server. After its
// request these tell of room for more: see [Nghttp2].
func (t *Transfer) Told() int64 { return t.told.Load() }

// A toldListener counts what its connections read.
type toldListener struct {
	net.Listener
	told *atomic.Int64
}

// Accept implements net.Listener.
func (l toldListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	return toldConn{conn, l.told}, err
}

type toldConn struct {
	net.Conn
	told *atomic.Int64
}

// Read implements net.Conn.
func (c toldConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.told.Add(int64(n))
	return n, err
}

// Await waits until n more bytes came out of curl, at most 20 seconds.
func (t *Transfer) Await(ctx context.Context, n int64) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for goal := t.Received() + n; t.Received() < goal; {
		select {
		case <-t.child.done:
			return fmt.Errorf("curl %d ended: %v: %s", t.Pid(), t.child.err, t.errors)
		case <-ctx.Done():
			return fmt.Errorf("curl %d received %d bytes: %w", t.Pid(), t.Received(), ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
	return nil
}

// Finish ends the answer and waits for curl. Anything but success, over one
// connection, and all bytes as they were sent, is an error.
func (t *Transfer) Finish() error {
	t.once.Do(func() { close(t.finish) })
	var problem error
	select {
	case <-t.child.done:
	case <-time.After(20 * time.Second):
		problem = errors.New("it does not end: killed")
	}
	t.end()
	code, signal := t.child.exitStatus()
	sent, received := t.sent.n.Load(), t.received.n.Load()
	switch {
	case problem != nil:
	case code != 0:
		problem = fmt.Errorf("exit code %d, signal %v: %s", code, signal, strings.TrimSpace(t.errors.String()))
	case t.requests.Load() != 1:
		problem = fmt.Errorf("%d requests, not one", t.requests.Load())
	case sent != received || string(t.sent.sum.Sum(nil)) != string(t.received.sum.Sum(nil)):
		problem = fmt.Errorf("%d bytes were sent, %d received: %w", sent, received, errWrong)
	}
	if problem != nil {
		return fmt.Errorf("finish transfer by curl %d: %w", t.Pid(), problem)
	}
	return nil
}

// end leaves nothing behind.
func (t *Transfer) end() {
	if t.child != nil {
		select {
		case <-t.child.done:
		default:
			t.child.kill()
		}
		t.child.endGroup()
	}
	if t.server != nil {
		t.server.Close() // its listener and its connections
	}
	if t.folder != "" {
		os.RemoveAll(t.folder)
	}
}
