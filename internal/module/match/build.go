package match

import (
	"fmt"
	"sort"

	"github.com/virtualizing-os/vos/internal/dso"
)

// A Build is one build of a module, taken apart: the first two steps. It is
// only read once it is made, and may be shared.
type Build struct {
	Object *dso.Object
	Debug  *dso.Object // its debug file, nil where none was given

	// Functions ascend by address and don't overlap.
	Functions []Function

	// References of all functions, function by function, each by ascending
	// address of the instruction.
	References []Reference

	Exports []Export

	im     *image
	words  []word
	code   [][]byte // normalised text, parallel to im.segments; nil for others
	stubs  []stub
	names  []string // of imports, by Reference.To
	nameAt map[string]int32
	labels *labels

	exportAt map[string]int // by Export.Key
}

// Export returns the export of a key, nil where there is none.
func (b *Build) Export(key string) *Export {
	if i, ok := b.exportAt[key]; ok {
		return &b.Exports[i]
	}
	return nil
}

// Read takes a build apart: o must have been opened from a file, and so must
// debug, which may be nil. Errors are those of package dso where the object's
// tables can't be read; code that can't be decoded is no error.
func Read(o, debug *dso.Object) (*Build, error) {
	if o.InMemory() {
		return nil, fmt.Errorf("read build: %w", dso.ErrUnsupported)
	}
	b := &Build{Object: o, Debug: debug, nameAt: map[string]int32{}, exportAt: map[string]int{}}
	var err error
	if b.im, err = readImage(o); err != nil {
		return nil, fmt.Errorf("read build: %w", err)
	}
	if b.words, err = readWords(o); err != nil {
		return nil, fmt.Errorf("read build: %w", err)
	}
	if b.labels, err = readLabels(o, debug); err != nil {
		return nil, fmt.Errorf("read build: %w", err)
	}
	if err := b.split(); err != nil {
		return nil, fmt.Errorf("read build: %w", err)
	}
	b.name()
	b.resolve()
	b.enrich()
	return b, nil
}

// FunctionAt returns the index of the function that has an address, -1 where
// none has.
func (b *Build) FunctionAt(addr uint64) int {
	i := sort.Search(len(b.Functions), func(i int) bool { return b.Functions[i].Addr > addr }) - 1
	if i < 0 || !b.Functions[i].Contains(addr) {
		return -1
	}
	return i
}

// References of one function.
func (b *Build) referencesOf(f *Function) []Reference { return b.References[f.first:f.last] }

// normalised returns a function's bytes with what refers elsewhere zeroed.
func (b *Build) normalised(f *Function) []byte {
	for i := range b.im.segments {
		if s := &b.im.segments[i]; b.code[i] != nil && f.Addr >= s.Vaddr && f.Addr-s.Vaddr < uint64(len(s.bytes)) {
			return b.code[i][f.Addr-s.Vaddr:][:f.Size]
		}
	}
	return nil
}

// raw returns a function's bytes as the file has them.
func (b *Build) raw(f *Function) []byte { return b.im.at(f.Addr)[:f.Size] }

// importName gives a name of an import its number.
func (b *Build) importName(name string) int32 {
	if i, ok := b.nameAt[name]; ok {
		return i
	}
	i := int32(len(b.names))
	b.names = append(b.names, name)
	b.nameAt[name] = i
	return i
}
