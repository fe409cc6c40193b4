package restore

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"slices"
	"syscall"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/dso"
	"github.com/virtualizing-os/vos/internal/image"
)

// transplant lets a process keep its vDSO (had, with the code was) on a kernel with another
// one (own, with the code now). The old code stays where the program knows it, as private
// memory in which each function begins with a jump to that of the same name; the kernel maps
// its own at an address that is free. The old data, which only the old code has read, goes.
func (f *fitted) transplant(i int, had, own vdso, was, now []byte) ([]api.Refusal, error) {
	p := &f.Source.Image().Processes[i]
	differs := func(format string, args ...any) ([]api.Refusal, error) {
		return []api.Refusal{vdsoDiffers(f.Source.Image(), fmt.Sprintf(format, args...))}, nil
	}
	within, err := f.withinVDSO(p, had)
	if err != nil {
		return nil, err
	}
	if within != 0 {
		return []api.Refusal{{Code: codeKernel, Subject: fmt.Sprintf("thread %d", within),
			Detail: "it was stopped within the vDSO, and that of this kernel is another one",
			Remedy: "take another checkpoint, or boot the kernel that the image was taken on"}}, nil
	}
	current, err := functionsOf(own.code, now)
	if err != nil {
		return nil, err
	}
	old, err := functionsOf(had.code, was)
	if err != nil {
		return differs("that of the image can't be read: %v", err)
	}
	mappings := slices.DeleteFunc(slices.Clone(p.Mappings), func(m image.Mapping) bool { return m.Kind == image.VDSO && m.Start != had.code })
	start, ok := roomFor(mappings, own.end-own.start, had.code, stackOf(p))
	if !ok {
		return differs("that of this kernel is another one, and there is no room for it")
	}
	moved := start + (own.code - own.start) - own.code // from here to there
	code := bytes.Clone(was)
	for n, from := range old {
		target := slices.IndexFunc(current, func(to function) bool {
			return slices.ContainsFunc(from.names, func(name string) bool { return slices.Contains(to.names, name) })
		})
		if target < 0 {
			return differs("that of this kernel has no %s", from.names[0])
		}
		jump := jumpTo(from.at, current[target].at+moved)
		if uint64(len(jump)) > from.size || n+1 < len(old) && from.at+uint64(len(jump)) > old[n+1].at {
			return differs("its %s is too short for a jump to that of this kernel", from.names[0])
		}
		copy(code[from.at-had.code:], jump)
	}
	n := slices.IndexFunc(mappings, func(m image.Mapping) bool { return m.Kind == image.VDSO })
	mappings[n] = image.Mapping{Start: had.code, End: had.end, Kind: image.Anonymous, Flags: syscall.MAP_PRIVATE,
		Protection: syscall.PROT_READ | syscall.PROT_EXEC, VMFlags: []string{"rd", "ex", "mr", "mw", "me"},
		Pages: []image.Run{{Start: had.code, Count: uint64(len(code)) / pageSize, Place: f.add(code)}}}
	data := image.Mapping{Start: start, End: own.code + moved, Kind: image.VDSO, Protection: syscall.PROT_READ, Name: "[vvar]"}
	text := image.Mapping{Start: own.code + moved, End: own.end + moved, Kind: image.VDSO, Protection: syscall.PROT_READ | syscall.PROT_EXEC, Name: "[vdso]"}
	if data.Start < data.End {
		mappings = append(mappings, data)
	}
	mappings = append(mappings, text)
	slices.SortFunc(mappings, func(a, b image.Mapping) int { return cmp.Compare(a.Start, b.Start) })
	f.setMappings(i, mappings)
	return nil, nil
}

// A function is one that a vDSO exports, by all of its names.
type function struct {
	at, size uint64 // address; bytes, of its longest name
	names    []string
}

// functionsOf returns the functions of a vDSO, whose code is at an address, by ascending
// address.
func functionsOf(at uint64, code []byte) (list []function, err error) {
	o, err := dso.ReadMemory(&loaded{at, code}, at)
	if err != nil {
		return nil, fmt.Errorf("read a vDSO: %w", err)
	}
	symbols, err := o.DynamicSymbols()
	if err != nil {
		return nil, fmt.Errorf("read a vDSO: %w", err)
	}
	for s := range symbols.All() {
		if !s.Exported() || !s.IsFunction() {
			continue
		}
		start := o.Bias() + s.Value
		if s.IsIFUNC() || start < at || start-at >= uint64(len(code)) || s.Size > uint64(len(code))-(start-at) {
			return nil, fmt.Errorf("read a vDSO: its function %.80q is not within it", s.Name)
		}
		list = append(list, function{start, s.Size, []string{s.Name}})
	}
	slices.SortStableFunc(list, func(a, b function) int { return cmp.Compare(a.at, b.at) })
	merged := list[:0]
	for _, f := range list {
		if n := len(merged); n > 0 && merged[n-1].at == f.at {
			last := &merged[n-1]
			last.size, last.names = max(last.size, f.size), append(last.names, f.names...)
			continue
		}
		merged = append(merged, f)
	}
	return merged, nil
}

// loaded is code that is at an address.
type loaded struct {
	at   uint64
	code []byte
}

// ReadAt implements io.ReaderAt, by address.
func (l *loaded) ReadAt(b []byte, address int64) (int, error) {
	offset := uint64(address) - l.at
	if offset > uint64(len(l.code)) {
		return 0, io.EOF
	}
	n := copy(b, l.code[offset:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// jumpTo is a jump from one address to another. One to far away takes R11, which no
// function keeps or is given anything in.
func jumpTo(from, to uint64) []byte {
	const nearBytes = 5
	if distance := int64(to - (from + nearBytes)); distance >= math.MinInt32 && distance <= math.MaxInt32 {
		return binary.LittleEndian.AppendUint32([]byte{0xe9}, uint32(distance)) // jmp to
	}
	far := binary.LittleEndian.AppendUint64([]byte{0x49, 0xbb}, to) // movabs $to, %r11
	return append(far, 0x41, 0xff, 0xe3)                            // jmp *%r11
}

// Room that is left free for what grows.
const (
	heapRoom  = 1 << 30
	stackRoom = 64 << 20
)

// stackOf is how far the main thread's stack may grow.
func stackOf(p *image.Process) uint64 {
	room := uint64(stackRoom)
	if len(p.Limits) > syscall.RLIMIT_STACK {
		room = max(room, min(p.Limits[syscall.RLIMIT_STACK].Soft, heapRoom))
	}
	return room
}

// roomFor finds a gap of a size between mappings, the nearest to an address, that is not
// needed for a heap to grow up into, or for a stack to grow down into.
func roomFor(mappings []image.Mapping, size, near, stack uint64) (at uint64, ok bool) {
	best := uint64(math.MaxUint64)
	low := uint64(lowestAddress)
	consider := func(high uint64) {
		if high < low || high-low < size {
			return
		}
		candidate := min(max(near, low), high-size) &^ (pageSize - 1)
		distance := max(candidate, near) - min(candidate, near)
		if candidate >= low && distance < best {
			at, best, ok = candidate, distance, true
		}
	}
	for i := range mappings {
		m := &mappings[i]
		high := m.Start
		if m.Flags&mapGrowsDown != 0 {
			high -= min(high, stack)
		}
		consider(high)
		low = max(low, m.End)
		if m.Name == "[heap]" {
			low += heapRoom
		}
	}
	consider(addressLimit)
	return at, ok
}

// withinVDSO returns a thread that was stopped within the vDSO, or is to go back there from
// a handler of a signal; 0 is none. Frames of signals are looked for on the stacks that
// threads are on, and on those that these lead to.
func (f *fitted) withinVDSO(p *image.Process, v vdso) (tid int, err error) {
	for i := range p.Threads {
		t := &p.Threads[i]
		inside := func(address uint64) bool { return address >= v.start && address < v.end }
		if inside(t.Registers.RIP) {
			return t.TID, nil
		}
		const mostStacks = 8
		seen := make(map[int]bool)
		for next := []uint64{t.Registers.RSP}; len(next) > 0 && len(seen) < mostStacks; next = next[1:] {
			n := slices.IndexFunc(p.Mappings, func(m image.Mapping) bool { return m.Start <= next[0] && next[0] < m.End })
			if n < 0 || seen[n] {
				continue
			}
			seen[n] = true
			frames, err := f.signalFrames(&p.Mappings[n], next[0])
			if err != nil {
				return 0, err
			}
			for _, frame := range frames {
				if inside(frame.ip) {
					return t.TID, nil
				}
				next = append(next, frame.sp)
			}
		}
	}
	return 0, nil
}

// A signalFrame is where a handler of a signal returns to.
type signalFrame struct{ ip, sp uint64 }

// signalFrames finds those on a stack, from a stack pointer up: words with the segments of
// programs (CS and SS of struct sigcontext), behind the flags, the instruction and the stack
// pointer.
func (f *fitted) signalFrames(m *image.Mapping, sp uint64) (frames []signalFrame, err error) {
	const most = 16 << 20
	const segments, mask = 0x002b_0000_0000_0033, 0xffff_0000_0000_ffff
	end := m.End
	if end-sp > most {
		end = sp + most
	}
	start := sp &^ (pageSize - 1)
	stack := make([]byte, end-start)
	for _, run := range m.Pages {
		from, to := max(run.Start, start), min(run.Start+run.Count*pageSize, end)
		if from >= to {
			continue
		}
		place := run.Place
		place.Offset += from - run.Start
		if err := f.Source.ReadPages(place, stack[from-start:(to-start+pageSize-1)&^(pageSize-1)]); err != nil {
			return nil, fmt.Errorf("read pages of the image: %w", err)
		}
	}
	word := func(at uint64) uint64 { return binary.LittleEndian.Uint64(stack[at:]) }
	for at := (sp - start + 7) &^ 7; at+32 <= uint64(len(stack)); at += 8 {
		if word(at+24)&mask == segments && word(at+16)>>32 == 0 {
			frames = append(frames, signalFrame{ip: word(at + 8), sp: word(at)})
		}
	}
	return frames, nil
}
