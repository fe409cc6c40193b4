// Package dpkg reads what Debian's package manager knows about files: which
// package a path belongs to, the version that is installed, and, from its log,
// the versions that were installed before. It reads dpkg's own files below a
// root directory and runs no program, so it works as well on the root of a
// container or a chroot.
//
//	/var/lib/dpkg/info/NAME[:ARCH].list   the paths of a package, one a line
//	/var/lib/dpkg/diversions              paths that one package took from others
//	/var/lib/dpkg/status                  paragraphs: Package, Architecture, Version
//	/var/log/dpkg.log, .1, .2.gz, …       "DATE TIME upgrade NAME:ARCH OLD NEW"
//
// The lists of a machine have half a million lines, and a handful of paths is
// asked about: so all paths are asked about at once, and one pass over the lists
// keeps nothing but their owners.
//
// A path may be written in two ways since /lib became a link to /usr/lib, and
// lists hold either. The path as it was asked for wins; the other way counts
// where that has no owner.
//
// A container's files are hostile input. What is read is bounded in size and
// number, a text that makes no sense is passed over, nothing panics; where a
// bound is exceeded there is an error that wraps ErrTooLarge. Names and versions
// of other characters than dpkg allows are not taken.
package dpkg

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
)

// ErrTooLarge is wrapped where a file is larger, or files are more, than any
// real machine has.
var ErrTooLarge = errors.New("larger than dpkg's files are")

// The bounds on what is read.
const (
	mostList   = 64 << 20 // bytes of one list, of diversions, of a log unpacked
	mostStatus = 128 << 20
	mostLists  = 100_000
	mostClaims = 64 // packages that list one path
	mostLogs   = 64
	mostZone   = 64 << 10
	mostBytes  = 1 << 30 // of all lists together
)

const (
	infoFolder = "var/lib/dpkg/info"
	logFolder  = "var/log"
)

// A Package is an installed package.
type Package struct {
	Name         string
	Architecture string // "" where neither the list's name nor status tells
	Version      string // installed; "" where status does not tell
}

// A Database is dpkg's files below one root directory.
type Database struct{ root fs.FS }

// Open returns the database below a root directory, in which links must lead to
// what they mean there. It wraps fs.ErrNotExist where dpkg has none.
func Open(root fs.FS) (*Database, error) {
	info, err := fs.Stat(root, infoFolder)
	if err == nil && !info.IsDir() {
		err = fs.ErrNotExist
	}
	if err != nil {
		return nil, fmt.Errorf("open dpkg's database: %w", err)
	}
	return &Database{root}, nil
}

// read returns all of a file of at most this many bytes, in a buffer that grows
// where it must.
func (d *Database) read(name string, buf []byte, most int64) ([]byte, error) {
	file, err := d.root.Open(name)
	if err != nil {
		return buf[:0], err
	}
	defer file.Close()
	return readBounded(file, name, buf, most)
}

func readBounded(r io.Reader, name string, buf []byte, most int64) ([]byte, error) {
	buf = buf[:0]
	for {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		switch {
		case int64(len(buf)) > most:
			return buf[:0], fmt.Errorf("read %s: more than %d bytes: %w", name, most, ErrTooLarge)
		case errors.Is(err, io.EOF):
			return buf, nil
		case err != nil:
			return buf[:0], fmt.Errorf("read %s: %w", name, err)
		}
	}
}

// validName checks against what dpkg allows in a package's name, and in that of
// an architecture.
func validName(name string) bool {
	return name != "" && len(name) <= 128 && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789+.-") == ""
}

// validVersion checks against deb-version(7): no blanks, nothing that a terminal
// acts on.
func validVersion(version string) bool {
	if version == "" || len(version) > 256 {
		return false
	}
	for _, c := range []byte(version) {
		switch {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', strings.IndexByte(".+-:~", c) >= 0:
		default:
			return false
		}
	}
	return true
}
