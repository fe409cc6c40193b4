package testbed

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// ApacheOptions changes how Apache runs.
type ApacheOptions struct {
	Env     []string // added to the environment, as LD_LIBRARY_PATH
	Modules string   // folder of modules, which are loaded from there
}

// ApacheModules are the modules that [Apache] loads, by their files.
var ApacheModules = []string{"mod_authz_core.so", "mod_deflate.so", "mod_filter.so", "mod_headers.so", "mod_mime.so", "mod_mpm_event.so"}

// An Apache is a running Apache HTTP server: the process that was started, and a
// child of many threads, which serves small files, compressed. Marks of answers
// are what mod_headers says of a variable that is not there, "(null)" as it comes.
type Apache struct {
	*server
	files []File
}

// StartApache starts Apache on a loopback port, as root with the account of the
// distribution. The caller stops it.
func StartApache(ctx context.Context, o ApacheOptions) (*Apache, error) {
	program, err := findProgram("apache2")
	if err != nil {
		return nil, fmt.Errorf("start apache: %w", err)
	}
	a := &Apache{files: textFiles()[:4]}
	for i := range a.files {
		a.files[i].Header = "X-None"
	}
	a.server, err = startServer(ctx, "apache", o.Env, func(folder string, port int) ([]string, error) {
		if err := a.write(folder, port, o); err != nil {
			return nil, err
		}
		argv, err := asAccount("www-data", folder)
		return append(argv, program, "-d", folder, "-f", "apache.conf", "-DFOREGROUND"), err
	}, func(ctx context.Context, s *server) error { return tryHTTP(ctx, s.addr, a.files, nil) })
	if err != nil {
		return nil, err
	}
	return a, nil
}

// RunApache is [StartApache] for the length of a test.
func RunApache(tb TB, o ApacheOptions) *Apache {
	tb.Helper()
	a, err := StartApache(context.WithoutCancel(tb.Context()), o)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	tb.Cleanup(func() {
		if err := a.Stop(); err != nil {
			tb.Errorf("%v", err)
		}
	})
	return a
}

func (a *Apache) write(folder string, port int, o ApacheOptions) error {
	for _, f := range a.files {
		name := filepath.Join(folder, "content", f.Path)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name, f.Content, 0o644); err != nil {
			return err
		}
	}
	var c strings.Builder
	for _, file := range ApacheModules {
		name := strings.TrimSuffix(strings.TrimPrefix(file, "mod_"), ".so")
		fmt.Fprintf(&c, "LoadModule %s_module %s\n", name, filepath.Join(o.Modules, file))
	}
	fmt.Fprintf(&c, `ServerName localhost
Listen 127.0.0.1:%d
PidFile apache.pid
DefaultRuntimeDir %s
ErrorLog error.log
DocumentRoot content
TypesConfig /dev/null
AddType text/plain .txt
StartServers 1
ServerLimit 1
ThreadsPerChild 16
MaxRequestWorkers 16
MinSpareThreads 1
MaxSpareThreads 16
KeepAlive On
KeepAliveTimeout 3600
MaxKeepAliveRequests 0
<Directory content>
  Require all granted
</Directory>
AddOutputFilterByType DEFLATE text/plain
Header always set X-None %%{NONE}e
`, port, folder)
	return os.WriteFile(filepath.Join(folder, "apache.conf"), []byte(c.String()), 0o644)
}

// Pids returns the first process's pid and then its child's.
func (a *Apache) Pids() []int { return append([]int{a.child.pid()}, Children(a.child.pid())...) }

// Load starts a verified load on it.
func (a *Apache) Load(ctx context.Context, o LoadOptions) *Load {
	return startHTTPLoad(ctx, a.addr, a.files, nil, o)
}

// Stop ends Apache and removes its folder.
func (a *Apache) Stop() error { return a.stopOnce("apache") }
