package testbed

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"time"
)

// NginxOptions changes how nginx runs. The zero value is the usual one.
type NginxOptions struct {
	Workers   int      // 2 if 0
	GzipLevel int      // 4 if 0
	AccessLog bool     // to Folder()/access.log
	Binary    string   // the distribution's if empty
	Env       []string // added to the environment, as LD_LIBRARY_PATH
	Main      string   // lines for the top of nginx.conf
	HTTP      string   // lines for its http block
	TLS       bool     // only TLS is spoken, 1.2 and 1.3
	Regex     bool     // answers are put together from what regular expressions find
	XSLT      string   // module that is loaded to make pages of documents, all that is served; "" for none
	Header    string   // of answers, whose value is their mark
}

// An Nginx is a running nginx: a master and its workers, gzip on, serving
// [Nginx.Files] on a loopback port. It never closes a kept connection.
type Nginx struct {
	*server
	workers int
	files   []File
	secure  *tls.Config // nil: plain
}

// StartNginx starts nginx in a temporary folder and waits until all workers are
// there and it answers. As root its workers run as www-data or nobody, as the
// distribution's do. The caller stops it.
func StartNginx(ctx context.Context, o NginxOptions) (*Nginx, error) {
	if o.Workers == 0 {
		o.Workers = 2
	}
	if o.GzipLevel == 0 {
		o.GzipLevel = 4
	}
	if o.Binary == "" {
		var err error
		if o.Binary, err = findProgram("nginx"); err != nil {
			return nil, fmt.Errorf("start nginx: %w", err)
		}
	}
	n := &Nginx{workers: o.Workers, files: textFiles()}
	if o.Regex {
		n.files = regexFiles()
	}
	if o.XSLT != "" {
		n.files = turnedFiles()
	}
	for i := range n.files {
		n.files[i].Header = o.Header
	}
	var err error
	var identity *identity
	if o.TLS {
		if identity, err = newIdentity(); err != nil {
			return nil, fmt.Errorf("start nginx: %w", err)
		}
		n.secure = identity.client
	}
	n.server, err = startServer(ctx, "nginx", o.Env, func(folder string, port int) ([]string, error) {
		return []string{o.Binary, "-p", folder, "-e", "error.log", "-c", "nginx.conf"}, n.write(folder, port, o, identity)
	}, n.ready)
	if err != nil {
		return nil, err
	}
	return n, nil
}

// RunNginx is [StartNginx] for the length of a test.
func RunNginx(tb TB, o NginxOptions) *Nginx {
	tb.Helper()
	n, err := StartNginx(context.WithoutCancel(tb.Context()), o)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	tb.Cleanup(func() {
		if err := n.Stop(); err != nil {
			tb.Errorf("%v", err)
		}
	})
	return n
}

// write puts the configuration and the content into folder.
func (n *Nginx) write(folder string, port int, o NginxOptions, identity *identity) error {
	root := filepath.Join(folder, "content")
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	for _, f := range n.files {
		if o.Regex {
			break // they are put together on demand
		}
		content := f.Content
		if o.XSLT != "" {
			content = turnedDocument(f)
		}
		if err := os.WriteFile(filepath.Join(root, f.Path), content, 0o644); err != nil {
			return err
		}
	}
	listen, locations := "", ""
	if identity != nil {
		if err := identity.write(folder); err != nil {
			return err
		}
		listen = " ssl"
		locations += "ssl_certificate certificate.pem;\nssl_certificate_key key.pem;\nssl_protocols TLSv1.2 TLSv1.3;\n"
	}
	if o.Regex {
		locations += regexLocations
	}
	var c strings.Builder
	if o.XSLT != "" {
		if err := os.WriteFile(filepath.Join(folder, "turn.xsl"), []byte(turnStyle), 0o644); err != nil {
			return err
		}
		fmt.Fprintf(&c, "load_module %s;\n", o.XSLT)
		locations += "location / {\n  default_type text/xml;\n  xslt_stylesheet turn.xsl;\n}\n"
	}
	fmt.Fprintf(&c, "daemon off;\nworker_processes %d;\npid nginx.pid;\nerror_log error.log notice;\n", o.Workers)
	if os.Getuid() == 0 {
		account := "nobody nogroup"
		if _, err := user.Lookup("www-data"); err == nil {
			account = "www-data"
		}
		fmt.Fprintf(&c, "user %s;\n", account)
	}
	fmt.Fprintf(&c, "%s\nevents { worker_connections 512; }\nhttp {\n", o.Main)
	access := "off"
	if o.AccessLog {
		access = "access.log"
	}
	fmt.Fprintf(&c, "access_log %s;\n", access)
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		fmt.Fprintf(&c, "%s_temp_path %s_temp;\n", kind, kind)
	}
	fmt.Fprintf(&c, `default_type text/plain;
gzip on;
gzip_types text/plain;
gzip_min_length 1;
gzip_comp_level %d;
keepalive_timeout 1h;
keepalive_requests 1000000000;
keepalive_time 24h;
%s
server {
  listen 127.0.0.1:%d%s backlog=511;
  root content;
%s}
}
`, o.GzipLevel, o.HTTP, port, listen, locations)
	return os.WriteFile(filepath.Join(folder, "nginx.conf"), []byte(c.String()), 0o644)
}

func (n *Nginx) ready(ctx context.Context, s *server) error {
	if found := len(Children(s.child.pid())); found != n.workers {
		return fmt.Errorf("%d workers of %d", found, n.workers)
	}
	return tryHTTP(ctx, s.addr, n.files, n.secure)
}

// regexLocations answer with parts of the path, in another order.
const regexLocations = `location ~ "^/turn/(?<word>[a-z]{3,12})-(\d+)/(?:x|y{2,4}|(?!z)[a-w]+)/(?<tail>.*?[^/]+)\.txt$" {
  return 200 "$2 $word $tail|$tail|$word\n";
}
location ~* "^/(?<a>(?:[a-z]+\d)+)/(?<b>\p{L}+|[0-9a-f]{2,})$" {
  return 200 "$b.$a\n";
}
location ~ "^/digit/\d$" {
  return 200 "a digit\n";
}
location /digit/ {
  return 200 "no digit\n";
}
`

// regexFiles are answers of regexLocations.
func regexFiles() []File {
	var all []File
	add := func(path, text string) {
		all = append(all, File{Path: path, Content: []byte(text), SHA256: sha256.Sum256([]byte(text))})
	}
	for i, word := range words[:] {
		if len(word) >= 3 {
			tail := strings.Repeat(word+"/", i) + "end"
			for _, middle := range []string{"x", "yyy", "abc"} {
				add(fmt.Sprintf("/turn/%s-%d/%s/%s.txt", word, i*i, middle, tail), fmt.Sprintf("%d %s %s|%s|%s\n", i*i, word, tail, tail, word))
			}
		}
		chain := strings.Repeat(word+"7", i+1)
		add("/"+chain+"/"+word, word+"."+chain+"\n")
		add(fmt.Sprintf("/%s/%x", chain, 1000+i), fmt.Sprintf("%x.%s\n", 1000+i, chain))
	}
	add("/digit/7", "a digit\n")
	for range len(all) / 3 { // a quarter of all requests
		add("/digit/!", "no digit\n")
		all[len(all)-1].Other = []byte("a digit\n") // see Pcre2
	}
	return all
}

// Files are what it serves.
func (n *Nginx) Files() []File { return n.files }

// Master returns the master's pid.
func (n *Nginx) Master() int { return n.child.pid() }

// Workers returns the pids of the workers there are now, sorted.
func (n *Nginx) Workers() []int { return Children(n.Master()) }

// Pids returns the master's pid and then the workers'.
func (n *Nginx) Pids() []int { return append([]int{n.Master()}, n.Workers()...) }

// Load starts a verified load on it.
func (n *Nginx) Load(ctx context.Context, o LoadOptions) *Load {
	return startHTTPLoad(ctx, n.addr, n.files, n.secure, o)
}

// Crashes returns the lines of the log which say that a worker died. The master
// replaces such a worker, so that nothing else may tell.
func (n *Nginx) Crashes() []string {
	text, err := os.ReadFile(filepath.Join(n.folder, "error.log"))
	if err != nil {
		return nil
	}
	var crashes []string
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "exited on signal") || strings.Contains(line, "[alert]") {
			crashes = append(crashes, strings.TrimSpace(line))
		}
	}
	return crashes
}

// Stop ends master and workers, and removes the folder. A worker that crashed or
// is missing, or a master that had to be killed, is an error.
func (n *Nginx) Stop() error {
	var lost error
	select {
	case <-n.child.done:
		lost = fmt.Errorf("nginx %d had ended before: %v: %s", n.Master(), n.child.err, n.Log())
	default:
		if workers := n.Workers(); len(workers) != n.workers {
			lost = fmt.Errorf("nginx %d has %d workers of %d: %s", n.Master(), len(workers), n.workers, n.Log())
		} else if crashes := n.Crashes(); len(crashes) > 0 {
			lost = fmt.Errorf("nginx %d lost a worker: %s", n.Master(), crashes[0])
		}
	}
	if err := n.stop(); err != nil {
		return err
	}
	return lost
}

// findProgram looks in PATH and in the folders of system programs, which are
// not in the PATH of every user.
func findProgram(name string) (string, error) {
	folders := append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin", "/usr/local/sbin")
	for _, folder := range folders {
		path := filepath.Join(folder, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is not installed: scripts/deps.sh does it", name)
}

// accepts tells whether somebody listens on addr.
func accepts(addr string) bool {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return false
	}
	c.Close()
	return true
}
