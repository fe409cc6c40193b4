package handle

import "slices"

// Flags are how a description was opened, and O_CLOEXEC of the descriptor, with
// the values of open(2) on x86-64, as fdinfo has them.
type Flags uint64

// Flags that decisions are made on.
const (
	FlagAppend    Flags = 0o2000
	FlagNonblock  Flags = 0o4000
	FlagCloseExec Flags = 0o2000000
	FlagPath      Flags = 0o10000000
)

const (
	flagAccess    Flags = 0o3
	flagLargeFile Flags = 0o100000 // of every file that a 64-bit program opens
	flagSync      Flags = 0o4010000
	flagDSync     Flags = 0o10000
	flagTemporary Flags = 0o20200000
	flagDirectory Flags = 0o200000
)

var flagNames = []struct {
	flag Flags
	name string
}{
	{flagTemporary, "O_TMPFILE"}, {flagSync, "O_SYNC"}, // which contain others
	{flagDSync, "O_DSYNC"}, {flagDirectory, "O_DIRECTORY"},
	{0o100, "O_CREAT"}, {0o200, "O_EXCL"}, {0o400, "O_NOCTTY"}, {0o1000, "O_TRUNC"},
	{FlagAppend, "O_APPEND"}, {FlagNonblock, "O_NONBLOCK"}, {0o20000, "O_ASYNC"}, {0o40000, "O_DIRECT"},
	{0o400000, "O_NOFOLLOW"}, {0o1000000, "O_NOATIME"}, {FlagCloseExec, "O_CLOEXEC"}, {FlagPath, "O_PATH"},
}

// An Access is what a descriptor may be used for.
type Access string

// The accesses.
const (
	AccessRead      Access = "read"
	AccessWrite     Access = "write"
	AccessReadWrite Access = "read_write"
	AccessNone      Access = "none" // O_PATH, or mode 3: ioctl(2) alone
)

// Access returns the access mode.
func (f Flags) Access() Access {
	if f&FlagPath != 0 {
		return AccessNone
	}
	return [...]Access{AccessRead, AccessWrite, AccessReadWrite, AccessNone}[f&flagAccess]
}

// Readable and Writable report what the access mode allows.
func (f Flags) Readable() bool { return f.Access() == AccessRead || f.Access() == AccessReadWrite }

// Writable is Readable's counterpart.
func (f Flags) Writable() bool { return f.Access() == AccessWrite || f.Access() == AccessReadWrite }

// Names returns the flags by their names in open(2), sorted, without access mode
// and O_LARGEFILE.
func (f Flags) Names() []string {
	names := []string{}
	rest := f &^ (flagAccess | flagLargeFile)
	for _, n := range flagNames {
		if rest&n.flag == n.flag {
			names = append(names, n.name)
			rest &^= n.flag
		}
	}
	slices.Sort(names)
	return names
}
