package testbed

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// MemcachedOptions changes how memcached runs. The zero value is the usual one.
type MemcachedOptions struct {
	Binary  string
	Env     []string
	Threads int // 4 if 0
}

// A Memcached is a running memcached.
type Memcached struct{ *server }

// StartMemcached starts memcached on a loopback port. The caller stops it.
func StartMemcached(ctx context.Context, o MemcachedOptions) (*Memcached, error) {
	if o.Binary == "" {
		var err error
		if o.Binary, err = findProgram("memcached"); err != nil {
			return nil, fmt.Errorf("start memcached: %w", err)
		}
	}
	if o.Threads == 0 {
		o.Threads = 4
	}
	s, err := startServer(ctx, "memcached", o.Env, func(_ string, port int) ([]string, error) {
		argv, err := asAccount("nobody") // it refuses to run as root
		return append(argv, o.Binary, "-l", "127.0.0.1", "-p", strconv.Itoa(port), "-U", "0", "-m", "64", "-t", strconv.Itoa(o.Threads)), err
	}, func(_ context.Context, s *server) error { return tryKeys(s.addr, memcachedDialect{}) })
	if err != nil {
		return nil, err
	}
	return &Memcached{s}, nil
}

// RunMemcached is [StartMemcached] for the length of a test.
func RunMemcached(tb TB, o MemcachedOptions) *Memcached {
	tb.Helper()
	m, err := StartMemcached(context.WithoutCancel(tb.Context()), o)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	tb.Cleanup(func() {
		if err := m.Stop(); err != nil {
			tb.Errorf("%v", err)
		}
	})
	return m
}

// Pid returns the process id.
func (m *Memcached) Pid() int { return m.child.pid() }

// Load starts a verified load of writes and reads on it.
func (m *Memcached) Load(ctx context.Context, o LoadOptions) *Load {
	return startKeyLoad(ctx, m.addr, memcachedDialect{}, o)
}

// LibeventVersion returns what memcached, asked over a connection of its own,
// says of the libevent that it runs with: the library tells it then.
func (m *Memcached) LibeventVersion() (string, error) {
	c, err := net.DialTimeout("tcp", m.addr, 10*time.Second)
	if err != nil {
		return "", fmt.Errorf("ask memcached: %w", err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return "", fmt.Errorf("ask memcached: %w", err)
	}
	if _, err := c.Write([]byte("stats\r\n")); err != nil {
		return "", fmt.Errorf("ask memcached: %w", err)
	}
	for scan := bufio.NewScanner(c); scan.Scan() && scan.Text() != "END"; {
		if version, ok := strings.CutPrefix(scan.Text(), "STAT libevent "); ok {
			return version, nil
		}
	}
	return "", errors.New("ask memcached: it does not tell its libevent")
}

// Stop ends memcached and removes its folder.
func (m *Memcached) Stop() error { return m.stopOnce("memcached") }

// memcachedDialect speaks memcached's text protocol.
type memcachedDialect struct{}

func (memcachedDialect) set(c *keyClient, key, value []byte) error {
	c.out = fmt.Appendf(c.out[:0], "set %s 0 0 %d\r\n%s\r\n", key, len(value), value)
	if err := c.send(); err != nil {
		return err
	}
	line, err := c.line()
	if err != nil {
		return err
	}
	if string(line) != "STORED" {
		return fmt.Errorf("%.60q: %w", line, errWrong)
	}
	return nil
}

func (memcachedDialect) get(c *keyClient, key []byte) ([]byte, bool, error) {
	c.out = fmt.Appendf(c.out[:0], "get %s\r\n", key)
	if err := c.send(); err != nil {
		return nil, false, err
	}
	line, err := c.line()
	if err != nil {
		return nil, false, err
	}
	if string(line) == "END" {
		return nil, false, nil
	}
	fields := bytes.Fields(line) // VALUE key flags bytes
	if len(fields) != 4 || string(fields[0]) != "VALUE" || !bytes.Equal(fields[1], key) {
		return nil, false, fmt.Errorf("%.60q: %w", line, errWrong)
	}
	n, err := strconv.Atoi(string(fields[3]))
	if err != nil {
		return nil, false, fmt.Errorf("%.60q: %w", line, errWrong)
	}
	value, err := c.block(n)
	if err != nil {
		return nil, false, err
	}
	line, err = c.line()
	if err != nil {
		return nil, false, err
	}
	if string(line) != "END" {
		return nil, false, fmt.Errorf("%.60q after the value: %w", line, errWrong)
	}
	return value, true, nil
}
