package testbed

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// PostgresOptions changes how PostgreSQL runs. The zero value is the usual one.
type PostgresOptions struct {
	Env   []string // added to the environment, as LD_LIBRARY_PATH
	Setup string   // a statement that is run once
	Asked []Asked  // asked by its load beside what it asks otherwise
}

// An Asked is a query for one value, whose right answers show which build of a
// library gave them.
type Asked struct {
	Query string
	Marks map[string]string // of right answers
}

// A Postgres is a running PostgreSQL with a fresh database: a postmaster and a
// process for each connection. Its load uses libxml2 and liblz4 in the latter.
type Postgres struct {
	*server
	asked []Asked
}

// StartPostgres makes a database and starts PostgreSQL on a loopback port, as
// root with the account of the distribution. The caller stops it.
func StartPostgres(ctx context.Context, o PostgresOptions) (*Postgres, error) {
	programs, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil || len(programs) == 0 {
		return nil, errors.New("start postgres: it is not installed: scripts/deps.sh does it")
	}
	slices.Sort(programs)
	bin := filepath.Dir(programs[len(programs)-1])
	s, err := startServer(ctx, "postgres", o.Env, func(folder string, port int) ([]string, error) {
		data := filepath.Join(folder, "data")
		if err := os.Mkdir(data, 0o700); err != nil {
			return nil, err
		}
		// It refuses to run as root.
		as, err := asAccount("postgres", data)
		if err != nil {
			return nil, err
		}
		initdb := append(slices.Clone(as), filepath.Join(bin, "initdb"), "-D", data, "-A", "trust", "-U", "vos", "-E", "UTF8",
			"--locale=C", "--no-sync", "--no-instructions")
		cmd := exec.CommandContext(ctx, initdb[0], initdb[1:]...)
		cmd.Dir = data
		cmd.Env = append(os.Environ(), o.Env...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("initdb: %w: %s", err, out)
		}
		return append(as, filepath.Join(bin, "postgres"), "-D", data, "-p", strconv.Itoa(port), "-c", "listen_addresses=127.0.0.1",
			"-c", "unix_socket_directories=", "-c", "fsync=off", "-c", "autovacuum=off", "-c", "jit=off", "-c", "shared_buffers=16MB"), nil
	}, func(ctx context.Context, s *server) error {
		c := &sqlClient{addr: s.addr}
		defer c.disconnect()
		if err := c.connect(time.Now().Add(time.Second)); err != nil {
			return err
		}
		_, err := c.query("select 1")
		return err
	})
	if err != nil {
		return nil, err
	}
	s.end = syscall.SIGINT // SIGTERM would wait for its clients
	p := &Postgres{s, o.Asked}
	if o.Setup != "" {
		if err := p.run(o.Setup); err != nil {
			return nil, errors.Join(fmt.Errorf("start postgres: %w", err), p.Stop())
		}
	}
	return p, nil
}

// run runs a statement over a connection of its own.
func (p *Postgres) run(statement string) error {
	c := &sqlClient{addr: p.addr}
	defer c.disconnect()
	if err := c.connect(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	_, err := c.query(statement)
	return err
}

// RunPostgres is [StartPostgres] for the length of a test.
func RunPostgres(tb TB, o PostgresOptions) *Postgres {
	tb.Helper()
	p, err := StartPostgres(context.WithoutCancel(tb.Context()), o)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	tb.Cleanup(func() {
		if err := p.Stop(); err != nil {
			tb.Errorf("%v", err)
		}
	})
	return p
}

// Pid returns the process id of the postmaster; the others are its children.
func (p *Postgres) Pid() int { return p.child.pid() }

// Stop ends PostgreSQL and removes its folder.
func (p *Postgres) Stop() error { return p.stopOnce("postgres") }

// Load starts a verified load on it. Each client has a temporary table of its
// own, and keeps in its session documents (libxml2) and texts that are
// compressed in rows (liblz4), which it reads, changes and checks.
func (p *Postgres) Load(ctx context.Context, o LoadOptions) *Load {
	return startLoad(ctx, o, func(int) asker { return &sqlClient{addr: p.addr, asked: p.asked} })
}

// A sqlClient speaks as much of PostgreSQL's protocol, version 3.0, as simple
// queries need.
type sqlClient struct {
	addr string
	conn net.Conn
	in   *bufio.Reader
	rows [sqlRows]string // what the table holds

	asked []Asked
}

const sqlRows = 8

func (c *sqlClient) connected() bool { return c.conn != nil }

func (c *sqlClient) disconnect() {
	if c.conn != nil {
		_, _ = c.conn.Write([]byte{'X', 0, 0, 0, 4}) // a kindness
		c.conn.Close()
		c.conn = nil
	}
}

func (c *sqlClient) connect(deadline time.Time) error {
	conn, err := net.DialTimeout("tcp", c.addr, time.Until(deadline))
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	c.conn, c.in = conn, bufio.NewReader(conn)
	if err := conn.SetDeadline(deadline); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	const parameters = "user\x00vos\x00database\x00postgres\x00\x00"
	hello := binary.BigEndian.AppendUint32(nil, uint32(8+len(parameters)))
	hello = binary.BigEndian.AppendUint32(hello, 3<<16)
	if _, err := conn.Write(append(hello, parameters...)); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	if _, err := c.answer(); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	return nil
}

// query returns the first column of all rows.
func (c *sqlClient) query(text string) ([]string, error) {
	message := binary.BigEndian.AppendUint32([]byte{'Q'}, uint32(4+len(text)+1))
	message = append(append(message, text...), 0)
	if _, err := c.conn.Write(message); err != nil {
		return nil, fmt.Errorf("query: %w", err)
	}
	rows, err := c.answer()
	if err != nil {
		return nil, fmt.Errorf("query %.40s: %w", text, err)
	}
	return rows, nil
}

// answer reads messages until the server is ready for a query.
func (c *sqlClient) answer() (rows []string, err error) {
	for {
		var head [5]byte
		if _, err := io.ReadFull(c.in, head[:]); err != nil {
			return nil, err
		}
		size := binary.BigEndian.Uint32(head[1:])
		if size < 4 || size > 1<<24 {
			return nil, fmt.Errorf("a message of %d bytes: %w", size, errWrong)
		}
		body := make([]byte, size-4)
		if _, e := io.ReadFull(c.in, body); e != nil {
			return nil, e
		}
		switch head[0] {
		case 'Z':
			return rows, err
		case 'E':
			err = fmt.Errorf("%q: %w", body, errWrong)
		case 'D': // count of columns, then the length and text of each
			if len(body) < 6 || len(body) < 6+int(int32(binary.BigEndian.Uint32(body[2:]))) {
				return nil, fmt.Errorf("a row of %d bytes: %w", len(body), errWrong)
			}
			n := max(int(int32(binary.BigEndian.Uint32(body[2:]))), 0) // -1 is NULL
			rows = append(rows, string(body[6:6+n]))
		}
	}
}

func (c *sqlClient) ask(random *rand.Rand, deadline time.Time) (answer, error) {
	if c.conn == nil {
		if err := c.connect(deadline); err != nil {
			return answer{}, err
		}
		c.rows = [sqlRows]string{}
		if _, err := c.query("create temp table kept (id int primary key, body text compression lz4)"); err != nil {
			return answer{}, err
		}
	}
	if err := c.conn.SetDeadline(deadline); err != nil {
		return answer{}, fmt.Errorf("set deadline: %w", err)
	}
	if n := random.IntN(2 * max(len(c.asked), 1)); n < len(c.asked) {
		return c.askFor(c.asked[n])
	}
	query, want := "", ""
	i := random.IntN(sqlRows)
	switch {
	case random.IntN(8) == 0:
		return c.compress()
	case random.IntN(2) == 0:
		query, want = xmlQuery(random)
	case c.rows[i] == "" || random.IntN(3) == 0:
		want = strings.Repeat(fmt.Sprintf("row %d, %x; ", i, random.Uint32()), 300+random.IntN(500))
		c.rows[i] = want
		query = fmt.Sprintf("insert into kept values (%d, '%s') on conflict (id) do update set body = excluded.body returning body", i, want)
	default:
		want = c.rows[i]
		query = fmt.Sprintf("select body from kept where id = %d and pg_column_compression(body) = 'lz4'", i)
	}
	rows, err := c.query(query)
	if err != nil {
		return answer{}, err
	}
	if len(rows) != 1 || rows[0] != want {
		return answer{}, fmt.Errorf("query %.40s: %.60q, not %.60q: %w", query, rows, want, errWrong)
	}
	return answer{bytes: len(want)}, nil
}

func (c *sqlClient) askFor(a Asked) (answer, error) {
	rows, err := c.query(a.Query)
	if err != nil {
		return answer{}, err
	}
	if len(rows) == 1 {
		if mark, ok := a.Marks[rows[0]]; ok {
			return answer{bytes: len(rows[0]), mark: mark}, nil
		}
	}
	return answer{}, fmt.Errorf("query %.40s: %.60q: %w", a.Query, rows, errWrong)
}

// compress stores the same text as everybody, reads it, and marks the answer with
// the size that was left of it.
func (c *sqlClient) compress() (answer, error) {
	want := sameText()
	if _, err := c.query("insert into kept values (-1, '" + want + "') on conflict (id) do update set body = excluded.body"); err != nil {
		return answer{}, err
	}
	rows, err := c.query("select body from kept where id = -1 union all select pg_column_size(body)::text from kept where id = -1")
	if err != nil {
		return answer{}, err
	}
	if len(rows) != 2 || rows[0] != want {
		return answer{}, fmt.Errorf("a text that was compressed comes back as %.60q: %w", rows, errWrong)
	}
	return answer{bytes: len(want), mark: "lz4 " + rows[1]}, nil
}

var sameText = sync.OnceValue(func() string { return string(textFile("same.txt", 6<<10).Content) })

// xmlQuery asks for a part of a document.
func xmlQuery(random *rand.Rand) (query, want string) {
	var document, texts strings.Builder
	for i := range 20 + random.IntN(30) {
		n := random.Uint32()
		fmt.Fprintf(&document, "<entry kind=\"%d\"><name>n%x &amp; co</name><skip>%x</skip></entry>", i%2, n, n)
		if i%2 == 1 {
			if texts.Len() > 0 {
				texts.WriteString("|")
			}
			fmt.Fprintf(&texts, "n%x &amp; co", n)
		}
	}
	return "select array_to_string(xpath('/all/entry[@kind=1]/name/text()', xmlparse(document '<all>" + document.String() + "</all>')), '|')", texts.String()
}
