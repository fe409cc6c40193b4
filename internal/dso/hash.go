package dso

import "debug/elf"

// A gnuHash is the table of DT_GNU_HASH: a Bloom filter, buckets, and chains
// that lie in .dynsym's order and end at an odd hash (glibc elf/dl-lookup.c,
// do_lookup_x). It indexes the symbols from symOffset to the table's end.
type gnuHash struct {
	symOffset uint32
	shift     uint32
	bloom     []byte // words of 8 bytes, a power of two of them
	buckets   []byte // words of 4 bytes, as the chains
	chains    []byte
}

// readGNUHash returns the table and the number of symbols of .dynsym, which is
// 0 where nothing is exported: the table then says nothing of the imports.
func (o *Object) readGNUHash(at uint64) (*gnuHash, uint32, error) {
	const what = "GNU hash table"
	head, err := o.image.table(at, 16, what)
	if err != nil {
		return nil, 0, err
	}
	buckets, bloom := le.Uint32(head), le.Uint32(head[8:])
	h := &gnuHash{symOffset: le.Uint32(head[4:]), shift: le.Uint32(head[12:])}
	if buckets == 0 || bloom == 0 || bloom&(bloom-1) != 0 {
		return nil, 0, malformed(what, at, "%d buckets, a filter of %d words", buckets, bloom)
	}
	at += 16
	filter := uint64(bloom) * 8
	raw, err := o.image.table(at, filter+uint64(buckets)*4, what)
	if err != nil {
		return nil, 0, err
	}
	h.bloom, h.buckets = raw[:filter:filter], raw[filter:]
	at += uint64(len(raw))
	last := uint32(0)
	for i := 0; i < len(h.buckets); i += 4 {
		last = max(last, le.Uint32(h.buckets[i:]))
	}
	if last == 0 {
		return h, 0, nil
	}
	if last < h.symOffset {
		return nil, 0, malformed(what, at, "a bucket begins at symbol %d, before %d", last, h.symOffset)
	}
	// The last chain ends with the last symbol. The segment bounds the walk.
	w := window{image: &o.image, what: what}
	for {
		p, err := w.at(at+uint64(last-h.symOffset)*4, 4)
		if err != nil {
			return nil, 0, err
		}
		if last == 1<<32-1 || uint64(last-h.symOffset)*4 > o.image.limit() {
			return nil, 0, readError(what, at, ErrLimit)
		}
		last++
		if le.Uint32(p)&1 != 0 {
			break
		}
	}
	h.chains, err = o.image.table(at, uint64(last-h.symOffset)*4, what)
	return h, last, err
}

// candidates yields the indexes of symbols whose hash is that of the name.
func (h *gnuHash) candidates(name string, yield func(index uint32) bool) {
	hash := gnuNameHash(name)
	words := uint32(len(h.bloom) / 8)
	word := le.Uint64(h.bloom[uint64(hash/64&(words-1))*8:])
	if word>>(hash%64)&(word>>(hash>>(h.shift%32)%64))&1 == 0 {
		return
	}
	buckets := uint32(len(h.buckets) / 4)
	index := le.Uint32(h.buckets[uint64(hash%buckets)*4:])
	if index < h.symOffset {
		return
	}
	for at := uint64(index-h.symOffset) * 4; at+4 <= uint64(len(h.chains)); at += 4 {
		c := le.Uint32(h.chains[at:])
		if c|1 == hash|1 && !yield(h.symOffset+uint32(at/4)) || c&1 != 0 {
			return
		}
	}
}

func gnuNameHash(name string) uint32 {
	h := uint32(5381)
	for i := 0; i < len(name); i++ {
		h = h*33 + uint32(name[i])
	}
	return h
}

// A sysvHash is the table of DT_HASH (gABI, "Hash Table").
type sysvHash struct {
	at      uint64
	buckets []byte
	chains  []byte // one word for each symbol of .dynsym
}

func (o *Object) readSysVHash(at uint64) (*sysvHash, error) {
	const what = "hash table"
	head, err := o.image.table(at, 8, what)
	if err != nil {
		return nil, err
	}
	buckets, symbols := uint64(le.Uint32(head)), uint64(le.Uint32(head[4:]))
	if buckets == 0 {
		return nil, malformed(what, at, "no buckets")
	}
	raw, err := o.image.table(at+8, (buckets+symbols)*4, what)
	if err != nil {
		return nil, err
	}
	return &sysvHash{at, raw[:buckets*4], raw[buckets*4:]}, nil
}

func (h *sysvHash) symbols() uint32 { return uint32(len(h.chains) / 4) }

// candidates yields the indexes of the name's chain, of any name. A chain that
// is longer than the table has a cycle.
func (h *sysvHash) candidates(name string, yield func(index uint32) bool) error {
	hash := sysvNameHash(name)
	index := le.Uint32(h.buckets[uint64(hash%uint32(len(h.buckets)/4))*4:])
	for n := uint32(0); index != 0; n++ {
		if index >= h.symbols() || n >= h.symbols() {
			return malformed("hash table", h.at, "a chain with symbol %d of %d, or a cycle", index, h.symbols())
		}
		if !yield(index) {
			return nil
		}
		index = le.Uint32(h.chains[uint64(index)*4:])
	}
	return nil
}

func sysvNameHash(name string) uint32 {
	h := uint32(0)
	for i := 0; i < len(name); i++ {
		h = h<<4 + uint32(name[i])
		g := h & 0xf0000000
		h = (h ^ g>>24) &^ g
	}
	return h
}

// Lookup finds an exported symbol as the loader would, in this object alone: by
// the GNU hash table, or DT_HASH where there is none.
//
// With a version, that version is wanted, default or hidden; an object without
// versions, or an unversioned symbol, satisfies any (glibc check_match). With
// version "" it finds what dlsym finds: the unversioned or default one.
func (o *Object) Lookup(name, version string) (symbol Symbol, ok bool, err error) {
	d, err := o.dynamicSymbols()
	if err != nil {
		return Symbol{}, false, err
	}
	try := func(index uint32) bool {
		s, has := d.At(index)
		if !has || s.Name != name || !s.Exported() || !d.versions.satisfies(s, version) {
			return true
		}
		symbol, ok = s, true
		return false
	}
	switch {
	case d.gnu != nil:
		d.gnu.candidates(name, try)
	case d.sysv != nil:
		err = d.sysv.candidates(name, try)
	default:
		// Only the symbol table itself: no loader would find it, but an ET_EXEC
		// that is static has none to look it up either.
		if _, dynamic := o.Dyn(elf.DT_SYMTAB); dynamic {
			err = malformed("hash table", o.dyn(elf.DT_SYMTAB), "the object has symbols and no hash table")
		}
	}
	return symbol, ok, err
}
