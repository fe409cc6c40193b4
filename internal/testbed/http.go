package testbed

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"time"
)

// StartHTTPLoad starts a verified load of GET requests for files on the server
// at addr. Answers may be gzipped and chunked; they are decompressed while they
// arrive and compared byte by byte to the file.
//
// Small files are asked for more often: one twice as large as 1 KiB half as often.
// A server that closes a kept connection without having said so fails the
// request: the programs under test are set up not to.
func StartHTTPLoad(ctx context.Context, addr string, files []File, o LoadOptions) *Load {
	return startHTTPLoad(ctx, addr, files, nil, o)
}

// startHTTPLoad is [StartHTTPLoad], by TLS where secure is set. Every other
// client then speaks TLS 1.2, the others the newest version.
func startHTTPLoad(ctx context.Context, addr string, files []File, secure *tls.Config, o LoadOptions) *Load {
	keep := o.withDefaults().Conns
	return startLoad(ctx, o, func(client int) asker {
		c := &httpClient{addr: addr, files: files, keep: client < keep, secure: secure}
		if secure != nil && client%2 == 1 {
			c.secure = secure.Clone()
			c.secure.MaxVersion = tls.VersionTLS12
		}
		for _, f := range files {
			weight := max(1<<20/max(len(f.Content), 1<<10), 1)
			c.weights = append(c.weights, weight)
			c.weightSum += weight
		}
		return c
	})
}

// tryHTTP asks for the first file.
func tryHTTP(ctx context.Context, addr string, files []File, secure *tls.Config) error {
	c := &httpClient{addr: addr, files: files[:1], weights: []int{1}, weightSum: 1, secure: secure}
	defer c.disconnect()
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(time.Second)
	}
	_, err := c.ask(newRandom(), deadline)
	return err
}

// An httpClient speaks as much HTTP/1.1 as nginx answers with. It is written
// by hand because net/http allocates for every header of every answer, and the
// load must leave the CPU to what is measured.
type httpClient struct {
	addr      string
	files     []File
	weights   []int
	weightSum int
	keep      bool
	secure    *tls.Config // nil: plain

	conn    net.Conn
	in      *bufio.Reader
	request []byte
	body    httpBody
	unzip   *gzip.Reader
	buffer  [16 << 10]byte
}

func (c *httpClient) connected() bool { return c.conn != nil }

func (c *httpClient) disconnect() {
	if c.conn != nil {
		c.conn.Close() // nothing that could still fail matters
		c.conn = nil
	}
}

func (c *httpClient) pick(random *rand.Rand) *File {
	n := random.IntN(c.weightSum)
	for i, w := range c.weights {
		if n -= w; n < 0 {
			return &c.files[i]
		}
	}
	return &c.files[len(c.files)-1]
}

func (c *httpClient) ask(random *rand.Rand, deadline time.Time) (answer, error) {
	if c.conn == nil {
		conn, err := c.dial(deadline)
		if err != nil {
			return answer{}, fmt.Errorf("connect: %w", err)
		}
		c.conn = conn
		if c.in == nil {
			c.in = bufio.NewReaderSize(nil, 16<<10)
		}
		c.in.Reset(conn)
	}
	if err := c.conn.SetDeadline(deadline); err != nil {
		return answer{}, fmt.Errorf("set deadline: %w", err)
	}
	file := c.pick(random)
	c.request = append(append(append(c.request[:0], "GET "...), file.Path...), " HTTP/1.1\r\nHost: vos\r\n"...)
	if file.Other == nil {
		c.request = append(c.request, "Accept-Encoding: gzip\r\n"...)
	}
	if !c.keep {
		c.request = append(c.request, "Connection: close\r\n"...)
	}
	c.request = append(c.request, "\r\n"...)
	if _, err := c.conn.Write(c.request); err != nil {
		return answer{}, fmt.Errorf("GET %s: send: %w", file.Path, err)
	}
	head, err := c.readHead(file.Header)
	if err != nil {
		return answer{}, fmt.Errorf("GET %s: %w", file.Path, err)
	}
	if head.status != 200 {
		return answer{}, fmt.Errorf("GET %s: status %d: %w", file.Path, head.status, errWrong)
	}
	want := file.Content
	if file.Other != nil && head.length == int64(len(file.Other)) {
		want = file.Other
	}
	if err := c.readBody(head, want); err != nil {
		return answer{}, fmt.Errorf("GET %s: %w", file.Path, err)
	}
	if head.close {
		c.disconnect()
	}
	got := answer{bytes: len(want)}
	switch {
	case file.Header != "":
		got.mark = head.mark
	case file.Other != nil && bytes.Equal(want, file.Other):
		got.mark = "other"
	case file.Other != nil:
		got.mark = "usual"
	case head.gzip:
		got.mark = "gzip " + strconv.Itoa(int(c.unzip.OS))
	}
	return got, nil
}

// dial connects, and shakes hands where TLS is spoken.
func (c *httpClient) dial(deadline time.Time) (net.Conn, error) {
	conn, err := net.DialTimeout("tcp", c.addr, time.Until(deadline))
	if err != nil || c.secure == nil {
		return conn, err
	}
	secure := tls.Client(conn, c.secure)
	if err := conn.SetDeadline(deadline); err != nil {
		conn.Close()
		return nil, err
	}
	if err := secure.Handshake(); err != nil {
		conn.Close()
		return nil, fmt.Errorf("shake hands: %w", err)
	}
	return secure, nil
}

// An httpHead is what matters of an answer's head.
type httpHead struct {
	status  int
	length  int64 // -1: until the end of the connection, or chunked
	chunked bool
	gzip    bool
	close   bool
	mark    string // value of the header that is kept, without parameters
}

// readHead reads a head; mark names the header that is kept.
func (c *httpClient) readHead(mark string) (httpHead, error) {
	h := httpHead{length: -1}
	line, err := c.in.ReadSlice('\n')
	if err != nil {
		return h, fmt.Errorf("read status: %w", err)
	}
	if len(line) < 12 || !bytes.HasPrefix(line, []byte("HTTP/1.")) {
		return h, fmt.Errorf("status line %.40q: %w", line, errWrong)
	}
	if h.status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return h, fmt.Errorf("status line %.40q: %w", line, errWrong)
	}
	for {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return h, fmt.Errorf("read head: %w", err)
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 {
			return h, nil
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimSpace(value)
		if mark != "" && bytes.EqualFold(name, []byte(mark)) {
			before, _, _ := bytes.Cut(value, []byte(";"))
			h.mark = string(before)
		}
		switch {
		case bytes.EqualFold(name, []byte("Content-Length")):
			if h.length, err = strconv.ParseInt(string(value), 10, 64); err != nil || h.length < 0 {
				return h, fmt.Errorf("content length %.40q: %w", value, errWrong)
			}
		case bytes.EqualFold(name, []byte("Transfer-Encoding")):
			h.chunked = bytes.EqualFold(value, []byte("chunked"))
		case bytes.EqualFold(name, []byte("Content-Encoding")):
			h.gzip = bytes.EqualFold(value, []byte("gzip"))
		case bytes.EqualFold(name, []byte("Connection")):
			h.close = bytes.EqualFold(value, []byte("close"))
		}
	}
}

// readBody reads the whole body and compares it to want.
func (c *httpClient) readBody(h httpHead, want []byte) error {
	c.body = httpBody{in: c.in, left: h.length, chunked: h.chunked}
	if h.chunked {
		c.body.left = 0
	}
	var content io.Reader = &c.body
	if h.gzip {
		if c.unzip == nil {
			c.unzip = new(gzip.Reader)
		}
		if err := c.unzip.Reset(&c.body); err != nil {
			return fmt.Errorf("gzip header: %w", asWrong(err))
		}
		content = c.unzip
	}
	offset := 0
	for {
		n, err := content.Read(c.buffer[:])
		if n > len(want)-offset || !bytes.Equal(c.buffer[:n], want[offset:offset+n]) {
			return fmt.Errorf("content differs after byte %d: %w", offset, errWrong)
		}
		offset += n
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("body after %d bytes: %w", offset, asWrong(err))
		}
	}
	if offset != len(want) {
		return fmt.Errorf("%d bytes, not %d: %w", offset, len(want), errWrong)
	}
	if h.gzip {
		// The last chunk, which says that there is no more.
		if n, err := c.body.Read(c.buffer[:1]); n != 0 || err != io.EOF {
			return fmt.Errorf("after the content: %d bytes, %v: %w", n, err, errWrong)
		}
	}
	return nil
}

// asWrong tells damaged data from a damaged connection.
func asWrong(err error) error {
	var network net.Error
	if errors.As(err, &network) {
		return err
	}
	return fmt.Errorf("%w: %w", err, errWrong)
}

// An httpBody reads the body of one answer, chunked or of known length. It is
// an io.ByteReader, so that gzip neither reads past it nor allocates a buffer.
type httpBody struct {
	in      *bufio.Reader
	left    int64 // of this chunk or of the body; -1: until the connection ends
	chunked bool
	between bool // a chunk was read, its line end was not
	ended   bool
}

func (b *httpBody) Read(p []byte) (int, error) {
	if err := b.fill(); err != nil {
		return 0, err
	}
	if b.left >= 0 && int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.in.Read(p)
	b.take(n)
	if err == io.EOF && b.left >= 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// ReadByte implements io.ByteReader.
func (b *httpBody) ReadByte() (byte, error) {
	if err := b.fill(); err != nil {
		return 0, err
	}
	c, err := b.in.ReadByte()
	if err == nil {
		b.take(1)
	} else if err == io.EOF && b.left >= 0 {
		err = io.ErrUnexpectedEOF
	}
	return c, err
}

func (b *httpBody) take(n int) {
	if b.left >= 0 {
		b.left -= int64(n)
	}
}

// fill makes sure that there is something left to read, or returns io.EOF.
func (b *httpBody) fill() error {
	switch {
	case b.left != 0:
		return nil
	case !b.chunked || b.ended:
		return io.EOF
	}
	if b.between {
		if err := b.lineEnd(); err != nil {
			return err
		}
	}
	line, err := b.in.ReadSlice('\n')
	if err != nil {
		return fmt.Errorf("read chunk size: %w", err)
	}
	size, err := parseHex(bytes.TrimRight(line, "\r\n"))
	if err != nil {
		return err
	}
	b.left, b.between = size, true
	if size == 0 {
		b.ended = true
		if err := b.lineEnd(); err != nil {
			return err
		}
		return io.EOF
	}
	return nil
}

func (b *httpBody) lineEnd() error {
	for _, want := range "\r\n" {
		c, err := b.in.ReadByte()
		if err != nil {
			return fmt.Errorf("read end of chunk: %w", err)
		}
		if rune(c) != want {
			return fmt.Errorf("end of chunk: %q: %w", c, errWrong)
		}
	}
	return nil
}

func parseHex(text []byte) (int64, error) {
	var n int64
	if len(text) == 0 || len(text) > 12 {
		return 0, fmt.Errorf("chunk size %.20q: %w", text, errWrong)
	}
	for _, c := range text {
		digit := bytes.IndexByte([]byte("0123456789abcdef"), c|0x20)
		if digit < 0 {
			return 0, fmt.Errorf("chunk size %.20q: %w", text, errWrong)
		}
		n = n<<4 | int64(digit)
	}
	return n, nil
}
