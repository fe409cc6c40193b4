package restore

import (
	"bytes"
	"encoding/binary"
	"math"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// A program of an image whose vDSO is this kernel's, changed by change: at oldVDSO, with a
// page of data before it and a stack behind it.
const (
	oldVDSO  = 0x7f0000010000
	oldStack = 0x7f0000100000
)

func withVDSO(t *testing.T, change func(code []byte)) (*fitted, *image.Process) {
	t.Helper()
	own, err := ownVDSO()
	if err != nil || own.code == 0 {
		t.Skipf("this kernel has no vDSO: %v", err)
	}
	code := make([]byte, own.end-own.code)
	if err := kernel.ReadMemory(os.Getpid(), code, []kernel.RemoteRange{{Address: own.code, Length: uint64(len(code))}}); err != nil {
		t.Fatal(err)
	}
	change(code)
	stack := make([]byte, 2*pageSize)
	m := &memoryImage{pages: append(stack, code...), image: image.Image{Processes: []image.Process{{
		PID: 77, Threads: []image.Thread{{TID: 77, Registers: image.Registers{RSP: oldStack + 64, RIP: 0x400000}}},
		Mappings: []image.Mapping{
			{Start: oldVDSO - pageSize, End: oldVDSO, Kind: image.VDSO, Protection: syscall.PROT_READ},
			{Start: oldVDSO, End: oldVDSO + uint64(len(code)), Kind: image.VDSO, Protection: syscall.PROT_READ | syscall.PROT_EXEC,
				Pages: []image.Run{{Start: oldVDSO, Count: uint64(len(code)) / pageSize, Place: image.Place{Offset: uint64(len(stack))}}}},
			{Start: oldStack, End: oldStack + 2*pageSize, Kind: image.Anonymous, Flags: mapGrowsDown, Protection: syscall.PROT_READ | syscall.PROT_WRITE,
				Pages: []image.Run{{Start: oldStack, Count: 2}}},
		},
	}}}}
	return &fitted{Source: m}, &m.image.Processes[0]
}

// TestTransplant lets the functions of another vDSO lead to this kernel's.
func TestTransplant(t *testing.T) {
	fit, before := withVDSO(t, func(code []byte) { code[len(code)-1] ^= 1 })
	refusals, err := fitVDSO(fit, 0)
	if err != nil || len(refusals) > 0 {
		t.Fatal(refusals, err)
	}
	if len(before.Mappings) != 3 || before.Mappings[1].Kind != image.VDSO {
		t.Errorf("the image itself was changed: %+v", before.Mappings)
	}
	after := fit.Image().Processes[0].Mappings
	moved, there, whole := vdsoOf(after)
	if !there || !whole {
		t.Fatalf("the kernel's is not there: %+v", after)
	}
	at := slices.IndexFunc(after, func(m image.Mapping) bool { return m.Start == oldVDSO })
	if at < 0 || after[at].Kind != image.Anonymous || len(after[at].Pages) != 1 {
		t.Fatalf("the old code is not there: %+v", after)
	}
	for i := range after[1:] {
		if after[i].End > after[i+1].Start {
			t.Fatalf("mappings overlap: %+v", after)
		}
	}
	code := make([]byte, after[at].End-after[at].Start)
	if err := fit.ReadPages(after[at].Pages[0].Place, code); err != nil {
		t.Fatal(err)
	}
	list, err := functionsOf(oldVDSO, code)
	if err != nil || len(list) < 3 {
		t.Fatal(list, err)
	}
	for _, f := range list {
		jump := code[f.at-oldVDSO:]
		to := f.at + 5 + uint64(int32(binary.LittleEndian.Uint32(jump[1:])))
		if want := f.at - oldVDSO + moved.code; jump[0] != 0xe9 || to != want {
			t.Errorf("%v leads to %#x, want %#x", f.names, to, want)
		}
	}
	if err := fit.ReadPages(image.Place{Up: ownPages, Offset: 1 << 40}, code); err == nil {
		t.Error("pages that are not there were read")
	}
}

// TestTransplantRefused names what can't be led to this kernel's vDSO.
func TestTransplantRefused(t *testing.T) {
	frame := func(words ...uint64) (b []byte) {
		for _, w := range words {
			b = binary.LittleEndian.AppendUint64(b, w)
		}
		return b
	}
	another := func(code []byte) { code[len(code)-1] ^= 1 }
	for name, test := range map[string]struct {
		change func(code []byte)
		with   func(p *image.Process, pages []byte)
		detail string
	}{
		"a function that is not there": {func(code []byte) {
			another(code)
			for _, name := range []string{"__vdso_getcpu\x00", "getcpu\x00"} {
				for at := bytes.Index(code, []byte(name)); at >= 0; at = bytes.Index(code, []byte(name)) {
					code[at] = 'x'
				}
			}
		}, nil, "this kernel has no x"},
		"a function that is too short": {func(code []byte) {
			another(code)
			for at := range shortened(t, code) {
				binary.LittleEndian.PutUint64(code[at:], 4)
			}
		}, nil, "too short"},
		"no object": {func(code []byte) { clear(code) }, nil, "can't be read"},
		"a thread within": {another, func(p *image.Process, _ []byte) { p.Threads[0].Registers.RIP = oldVDSO + 100 },
			"stopped within"},
		"a thread that goes back": {another, func(_ *image.Process, pages []byte) {
			copy(pages[0x800:], frame(oldStack+0x1000, oldVDSO+100, 0x246, 0x002b000000000033))
		}, "stopped within"},
		"a frame beneath a frame": {another, func(p *image.Process, pages []byte) {
			p.Threads[0].Registers.RSP = oldStack + 0x1000
			copy(pages[0x1800:], frame(oldStack+0x1900, 0x400100, 0x246, 0x002b000000000033))
			copy(pages[0x1a00:], frame(oldStack+0x1f00, oldVDSO+100, 0x246, 0x002b000000000033))
		}, "stopped within"},
	} {
		t.Run(name, func(t *testing.T) {
			fit, p := withVDSO(t, test.change)
			if test.with != nil {
				test.with(p, fit.Source.(*memoryImage).pages)
			}
			refusals, err := fitVDSO(fit, 0)
			if err != nil || len(refusals) != 1 || refusals[0].Code != codeKernel || !strings.Contains(refusals[0].Detail, test.detail) {
				t.Errorf("refused: %v, %v; want %q", refusals, err, test.detail)
			}
			if fit.image != nil {
				t.Error("it was changed all the same")
			}
		})
	}
	// What is no frame, and one that is of no use any more, is nobody's way back.
	fit, _ := withVDSO(t, another)
	pages := fit.Source.(*memoryImage).pages
	copy(pages[0x800:], frame(oldStack+0x1000, oldVDSO+100, 0x246, 0x33))
	copy(pages[0:], frame(oldStack+0x1000, oldVDSO+100, 0x246, 0x002b000000000033))
	if refusals, err := fitVDSO(fit, 0); err != nil || len(refusals) > 0 {
		t.Error(refusals, err)
	}
}

// shortened finds the sizes of functions in a vDSO's symbols.
func shortened(t *testing.T, code []byte) map[int]bool {
	t.Helper()
	list, err := functionsOf(oldVDSO, code)
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[int]bool)
	for _, f := range list {
		symbol := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, f.at-oldVDSO), f.size)
		for at := range len(code) - len(symbol) {
			if bytes.Equal(code[at:at+len(symbol)], symbol) {
				found[at+8] = true
			}
		}
	}
	return found
}

func TestRoomFor(t *testing.T) {
	const near, size, stack = 0x7f0000010000, 0x8000, 1 << 20
	mapping := func(start, end uint64, flags uint32, name string) image.Mapping {
		return image.Mapping{Start: start, End: end, Flags: flags, Name: name}
	}
	for name, test := range map[string]struct {
		mappings []image.Mapping
		want     uint64
	}{
		"before":        {[]image.Mapping{mapping(near, near+0x2000, 0, ""), mapping(near+0x3000, near+0x900000, 0, "")}, near - size},
		"behind":        {[]image.Mapping{mapping(near-0x900000, near, 0, ""), mapping(near, near+0x2000, 0, "")}, near + 0x2000},
		"below a stack": {[]image.Mapping{mapping(near-0x900000, near+0x2000, 0, ""), mapping(near+0xa000+stack, near+0x900000, mapGrowsDown, "")}, near + 0x2000},
		"not a stack's": {[]image.Mapping{mapping(near-0x900000, near+0x2000, 0, ""), mapping(near+0x9000+stack, near+0x900000, mapGrowsDown, "")}, near + 0x900000},
		"not a heap's":  {[]image.Mapping{mapping(near-0x4000, near-0x1000, 0, "[heap]"), mapping(near, near+0x2000, 0, "")}, near - 0x4000 - size},
	} {
		if at, ok := roomFor(test.mappings, size, near, stack); !ok || at != test.want {
			t.Errorf("%s: %#x %v, want %#x", name, at, ok, test.want)
		}
	}
	if at, ok := roomFor([]image.Mapping{mapping(lowestAddress, addressLimit, 0, "")}, size, near, stack); ok {
		t.Errorf("room at %#x of a full address space", at)
	}
}

func TestJumpTo(t *testing.T) {
	if near := jumpTo(0x1000, 0x1000+5+math.MaxInt32); len(near) != 5 || near[0] != 0xe9 {
		t.Errorf("% x", near)
	}
	for _, to := range []uint64{0x1000 + 5 + math.MaxInt32 + 1, 0x7f0000000000} {
		if far := jumpTo(0x1000, to); len(far) != 13 || binary.LittleEndian.Uint64(far[2:]) != to {
			t.Errorf("% x", far)
		}
	}
}
