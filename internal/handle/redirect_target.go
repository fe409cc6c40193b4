package handle

import (
	"fmt"
	"net"
	"path"
	"strconv"
	"strings"

	"github.com/virtualizing-os/vos/internal/api"
)

// A resource is what a descriptor is to be bound to, as the user wrote it:
//
//	file:PATH       a file below the program's root directory
//	append:PATH     the same, written at its end
//	tcp:HOST:PORT   a new connection, from the program's network
//	unix:PATH       likewise; unix:@NAME is an abstract name
//	fd:PID:N        what process PID has open as N
type resource struct {
	kind       string
	path       string // of a file or unix socket
	host, port string
	pid, fd    int
}

const (
	toFile   = "file"
	toAppend = "append"
	toTCP    = "tcp"
	toUnix   = "unix"
	toFD     = "fd"
)

// parseResource reads the text form of a resource. What it does not understand
// wraps api.ErrUsage.
func parseResource(text string) (resource, error) {
	wrong := func(why string) (resource, error) {
		return resource{}, fmt.Errorf("%w: --to %q: %s", api.ErrUsage, text, why)
	}
	kind, rest, found := strings.Cut(text, ":")
	if !found || rest == "" {
		return wrong("write file:PATH, append:PATH, tcp:HOST:PORT, unix:PATH or fd:PID:N")
	}
	if strings.ContainsRune(rest, 0) {
		return wrong("it has a byte 0")
	}
	r := resource{kind: kind}
	switch kind {
	case toFile, toAppend, toUnix:
		abstract := kind == toUnix && rest[0] == '@' && len(rest) > 1
		if !path.IsAbs(rest) && !abstract {
			return wrong("the path begins with /, and is looked up as the program sees it")
		}
		r.path = rest
	case toTCP:
		var err error
		if r.host, r.port, err = net.SplitHostPort(rest); err != nil || r.host == "" {
			return wrong("write tcp:HOST:PORT")
		}
		if port, err := strconv.ParseUint(r.port, 10, 16); err != nil || port == 0 {
			return wrong("the port is a number up to 65535")
		}
	case toFD:
		pid, fd, found := strings.Cut(rest, ":")
		var errPID, errFD error
		r.pid, errPID = strconv.Atoi(pid)
		r.fd, errFD = strconv.Atoi(fd)
		if !found || errPID != nil || errFD != nil || r.pid <= 0 || r.fd < 0 || max(r.pid, r.fd) > maxDescriptor {
			return wrong("write fd:PID:N, two numbers")
		}
	default:
		return wrong("the kinds are file, append, tcp, unix and fd")
	}
	return r, nil
}
