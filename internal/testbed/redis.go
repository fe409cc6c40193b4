package testbed

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"
)

// RedisOptions changes how redis runs. The zero value is the usual one.
type RedisOptions struct {
	Binary string
	Env    []string
	Args   []string // more settings, as "--io-threads", "4"
}

// A Redis is a running redis-server without persistence.
type Redis struct{ *server }

// StartRedis starts redis-server on a loopback port. The caller stops it.
func StartRedis(ctx context.Context, o RedisOptions) (*Redis, error) {
	if o.Binary == "" {
		var err error
		if o.Binary, err = findProgram("redis-server"); err != nil {
			return nil, fmt.Errorf("start redis: %w", err)
		}
	}
	s, err := startServer(ctx, "redis", o.Env, func(folder string, port int) ([]string, error) {
		return append([]string{o.Binary, "--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--dir", folder,
			"--save", "", "--appendonly", "no", "--daemonize", "no", "--tcp-keepalive", "0"}, o.Args...), nil
	}, func(_ context.Context, s *server) error { return tryKeys(s.addr, redisDialect{}) })
	if err != nil {
		return nil, err
	}
	return &Redis{s}, nil
}

// RunRedis is [StartRedis] for the length of a test.
func RunRedis(tb TB, o RedisOptions) *Redis {
	tb.Helper()
	r, err := StartRedis(context.WithoutCancel(tb.Context()), o)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	tb.Cleanup(func() {
		if err := r.Stop(); err != nil {
			tb.Errorf("%v", err)
		}
	})
	return r
}

// Pid returns the process id.
func (r *Redis) Pid() int { return r.child.pid() }

// Address is where the server listens: HOST:PORT.
func (r *Redis) Address() string { return r.addr }

// Load starts a verified load of writes and reads on it.
func (r *Redis) Load(ctx context.Context, o LoadOptions) *Load {
	return startKeyLoad(ctx, r.addr, redisDialect{}, o)
}

// Stop ends redis and removes its folder.
func (r *Redis) Stop() error { return r.stopOnce("redis") }

// tryKeys makes one write, to see whether a store answers.
func tryKeys(addr string, d dialect) error {
	if !accepts(addr) {
		return fmt.Errorf("nobody listens on %s", addr)
	}
	c := &keyClient{addr: addr, dialect: d, name: "vos:ready"}
	defer c.disconnect()
	_, err := c.ask(rand.New(rand.NewPCG(1, 1)), time.Now().Add(2*time.Second))
	return err
}

// redisDialect speaks RESP, the protocol of redis.
type redisDialect struct{}

func (redisDialect) set(c *keyClient, key, value []byte) error {
	c.out = fmt.Appendf(c.out[:0], "*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n", len(key), key, len(value), value)
	if err := c.send(); err != nil {
		return err
	}
	line, err := c.line()
	if err != nil {
		return err
	}
	if string(line) != "+OK" {
		return fmt.Errorf("%.60q: %w", line, errWrong)
	}
	return nil
}

func (redisDialect) get(c *keyClient, key []byte) ([]byte, bool, error) {
	c.out = fmt.Appendf(c.out[:0], "*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n", len(key), key)
	if err := c.send(); err != nil {
		return nil, false, err
	}
	line, err := c.line()
	if err != nil {
		return nil, false, err
	}
	if string(line) == "$-1" {
		return nil, false, nil
	}
	size, ok := bytes.CutPrefix(line, []byte("$"))
	n, err := strconv.Atoi(string(size))
	if !ok || err != nil {
		return nil, false, fmt.Errorf("%.60q: %w", line, errWrong)
	}
	value, err := c.block(n)
	return value, err == nil, err
}
