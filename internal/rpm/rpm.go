// Package rpm asks the machine's own rpm program what an rpm database below a
// root directory knows about files: which package a path belongs to, and the
// version that is installed. From dnf's log it reads the versions before.
//
//	/usr/lib/sysimage/rpm, /var/lib/rpm   the database, in one of three formats
//	/var/log/dnf.rpm.log, .1, .2.gz, …    "TIME SUBDEBUG Upgraded: NAME-[EPOCH:]VERSION-RELEASE.ARCH"
//
// A container's files are hostile input, and rpm writes where it only reads: it
// locks a database, and sqlite puts files beside its own. So rpm never sees the
// root directory. It gets a copy of the database in a folder of its own, and
// where root runs vos it runs as nobody, who can do nothing but read that.
// Its time and its output are bounded, as is the copy. A path is believed to
// belong to a package only if that package's list of files has it.
//
// What is read is bounded; where a bound is exceeded there is an error that wraps
// ErrTooLarge. Names and versions of other characters than rpm's are not taken.
package rpm

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"time"
)

// ErrTooLarge is wrapped where a file or an answer is larger, or files are more,
// than any real machine has.
var ErrTooLarge = errors.New("larger than rpm's files are")

// ErrChanging is wrapped where the database was written while it was copied.
var ErrChanging = errors.New("it is being written to")

// The bounds on what is read.
const (
	mostDatabase = 1 << 30  // bytes of all its files
	mostOutput   = 64 << 20 // bytes of one answer
	mostLog      = 64 << 20 // bytes of one part of the log, unpacked
	mostLogs     = 64
)

// A Package is an installed package.
type Package struct {
	Name         string
	Architecture string // "" where rpm has none
	Version      string // [EPOCH:]VERSION-RELEASE, installed
}

// A Database is an rpm database below one root directory.
type Database struct {
	root     fs.FS
	folder   string // the database's, in root
	files    []string
	most     int64         // bytes of all its files
	patience time.Duration // how long one run of rpm may take
}

// folders are where databases are: the newer place first, which the older one is
// often a link to.
var folders = [...]string{"usr/lib/sysimage/rpm", "var/lib/rpm"}

// formats are the files that rpm needs for a query, by format: sqlite, ndb, and
// the Berkeley DB of old. The first of each is always there.
var formats = [...][]string{
	{"rpmdb.sqlite", "rpmdb.sqlite-wal"},
	{"Packages.db", "Index.db"},
	{"Packages", "Basenames", "Name", "Providename"},
}

// Open returns the database below a root directory, in which links must lead to
// what they mean there. It wraps fs.ErrNotExist where rpm has none.
func Open(root fs.FS) (*Database, error) {
	for _, folder := range folders {
		for _, files := range formats {
			info, err := fs.Stat(root, path.Join(folder, files[0]))
			if err == nil && info.Mode().IsRegular() && info.Size() > 0 {
				return &Database{root: root, folder: folder, files: files, most: mostDatabase, patience: 20 * time.Second}, nil
			}
		}
	}
	return nil, fmt.Errorf("open rpm's database: %w", fs.ErrNotExist)
}

const alphanumeric = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

// validName checks against what rpm lets build, in a package's name and in that
// of an architecture.
func validName(name string) bool {
	return name != "" && len(name) <= 256 && strings.Trim(name, alphanumeric+"._+-") == ""
}

// validVersion checks [EPOCH:]VERSION-RELEASE: no blanks, nothing that a
// terminal acts on.
func validVersion(version string) bool {
	return strings.Contains(version, "-") && len(version) <= 256 && strings.Trim(version, alphanumeric+"._+-~^:") == ""
}
