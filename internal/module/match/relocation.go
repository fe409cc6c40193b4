package match

import (
	"cmp"
	"debug/elf"
	"slices"
	"sort"

	"github.com/virtualizing-os/vos/internal/dso"
)

// A word is a relocated word of a build: what the loader makes it point at.
type word struct {
	at     uint64
	kind   elf.R_X86_64
	target uint64 // object address, where the object itself has it; 0 for an import
	name   string // name@version of a symbol that relocates it, "" for RELATIVE
	addend int64
	plt    bool
}

// readWords collects the relocations by address. Of several of one place the
// last one counts, as for the loader.
func readWords(o *dso.Object) ([]word, error) {
	var all []word
	symbols, err := o.DynamicSymbols()
	if err != nil {
		return nil, err
	}
	for r, err := range o.Relocations() {
		if err != nil {
			return nil, err
		}
		w := word{at: r.Offset, kind: r.Type, addend: r.Addend, plt: r.Table == dso.FromJMPREL}
		switch r.Type {
		case elf.R_X86_64_NONE:
			continue
		case elf.R_X86_64_RELATIVE, elf.R_X86_64_IRELATIVE:
			w.target = uint64(r.Addend)
		default:
			if r.Symbol != 0 {
				s, _ := symbols.At(r.Symbol)
				w.name = symbolKey(s)
				if s.Defined() && !s.IsTLS() && s.Section != elf.SHN_ABS {
					w.target = s.Value
					if r.Type == elf.R_X86_64_64 {
						w.target += uint64(r.Addend)
					}
				}
			}
		}
		all = append(all, w)
	}
	if !slices.IsSortedFunc(all, compareWords) {
		slices.SortStableFunc(all, compareWords)
	}
	kept := all[:0]
	for i, w := range all {
		if i+1 < len(all) && all[i+1].at == w.at {
			continue
		}
		kept = append(kept, w)
	}
	return kept, nil
}

func compareWords(a, b word) int { return cmp.Compare(a.at, b.at) }

// symbolKey is the name under which two builds' symbols are the same to the
// loader: name@version, whether or not the version is the default one.
func symbolKey(s dso.Symbol) string {
	if s.Version == "" {
		return s.Name
	}
	return s.Name + "@" + s.Version
}

// wordAt returns the relocated word at an address, or nil.
func (b *Build) wordAt(addr uint64) *word {
	i := sort.Search(len(b.words), func(i int) bool { return b.words[i].at >= addr })
	if i < len(b.words) && b.words[i].at == addr {
		return &b.words[i]
	}
	return nil
}

// wordsIn returns the relocated words of [from, to).
func (b *Build) wordsIn(from, to uint64) []word {
	i := sort.Search(len(b.words), func(i int) bool { return b.words[i].at >= from })
	j := i + sort.Search(len(b.words)-i, func(k int) bool { return b.words[i+k].at >= to })
	return b.words[i:j]
}

// isSlot tells a relocation whose word the loader fills in for code that loads
// from it: not a pointer that the source code has.
func (w *word) isSlot() bool {
	switch w.kind {
	case elf.R_X86_64_GLOB_DAT, elf.R_X86_64_JMP_SLOT, elf.R_X86_64_DTPMOD64, elf.R_X86_64_DTPOFF64, elf.R_X86_64_TPOFF64, elf.R_X86_64_TLSDESC:
		return true
	}
	return false
}

// isTLS tells a relocation of thread-local storage.
func (w *word) isTLS() bool {
	switch w.kind {
	case elf.R_X86_64_DTPMOD64, elf.R_X86_64_DTPOFF64, elf.R_X86_64_TPOFF64, elf.R_X86_64_TLSDESC:
		return true
	}
	return false
}
