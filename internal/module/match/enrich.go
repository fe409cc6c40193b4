package match

import (
	"encoding/binary"
	"hash/maphash"
)

// enrich gives each function a second hash, which also has the names of what it
// refers to: imports, exported functions, strings. Functions of the same text
// (the many that free one field and return) differ in it.
func (b *Build) enrich() {
	var h maphash.Hash
	h.SetSeed(hashSeed)
	var word [10]byte
	for i := range b.Functions {
		f := &b.Functions[i]
		h.Reset()
		binary.LittleEndian.PutUint64(word[:], f.hash)
		h.Write(word[:])
		for k := f.first; k < f.last; k++ {
			r := &b.References[k]
			word[0], word[1] = byte(r.Mode), byte(r.Region)
			h.Write(word[:2])
			switch {
			case r.Region == Slot && r.To >= 0:
				h.WriteString(b.names[r.To])
			case r.Region == Text && r.To >= 0:
				if to := &b.Functions[r.To]; to.Exported {
					h.WriteString(to.Names[0])
				}
			case r.Region == Const && r.Mode == Address:
				h.Write(b.text(r.Target))
			}
		}
		f.rich = h.Sum64()
	}
}

// longestText bounds what is looked at as one string.
const longestText = 4096

// text returns the string at an address without its zero: printable bytes up to
// one; nil where there is none.
func (b *Build) text(addr uint64) []byte {
	raw := b.im.at(addr)
	for i, c := range raw[:min(len(raw), longestText)] {
		switch {
		case c == 0:
			return raw[:i]
		case c < 0x20 && (c < '\t' || c > '\r') && c != 0x1b, c == 0x7f:
			return nil
		}
	}
	return nil
}
