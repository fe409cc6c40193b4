package testbed

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// HAProxyOptions changes how haproxy runs. The zero value is the usual one.
type HAProxyOptions struct {
	Threads int      // 2 if 0
	Env     []string // added to the environment, as LD_LIBRARY_PATH
	TLS     bool     // only TLS is spoken, 1.2 and 1.3
}

// markedFile is an answer that shows the build of libpcre2: see [Pcre2].
var markedFile = File{Path: "/mark/!", Content: []byte("found"), SHA256: sha256.Sum256([]byte("found")), Other: []byte("not found")}

// An HAProxy is a running haproxy of one process that answers by itself: with
// small files, and with parts of the path that regular expressions find. It
// never closes a kept connection.
type HAProxy struct {
	*server
	files  []File
	secure *tls.Config // nil: plain
}

// StartHAProxy starts haproxy on a loopback port, as root with the account of
// the distribution. The caller stops it.
func StartHAProxy(ctx context.Context, o HAProxyOptions) (*HAProxy, error) {
	if o.Threads == 0 {
		o.Threads = 2
	}
	program, err := findProgram("haproxy")
	if err != nil {
		return nil, fmt.Errorf("start haproxy: %w", err)
	}
	h := &HAProxy{files: textFiles()[:3]}
	var identity *identity
	if o.TLS {
		if identity, err = newIdentity(); err != nil {
			return nil, fmt.Errorf("start haproxy: %w", err)
		}
		h.secure = identity.client
	}
	h.server, err = startServer(ctx, "haproxy", o.Env, func(folder string, port int) ([]string, error) {
		if err := h.write(folder, port, o, identity); err != nil {
			return nil, err
		}
		var secret []string
		if identity != nil {
			secret = []string{filepath.Join(folder, "both.pem")}
		}
		argv, err := asAccount("haproxy", secret...)
		return append(argv, program, "-db", "-f", "haproxy.cfg"), err
	}, func(ctx context.Context, s *server) error { return tryHTTP(ctx, s.addr, h.files, h.secure) })
	if err != nil {
		return nil, err
	}
	h.files = append(h.files, slices.Repeat([]File{markedFile}, 8)...) // a fourth of all requests
	for i := range 20 {
		words := fmt.Sprintf("%x-%s", i*i, strings.Repeat("ab", i))
		text := fmt.Sprintf("%d and %s of path-%d", i, words, i*7)
		h.files = append(h.files, File{Path: fmt.Sprintf("/turn/path-%d/%s,%d.txt", i*7, words, i), Content: []byte(text), SHA256: sha256.Sum256([]byte(text))})
	}
	return h, nil
}

// RunHAProxy is [StartHAProxy] for the length of a test.
func RunHAProxy(tb TB, o HAProxyOptions) *HAProxy {
	tb.Helper()
	h, err := StartHAProxy(context.WithoutCancel(tb.Context()), o)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	tb.Cleanup(func() {
		if err := h.Stop(); err != nil {
			tb.Errorf("%v", err)
		}
	})
	return h
}

// write puts the configuration and the files into folder.
func (h *HAProxy) write(folder string, port int, o HAProxyOptions, identity *identity) error {
	var c strings.Builder
	// Expressions are to be tried each time.
	fmt.Fprintf(&c, "global\n  nbthread %d\n  maxconn 1024\n  tune.bufsize 65536\n  tune.pattern.cache-size 0\n", o.Threads)
	c.WriteString("defaults\n  mode http\n  timeout client 1h\n  timeout connect 1h\n  timeout server 1h\n  timeout http-keep-alive 1h\n")
	fmt.Fprintf(&c, "frontend load\n  bind 127.0.0.1:%d", port)
	if identity != nil {
		if err := identity.write(folder); err != nil {
			return err
		}
		// haproxy wants both in one file.
		if err := os.WriteFile(filepath.Join(folder, "both.pem"), append(identity.certificate, identity.key...), 0o600); err != nil {
			return err
		}
		c.WriteString(" ssl crt both.pem ssl-min-ver TLSv1.2")
	}
	c.WriteString("\n")
	for _, f := range h.files {
		name := strings.TrimPrefix(f.Path, "/")
		if err := os.WriteFile(filepath.Join(folder, name), f.Content, 0o644); err != nil {
			return err
		}
		fmt.Fprintf(&c, "  http-request return status 200 content-type text/plain file %s if { path %s }\n", name, f.Path)
	}
	c.WriteString(`  http-request return status 200 content-type text/plain ` +
		`lf-string '%[path,regsub("^/turn/([a-z]+-[0-9]+)/(.*?),([0-9]+)[.]txt$","\\3 and \\2 of \\1")]' if { path_reg ^/turn/([a-z]|-)+[0-9]+/ }` + "\n")
	fmt.Fprintf(&c, "  http-request return status 200 content-type text/plain string %q if { path_reg ^/mark/ }\n", markedFile.Content)
	fmt.Fprintf(&c, "  http-request return status 200 content-type text/plain string %q if { path_beg /mark/ }\n", markedFile.Other)
	return os.WriteFile(filepath.Join(folder, "haproxy.cfg"), []byte(c.String()), 0o644)
}

// Pid returns the process id.
func (h *HAProxy) Pid() int { return h.child.pid() }

// Load starts a verified load on it.
func (h *HAProxy) Load(ctx context.Context, o LoadOptions) *Load {
	return startHTTPLoad(ctx, h.addr, h.files, h.secure, o)
}

// Stop ends haproxy and removes its folder.
func (h *HAProxy) Stop() error { return h.stopOnce("haproxy") }
