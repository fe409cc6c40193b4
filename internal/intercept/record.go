package intercept

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
)

var (
	le    = binary.LittleEndian
	magic = [8]byte{'v', 'o', 's', '-', 'i', 'c', 'p', 0}
	crc   = crc32.MakeTable(crc32.Castagnoli)
)

// validText reports a string that its room gives back as it was.
func validText(s string, room int) bool {
	return len(s) <= room && bytes.IndexByte([]byte(s), 0) < 0
}

// text returns what was put into room, up to a zero byte.
func text(room []byte) string {
	head, _, _ := bytes.Cut(room, []byte{0})
	return string(head)
}

// Offsets in the header.
const (
	tableSum  = 112 // CRC-32C of the table behind the header
	headerSum = headerSize - 4
)

// tableOf writes the table: header, records, names, pointers, sections.
func (i *Interceptor) tableOf(sections []section) []byte {
	l := &i.layout
	b := make([]byte, l.sections+uint64(len(sections))*sectionSize)
	names := uint32(0)
	for n := range i.modules {
		i.modules[n].put(b[l.modules+uint64(n)*moduleSize:][:moduleSize])
	}
	for n, f := range i.functions {
		f.put(b[l.functions+uint64(n)*functionSize:], names)
		copy(b[l.names+uint64(names):], f.Name)
		names += uint32(len(f.Name))
	}
	for n, s := range i.slots {
		s.put(b[l.slots+uint64(n)*slotSize:])
	}
	for n := range l.pointers {
		words := i.config.Base + l.words + uint64(n%i.config.Processors)*l.stride
		le.PutUint64(b[l.processors+uint64(n)*wordSize:], words)
	}
	for n, way := range waysToSample(i.config.Interval) {
		le.PutUint64(b[l.intervals+uint64(n)*wordSize:], way)
	}
	le.PutUint64(b[l.one:], 1)
	for n, s := range sections {
		s.put(b[l.sections+uint64(n)*sectionSize:])
	}
	i.putHeader(b, names)
	return b
}

func (i *Interceptor) putHeader(b []byte, names uint32) {
	c, l := &i.config, &i.layout
	copy(b, magic[:])
	le.PutUint32(b[8:], Version)
	le.PutUint32(b[12:], headerSize)
	le.PutUint64(b[16:], c.Base)
	le.PutUint64(b[24:], l.end)
	le.PutUint32(b[32:], uint32(len(i.modules)))
	le.PutUint32(b[36:], uint32(len(i.functions)))
	le.PutUint32(b[40:], uint32(len(i.slots)))
	le.PutUint32(b[44:], names)
	le.PutUint32(b[48:], uint32(c.Processors))
	if c.Rseq != nil {
		le.PutUint32(b[52:], 1)
		le.PutUint32(b[56:], uint32(c.Rseq.Offset))
		le.PutUint32(b[60:], c.Rseq.Signature)
	}
	if c.Allocator.Header {
		le.PutUint32(b[64:], 1)
	}
	le.PutUint64(b[72:], c.Allocator.UsableSize)
	le.PutUint64(b[80:], c.Interval)
	le.PutUint64(b[88:], c.Samples)
	le.PutUint64(b[96:], l.code)
	le.PutUint64(b[104:], l.words)
	le.PutUint32(b[tableSum:], crc32.Checksum(b[headerSize:], crc))
	le.PutUint32(b[headerSum:], crc32.Checksum(b[:headerSum], crc))
}

// readConfig reads a header's part that Config is.
func readConfig(b []byte) Config {
	c := Config{
		Base:       le.Uint64(b[16:]),
		Processors: int(le.Uint32(b[48:])),
		Allocator:  Allocator{Header: le.Uint32(b[64:]) == 1, UsableSize: le.Uint64(b[72:])},
		Interval:   le.Uint64(b[80:]),
		Samples:    le.Uint64(b[88:]),
	}
	if le.Uint32(b[52:]) == 1 {
		c.Rseq = &Rseq{Offset: int32(le.Uint32(b[56:])), Signature: le.Uint32(b[60:])}
	}
	return c
}

func (m *Module) put(b []byte) {
	le.PutUint64(b, m.Bias)
	le.PutUint64(b[8:], m.Start)
	le.PutUint64(b[16:], m.End)
	copy(b[24:24+maxBuildID], m.BuildID)
	copy(b[152:152+maxName], m.Name)
}

func readModule(b []byte) Module {
	return Module{
		Bias: le.Uint64(b), Start: le.Uint64(b[8:]), End: le.Uint64(b[16:]),
		BuildID: text(b[24 : 24+maxBuildID]), Name: text(b[152 : 152+maxName]),
	}
}

func (f *Function) put(b []byte, name uint32) {
	le.PutUint64(b, f.Target)
	le.PutUint64(b[8:], f.Aid)
	le.PutUint32(b[16:], uint32(f.Importer))
	le.PutUint32(b[20:], uint32(f.Kind))
	le.PutUint32(b[24:], name)
	le.PutUint32(b[28:], uint32(len(f.Name)))
}

// readFunction reads a record; ok is false where its name lies elsewhere.
func readFunction(b, names []byte) (f Function, ok bool) {
	at, n := uint64(le.Uint32(b[24:])), uint64(le.Uint32(b[28:]))
	kind := le.Uint32(b[20:])
	if at+n > uint64(len(names)) || kind >= uint32(kinds) {
		return Function{}, false
	}
	return Function{
		Target: le.Uint64(b), Aid: le.Uint64(b[8:]), Importer: int(le.Uint32(b[16:])), Kind: Kind(kind),
		Name: string(names[at : at+n]),
	}, true
}

func (s *Slot) put(b []byte) {
	le.PutUint64(b, s.Address)
	le.PutUint64(b[8:], s.Before)
	le.PutUint32(b[16:], uint32(s.Function))
	if s.Taken {
		le.PutUint32(b[20:], 1)
	}
}

func readSlot(b []byte) Slot {
	return Slot{Address: le.Uint64(b), Before: le.Uint64(b[8:]), Function: int(le.Uint32(b[16:])), Taken: le.Uint32(b[20:]) == 1}
}
