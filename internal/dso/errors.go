package dso

import (
	"errors"
	"fmt"
)

// What an object is refused for. Errors of this package wrap one of these, or
// the error of the io.ReaderAt.
var (
	ErrNotELF      = errors.New("not an ELF object")
	ErrClass       = errors.New("not a 64-bit little-endian object")
	ErrMachine     = errors.New("not for x86-64")
	ErrType        = errors.New("neither an executable nor a shared object")
	ErrTruncated   = errors.New("truncated")
	ErrMalformed   = errors.New("malformed")
	ErrUnsupported = errors.New("not supported")
	ErrLimit       = errors.New("larger than is read")
	ErrNoFile      = errors.New("only an object read from a file has it")
)

// MaxTable is the most bytes that are read for one table of an object (a symbol
// table, its names, .eh_frame) or by one call of Bytes: the .strtab of a large
// program's debug file fits.
const MaxTable = 256 << 20

// Smaller bounds, each several times what is found in practice.
const (
	maxLoaded   = 64 << 20 // one table of a process's memory, which may be larger than any file
	maxName     = 32 << 10 // a symbol's name: the longest of 2,400 Debian objects has 934 bytes
	maxHeaders  = 64 << 10 // program headers, as in Linux fs/binfmt_elf.c
	maxDynamic  = 1 << 20  // .dynamic
	maxNotes    = 1 << 20  // one PT_NOTE
	maxSections = 1 << 20  // section headers, a number
	maxVersions = 1 << 15  // version definitions and needs: their index has 15 bits
)

// malformed says that what stands at an object address (in a file's own parts,
// a file offset) breaks the format.
func malformed(what string, at uint64, format string, args ...any) error {
	return fmt.Errorf("read %s at %#x: %w: %s", what, at, ErrMalformed, fmt.Sprintf(format, args...))
}

func readError(what string, at uint64, err error) error {
	return fmt.Errorf("read %s at %#x: %w", what, at, err)
}
