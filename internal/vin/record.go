package vin

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
)

var (
	le    = binary.LittleEndian
	magic = [8]byte{'v', 'o', 's', '-', 'v', 'i', 'n', 0}
	crc   = crc32.MakeTable(crc32.Castagnoli)
)

// Room for names and build-ids, in bytes; they end with a zero byte or their room.
const (
	maxName    = 255
	maxBuildID = 128
)

// validText reports a string that its room gives back as it was.
func validText(s string, room int) bool {
	return len(s) <= room && bytes.IndexByte([]byte(s), 0) < 0
}

// seal writes the checksum of a record, CRC-32C, to its last 4 bytes.
func seal(record []byte) {
	n := len(record) - 4
	le.PutUint32(record[n:], crc32.Checksum(record[:n], crc))
}

func sealed(record []byte) bool {
	n := len(record) - 4
	return le.Uint32(record[n:]) == crc32.Checksum(record[:n], crc)
}

// text returns what was put into room; ok is false for one that has anything
// behind its end.
func text(room []byte) (s string, ok bool) {
	head, tail, _ := bytes.Cut(room, []byte{0})
	return string(head), zero(tail)
}

func zero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// putHeader writes the fixed part: nothing in it changes once it is written.
func (v *Vin) putHeader(b []byte) {
	c := &v.config
	copy(b, magic[:])
	le.PutUint32(b[8:], Version)
	le.PutUint32(b[12:], headerSize)
	le.PutUint64(b[16:], c.Base)
	le.PutUint64(b[24:], v.layout.code)
	le.PutUint64(b[32:], v.layout.end-v.layout.code)
	le.PutUint32(b[40:], uint32(c.Entries))
	le.PutUint32(b[44:], uint32(c.Slots))
	le.PutUint64(b[48:], c.Module.Bias)
	le.PutUint64(b[56:], c.Module.Start)
	le.PutUint64(b[64:], c.Module.End)
	copy(b[72:200], c.Module.BuildID)
	copy(b[200:455], c.Module.Soname)
	seal(b[:headerSize])
}

func (g *Generation) put(b []byte) {
	le.PutUint64(b, g.Bias)
	le.PutUint64(b[8:], g.Start)
	le.PutUint64(b[16:], g.End)
	le.PutUint64(b[24:], g.Flags)
	copy(b[32:64], g.Digest[:])
	copy(b[64:192], g.BuildID)
	copy(b[192:447], g.Name)
	seal(b)
}

func readGeneration(b []byte) (g Generation, ok bool) {
	id, okID := text(b[64:192])
	name, okName := text(b[192:447])
	g = Generation{
		BuildID: id, Name: name, Bias: le.Uint64(b), Start: le.Uint64(b[8:]), End: le.Uint64(b[16:]),
		Digest: [32]byte(b[32:64]), Flags: le.Uint64(b[24:]),
	}
	return g, okID && okName && zero(b[447:508]) && sealed(b)
}

func (m *mergeOf) put(b []byte) {
	le.PutUint64(b, m.Address)
	le.PutUint32(b[8:], uint32(m.generation))
	le.PutUint32(b[12:], uint32(len(m.After)))
	copy(b[16:48], m.Before)
	copy(b[48:80], m.After)
	seal(b)
}

func readMerge(b []byte) (m mergeOf, ok bool) {
	n := le.Uint32(b[12:])
	g := le.Uint32(b[8:])
	if n > MergeSize || g >= MaxGenerations || !zero(b[16+n:48]) || !zero(b[48+n:92]) || !sealed(b) {
		return mergeOf{}, false
	}
	return mergeOf{int(g), Merge{le.Uint64(b), b[16 : 16+n], b[48 : 48+n]}}, true
}

func (e *Entry) put(b []byte) {
	le.PutUint64(b, e.Function)
	le.PutUint32(b[8:], uint32(e.Kind))
	le.PutUint32(b[12:], uint32(len(e.Original)))
	copy(b[16:48], e.Original)
	seal(b)
}

// readEntry returns what the record of an entry has: stub and trampoline follow
// from its index.
func readEntry(b []byte) (e Entry, ok bool) {
	n := le.Uint32(b[12:])
	if n > maxOverwritten || !zero(b[16+n:60]) || !sealed(b) {
		return Entry{}, false
	}
	kind := le.Uint32(b[8:])
	return Entry{Function: le.Uint64(b), Kind: Kind(kind), Original: b[16 : 16+n]}, kind <= uint32(Slots)
}

func (s *Slot) put(b []byte) {
	le.PutUint64(b, s.Address)
	le.PutUint64(b[8:], s.Before)
	le.PutUint32(b[16:], uint32(s.Entry))
	seal(b)
}

func readSlot(b []byte) (s Slot, ok bool) {
	s = Slot{Entry: int(le.Uint32(b[16:])), Address: le.Uint64(b), Before: le.Uint64(b[8:])}
	return s, zero(b[20:28]) && sealed(b)
}
