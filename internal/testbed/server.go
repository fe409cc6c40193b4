package testbed

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A server is a daemon of the distribution that runs in the foreground, in a
// temporary folder of its own.
type server struct {
	child  *child
	folder string
	addr   string
	output *lastOutput
	end    syscall.Signal // that asks it to end; SIGTERM if 0
}

// freePort returns a loopback port that nobody listened on a moment ago.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// startServer starts a program that listens on a port. command writes what the
// program needs into folder and returns its command line; ready makes a first
// request. Another process may take the port in between, so a program that
// ends at once is tried again on another one.
func startServer(ctx context.Context, name string, env []string,
	command func(folder string, port int) ([]string, error),
	ready func(ctx context.Context, s *server) error) (*server, error) {

	var last error
	for range 3 {
		s, err := tryServer(ctx, name, env, command, ready)
		if err == nil {
			return s, nil
		}
		last = err
		if !errors.Is(err, errServerEnded) {
			break
		}
	}
	return nil, fmt.Errorf("start %s: %w", name, last)
}

var errServerEnded = errors.New("it ended at once")

func tryServer(ctx context.Context, name string, env []string,
	command func(folder string, port int) ([]string, error),
	ready func(ctx context.Context, s *server) error) (_ *server, err error) {

	port, err := freePort()
	if err != nil {
		return nil, err
	}
	s := &server{addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), output: &lastOutput{}}
	if s.folder, err = os.MkdirTemp("", "vos-"+name+"-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(s.folder)
		}
	}()
	// Workers that gave up root must get in.
	if err := os.Chmod(s.folder, 0o755); err != nil {
		return nil, err
	}
	argv, err := command(s.folder, port)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = s.folder
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = s.output, s.output
	if s.child, err = startChild(cmd); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		if err = ready(ctx, s); err == nil {
			return s, nil
		}
		select {
		case <-s.child.done:
			return nil, fmt.Errorf("%w (%v): %s", errServerEnded, s.child.err, s.printed())
		case <-ctx.Done():
			s.killGroup()
			return nil, fmt.Errorf("not ready: %w: %w: %s", ctx.Err(), err, s.printed())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// asAccount returns what to put before a command that is to run as another user
// where root starts it, and gives that user the files. The kernel takes the death
// signal from a process that changes its user (commit_creds in kernel/cred.c), so
// a server that did so by itself would outlive a killed test run.
func asAccount(name string, files ...string) (prefix []string, err error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return nil, err
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", name, err)
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", name, err)
	}
	for _, file := range files {
		if err := os.Chown(file, uid, gid); err != nil {
			return nil, err
		}
	}
	return []string{"setpriv", "--reuid", u.Uid, "--regid", u.Gid, "--clear-groups", "--pdeathsig", "TERM"}, nil
}

// printed returns the end of what the server printed or logged.
func (s *server) printed() string {
	text := s.output.String()
	if log, err := os.ReadFile(filepath.Join(s.folder, "error.log")); err == nil {
		text += string(log[max(0, len(log)-lastOutputLimit):])
	}
	return strings.TrimSpace(text)
}

// killGroup ends the server and all its processes at once.
func (s *server) killGroup() {
	s.child.kill()
	s.child.endGroup()
}

// Addr returns host:port.
func (s *server) Addr() string { return s.addr }

// Folder is the server's temporary folder; Stop removes it.
func (s *server) Folder() string { return s.folder }

// Log returns the end of what the server printed and logged.
func (s *server) Log() string { return s.printed() }

// Done is closed when the server has ended.
func (s *server) Done() <-chan struct{} { return s.child.done }

// stop asks the server to end, waits until its whole process group
// is gone, and removes its folder.
func (s *server) stop() error {
	pid := s.child.pid()
	stopped := s.child.stop(cmp.Or(s.end, syscall.SIGTERM), 10*time.Second)
	var left error
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if !s.child.groupLeft() {
			break
		}
		if time.Now().After(end) {
			left = fmt.Errorf("processes of group %d outlived their leader: killed", pid)
			break
		}
	}
	s.child.endGroup()
	removed := os.RemoveAll(s.folder)
	if err := cmp.Or(stopped, left, removed); err != nil {
		return fmt.Errorf("stop server %d: %w", pid, err)
	}
	return nil
}

// groupExists tells whether a process is in the group that lives, or is dead and
// for this process to reap.
func groupExists(group int) bool {
	if syscall.Kill(-group, 0) != nil {
		return false
	}
	self := os.Getpid()
	for _, p := range allProcesses() {
		if p.group == group && (p.state != 'Z' && p.state != 'X' || p.parent == self) {
			return true
		}
	}
	return false
}

// stopOnce stops a server of one process; one that had ended before its time is
// an error.
func (s *server) stopOnce(name string) error {
	var lost error
	select {
	case <-s.child.done:
		lost = fmt.Errorf("%s %d had ended before: %v: %s", name, s.child.pid(), s.child.err, s.Log())
	default:
	}
	if err := s.stop(); err != nil {
		return err
	}
	return lost
}
