package testbed

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"time"
)

// newRandom returns the same sequence every time: a failed test can be run
// again.
func newRandom() *rand.Rand { return rand.New(rand.NewPCG(1, 2)) }

// A dialect is how a store of keys and values is spoken to. The slices that get
// returns are valid until the next call.
type dialect interface {
	set(c *keyClient, key, value []byte) error
	get(c *keyClient, key []byte) (value []byte, found bool, err error)
}

// startKeyLoad starts a verified load of writes and reads on a store. Each
// client owns some keys. It knows what it wrote last, and every read must
// return just that, also after a reconnection; a missing key is a wrong answer.
func startKeyLoad(ctx context.Context, addr string, d dialect, o LoadOptions) *Load {
	// Keys differ from load to load: a client may find no other one's values.
	load := time.Now().UnixNano()
	return startLoad(ctx, o, func(client int) asker {
		return &keyClient{addr: addr, dialect: d, name: fmt.Sprintf("vos:%x:%d", load, client)}
	})
}

const keysPerClient = 64

// A keyClient writes and reads its own keys over one connection.
type keyClient struct {
	addr    string
	dialect dialect
	name    string

	conn    net.Conn
	in      *bufio.Reader
	out     []byte
	key     []byte
	value   []byte
	answer  []byte
	written [keysPerClient]uint32 // generation that the store holds; 0: none yet
	doubt   [keysPerClient]bool   // a write may or may not have arrived
}

func (c *keyClient) connected() bool { return c.conn != nil }

func (c *keyClient) disconnect() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

func (c *keyClient) ask(random *rand.Rand, deadline time.Time) (answer, error) {
	if c.conn == nil {
		conn, err := net.DialTimeout("tcp", c.addr, time.Until(deadline))
		if err != nil {
			return answer{}, fmt.Errorf("connect: %w", err)
		}
		c.conn, c.in = conn, bufio.NewReaderSize(conn, 16<<10)
	}
	if err := c.conn.SetDeadline(deadline); err != nil {
		return answer{}, fmt.Errorf("set deadline: %w", err)
	}
	i := random.IntN(keysPerClient)
	c.key = fmt.Appendf(c.key[:0], "%s:%d", c.name, i)
	if c.written[i] == 0 || c.doubt[i] || random.IntN(2) == 0 {
		n, err := c.write(i)
		return answer{bytes: n}, err
	}
	n, err := c.read(i)
	return answer{bytes: n}, err
}

func (c *keyClient) write(i int) (int, error) {
	generation := c.written[i] + 1
	c.value = appendValue(c.value[:0], c.key, generation)
	c.doubt[i] = true
	if err := c.dialect.set(c, c.key, c.value); err != nil {
		return 0, fmt.Errorf("set %s: %w", c.key, err)
	}
	c.written[i], c.doubt[i] = generation, false
	return len(c.value), nil
}

func (c *keyClient) read(i int) (int, error) {
	got, found, err := c.dialect.get(c, c.key)
	if err != nil {
		return 0, fmt.Errorf("get %s: %w", c.key, err)
	}
	c.value = appendValue(c.value[:0], c.key, c.written[i])
	if !found {
		c.written[i] = 0
		return 0, fmt.Errorf("get %s: lost: %w", c.key, errWrong)
	}
	if !bytes.Equal(got, c.value) {
		return 0, fmt.Errorf("get %s: %.60q, not %.60q: %w", c.key, got, c.value, errWrong)
	}
	return len(got), nil
}

// appendValue makes the value of a key in a generation: 30 bytes to 2 KiB that
// follow from both.
func appendValue(to, key []byte, generation uint32) []byte {
	to = fmt.Appendf(to, "%s=%d:", key, generation)
	for range generation * 37 % 128 {
		to = fmt.Appendf(to, "%08x;", generation*2654435761)
	}
	return to
}

// send writes what was gathered in c.out.
func (c *keyClient) send() error {
	_, err := c.conn.Write(c.out)
	return err
}

// line reads one line without its end. It is valid until the next read.
func (c *keyClient) line() ([]byte, error) {
	line, err := c.in.ReadSlice('\n')
	if err != nil {
		return nil, err
	}
	return bytes.TrimRight(line, "\r\n"), nil
}

// block reads n bytes and the line end after them.
func (c *keyClient) block(n int) ([]byte, error) {
	if n < 0 || n > 1<<20 {
		return nil, fmt.Errorf("a value of %d bytes: %w", n, errWrong)
	}
	if cap(c.answer) < n+2 {
		c.answer = make([]byte, n+2)
	}
	c.answer = c.answer[:n+2]
	for read := 0; read < n+2; {
		m, err := c.in.Read(c.answer[read:])
		if err != nil {
			return nil, err
		}
		read += m
	}
	if string(c.answer[n:]) != "\r\n" {
		return nil, fmt.Errorf("no line end after a value of %d bytes: %w", n, errWrong)
	}
	return c.answer[:n], nil
}
