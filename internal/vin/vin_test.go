package vin

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
)

const (
	testBase  = 0x7f00_0000_0000
	testStart = 0x7f00_1000_0000
	testEnd   = testStart + 0x10_0000
	newStart  = 0x7f00_2000_0000
)

// prologue is push %rbp; mov %rsp,%rbp; sub $16,%rsp.
var prologue = []byte{0x55, 0x48, 0x89, 0xe5, 0x48, 0x83, 0xec, 0x10, 0xc3}

func empty(t testing.TB, entries, slots int) *Vin {
	t.Helper()
	v, err := New(Config{
		Base:    testBase,
		Module:  Identity{Soname: "libz.so.1", BuildID: "00ff", Bias: testStart, Start: testStart, End: testEnd},
		Entries: entries, Slots: slots,
	})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// full returns a vIN with one of everything, and more.
func full(t testing.TB) *Vin {
	t.Helper()
	v := empty(t, 40, 5)
	must := func(_ int, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range uint64(7) {
		must(v.AddVeneer(testStart+0x1000+32*i, prologue))
	}
	must(v.AddSlotEntry(testStart + 0x3000))
	must(0, v.AddSlot(7, testEnd+0x1008, testStart+0x3000))
	for g := range uint64(2) {
		start := newStart + g<<24
		must(v.AddGeneration(Generation{BuildID: "abcd", Name: "libz", Bias: start, Start: start, End: start + 0x10_0000, Digest: [32]byte{1, byte(g)}, Flags: 3}))
		must(0, v.SetTarget(int(g)+1, 1, start+0x500))
		must(0, v.SetTarget(int(g)+1, 7, start+0x600))
	}
	must(0, v.AddMerge(1, Merge{testStart + 0x8000, []byte{1, 2, 3}, []byte{4, 5, 6}}))
	must(0, v.SetCurrent(1))
	must(0, v.SetPending(Pending{2, Entering}))
	return v
}

// image is a vIN as a process has it.
func image(v *Vin) []byte { return append(v.Table(), v.Code()...) }

type memory struct {
	base  uint64
	bytes []byte
}

func (m memory) ReadAt(b []byte, at int64) (int, error) {
	if uint64(at) < m.base || uint64(at) > m.base+uint64(len(m.bytes)) {
		return 0, io.EOF
	}
	n := copy(b, m.bytes[uint64(at)-m.base:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func readImage(b []byte) (*Vin, error) { return Read(memory{testBase, b}, testBase, uint64(len(b))) }

var update = flag.Bool("update", false, "rewrite the golden file")

// goldenFile is what the first release of format version 1 wrote.
const goldenFile = "testdata/version1.golden"

// TestFormat pins the bytes: offsets from the base, and what is there.
func TestFormat(t *testing.T) {
	v := full(t)
	var b strings.Builder
	for _, r := range v.Runs() {
		for line := range slices.Chunk(r.Bytes, 32) {
			fmt.Fprintf(&b, "%06x %x\n", r.Address-testBase, line)
			r.Address += uint64(len(line))
		}
	}
	want, err := os.ReadFile(goldenFile)
	if *update {
		err = os.WriteFile(goldenFile, []byte(b.String()), 0o644)
		want = []byte(b.String())
	}
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("not what %s has: a new version? -update writes it\n%s", goldenFile, b.String())
	}
}

func TestCode(t *testing.T) {
	v := full(t)
	// With 40 entries and 5 slots the stubs begin at +6a000.
	for i, want := range map[int]string{
		0: "4c8b1df961f9ff" + "41ffa300000000" + "cccc",
		6: "4c8b1d9961f9ff" + "41ffa330000000" + "cccc",
	} {
		if got := hex.EncodeToString(v.Code()[i*stubSize:][:stubSize]); got != want {
			t.Errorf("stub %d: %s, want %s", i, got, want)
		}
	}
	// From 0x7f0010001000 to 0x7f000006a000.
	if veneer, ok := v.Veneer(0); !ok || hex.EncodeToString(veneer[:]) != "e9fb8f06f0" {
		t.Errorf("veneer 0: % x", veneer)
	}
	table, code := Size(40, 5)
	if table%page != 0 || code%page != 0 || len(v.Table()) != int(table) || len(v.Code()) != int(code) {
		t.Errorf("parts of %#x and %#x bytes", table, code)
	}
	stub := v.Code()[2*stubSize:][:stubSize]
	distance := v.SelectorAddress() - (v.Entries()[2].Stub + 7)
	want := slices.Concat([]byte{0x4c, 0x8b, 0x1d}, le.AppendUint32(nil, uint32(distance)), []byte{0x41, 0xff, 0xa3, 16, 0, 0, 0, 0xcc, 0xcc})
	if !bytes.Equal(stub, want) {
		t.Errorf("stub % x, want % x", stub, want)
	}
	e := v.Entries()[2]
	veneer, ok := v.Veneer(2)
	want = le.AppendUint32([]byte{0xe9}, uint32(e.Stub-e.Function-5))
	if !ok || !bytes.Equal(veneer[:], want) {
		t.Errorf("veneer % x, want % x", veneer, want)
	}
	if !bytes.Equal(e.Original, prologue[:8]) {
		t.Errorf("original % x", e.Original)
	}
	if _, ok := v.Veneer(7); ok {
		t.Error("an entry for slots has a veneer")
	}
}

// TestMove compares trampolines byte by byte: from 0x1000 to 0x2000.
func TestMove(t *testing.T) {
	for _, c := range []struct{ name, code, want string }{
		{"as it is", "554889e5" + "4883ec10", "554889e54883ec10" + "e9fbefffff"},
		{"rip", "4883ec08" + "488d0500010000", "4883ec08" + "488d0500f1ffff" + "e9fbefffff"},
		{"rip with immediate", "833d0001000000", "833d00f1ffff00" + "e9fbefffff"},
		{"je rel8", "4885ff" + "7410", "4885ff" + "0f840cf0ffff" + "e9f7efffff"},
		{"je rel32", "4885ff" + "0f8400010000", "4885ff" + "0f8400f1ffff" + "e9fbefffff"},
		{"jmp rel32", "e900010000", "e900f1ffff"},
		{"endbr64, jmp rel8", "f30f1efa" + "eb10", "f30f1efa" + "e90df0ffff"},
		{"jmp mem", "ff2500010000", "ff2500f1ffff"},
		{"ret at the end", "31c09090c3", "31c09090c3"},
		{"call rel32", "4883ec08" + "e800010000", "4883ec08" + "6809100000" + "c744240400000000" + "e9f3f0ffff"},
		{"longest", "7420" + "7520" + "66662e0f1f840000000000",
			"0f841cf0ffff" + "0f8518f0ffff" + "66662e0f1f840000000000" + "e9f3efffff"},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, err := hex.DecodeString(c.code)
			if err != nil {
				t.Fatal(err)
			}
			code, err = overwritten(code)
			if err != nil {
				t.Fatal(err)
			}
			moved, err := move(code, 0x1000, 0x2000)
			if err != nil {
				t.Fatal(err)
			}
			if got := hex.EncodeToString(moved); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

func TestCannotMove(t *testing.T) {
	v := empty(t, 10, 0)
	for _, c := range []struct {
		name, code string
		want       error
	}{
		{"call of itself", "e8fbffffff", ErrCannotMove},
		{"call memory", "ff1500010000", ErrCannotMove},
		{"call register", "ffd0909090", ErrCannotMove},
		{"loop", "e210909090", ErrCannotMove},
		{"jrcxz", "e310909090", ErrCannotMove},
		{"xbegin", "c7f800010000", ErrCannotMove},
		{"syscall", "0f05909090", ErrCannotMove},
		{"int3", "cc90909090", ErrCannotMove},
		{"branch to itself", "90ebfd9090", ErrCannotMove},
		{"branch into the veneer", "7402909090", ErrCannotMove},
		{"operand in the veneer", "488d05f9ffffff", ErrCannotMove},
		{"shorter", "31c0c39090", ErrCannotMove},
		{"undecodable", "0690909090", ErrCannotMove},
		{"cut short", "9090", ErrCannotMove},
		{"67 prefix", "67488d0500010000", ErrCannotMove},
		{"out of range", "488d05f0ffff7f", ErrRange}, // the trampoline lies below the function
	} {
		t.Run(c.name, func(t *testing.T) {
			code, err := hex.DecodeString(c.code)
			if err != nil {
				t.Fatal(err)
			}
			v := v.Clone()
			if _, err = v.AddVeneer(testStart, code); c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			if err != nil && len(v.Entries()) != 0 {
				t.Error("it was added all the same")
			}
		})
	}
}

func TestFarModule(t *testing.T) {
	v, err := New(Config{Base: testBase - 4<<30, Module: Identity{Start: testStart, End: testEnd}, Entries: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.AddVeneer(testStart, prologue); !errors.Is(err, ErrRange) {
		t.Errorf("%v, want %v", err, ErrRange)
	}
	if _, err := v.AddSlotEntry(testStart); err != nil {
		t.Error(err) // the selector is near, and the table leads anywhere
	}
}

func TestAddRefuses(t *testing.T) {
	v := full(t)
	function := v.Entries()[0].Function
	for _, c := range []struct {
		name string
		do   func(v *Vin) error
		want error
	}{
		{"twice", func(v *Vin) error { _, err := v.AddVeneer(function, prologue); return err }, ErrExists},
		{"inside another", func(v *Vin) error { _, err := v.AddVeneer(function+7, prologue); return err }, ErrOverlap},
		{"around another", func(v *Vin) error { _, err := v.AddVeneer(function-7, prologue); return err }, ErrOverlap},
		{"slots inside another", func(v *Vin) error { _, err := v.AddSlotEntry(function + 1); return err }, ErrOverlap},
		{"behind another", func(v *Vin) error { _, err := v.AddVeneer(function+8, prologue); return err }, nil},
		{"outside", func(v *Vin) error { _, err := v.AddVeneer(testEnd, prologue); return err }, ErrInvalid},
		{"at the end", func(v *Vin) error { _, err := v.AddVeneer(testEnd-4, prologue); return err }, ErrInvalid},
		{"slot of no entry", func(v *Vin) error { return v.AddSlot(8, testEnd+8, 1) }, ErrInvalid},
		{"slot unaligned", func(v *Vin) error { return v.AddSlot(0, testEnd+9, 1) }, ErrInvalid},
		{"target of generation 0", func(v *Vin) error { return v.SetTarget(0, 1, newStart) }, ErrInvalid},
		{"target outside", func(v *Vin) error { return v.SetTarget(1, 1, newStart+1<<24) }, ErrInvalid},
		{"target of one before", func(v *Vin) error { return v.SetTarget(2, 1, newStart) }, nil},
		{"select", func(v *Vin) error { return v.SetCurrent(3) }, ErrInvalid},
		{"merge of none", func(v *Vin) error { return v.AddMerge(3, Merge{8, []byte{1}, []byte{2}}) }, ErrInvalid},
		{"merge unequal", func(v *Vin) error { return v.AddMerge(1, Merge{8, []byte{1, 2}, []byte{2}}) }, ErrInvalid},
		{"merge too long", func(v *Vin) error { return v.AddMerge(1, Merge{8, make([]byte, 33), make([]byte, 33)}) }, ErrInvalid},
		{"pending too far", func(v *Vin) error { return v.SetPending(Pending{4, Loading}) }, ErrInvalid},
		{"pending next", func(v *Vin) error { return v.SetPending(Pending{3, Loading}) }, nil},
		{"drop with merges", func(v *Vin) error { _ = v.DropGeneration(); return v.DropGeneration() }, ErrInvalid},
		{"drop merges", func(v *Vin) error { return v.DropMerges(1) }, nil},
		{"generation in the vIN", func(v *Vin) error {
			_, err := v.AddGeneration(Generation{Start: testBase + page, End: testBase + 2*page})
			return err
		}, ErrInvalid},
		{"too many generations", func(v *Vin) error {
			for range MaxGenerations {
				if _, err := v.AddGeneration(Generation{Start: newStart, End: newStart + 1}); err != nil {
					return err
				}
			}
			return nil
		}, ErrFull},
		{"too many slots", func(v *Vin) error {
			for range 5 {
				if err := v.AddSlot(0, testEnd+8, 1); err != nil {
					return err
				}
			}
			return nil
		}, ErrFull},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := c.do(v.Clone()); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}
	if !reflect.DeepEqual(v, full(t)) {
		t.Error("a clone shares something")
	}
}

// TestBefore lets generations take turns, and goes back through all that ran.
func TestBefore(t *testing.T) {
	v := full(t)
	if err := errors.Join(second(v.AddGeneration(Generation{Start: newStart + 2<<24, End: newStart + 3<<24})), v.SetCurrent(0)); err != nil {
		t.Fatal(err)
	}
	if err := v.Follow(4); !errors.Is(err, ErrInvalid) {
		t.Errorf("one that is not there: %v", err)
	}
	back := func(v *Vin) (before []int) {
		for g := v.Current(); g != 0; before = append(before, g) {
			if g = v.Before(g); len(before) == MaxGenerations {
				t.Fatalf("back in a circle: %v", before)
			}
		}
		return before
	}
	run := func(number int, follow bool) {
		t.Helper()
		next := v.Clone()
		if follow {
			if err := next.Follow(number); err != nil {
				t.Fatal(err)
			}
		}
		changes, err := Changes(v, next)
		if err != nil {
			t.Fatal(err)
		}
		live := image(v)
		for _, c := range changes { // any may be the last one
			copy(live[c.Address-testBase:], c.Bytes)
			cut, err := readImage(live)
			if err != nil {
				t.Fatal(err)
			}
			back(cut)
		}
		if v, err = readImage(live); err == nil {
			err = v.SetCurrent(number)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	const none = -1
	for _, c := range []struct {
		takesOver, goesBack int
		before              []int
	}{
		{1, none, []int{0}},
		{2, none, []int{1, 0}},
		{2, none, []int{1, 0}}, // it runs already
		{none, 1, []int{0}},
		{3, none, []int{1, 0}}, // 2 was taken back
		{1, none, []int{3, 0}},
		{2, none, []int{1, 3, 0}},
		{3, none, []int{2, 1, 0}},
		{none, 2, []int{1, 0}},
		{none, 1, []int{0}},
		{0, none, nil},
		{2, none, []int{0}},
	} {
		run(max(c.takesOver, c.goesBack), c.takesOver != none)
		if before := back(v); !slices.Equal(before, c.before) {
			t.Fatalf("%d runs, before it %v, want %v", v.Current(), before, c.before)
		}
	}
	as := v.Clone()
	run(1, true)
	run(3, true)
	v.TakeOrder(as)
	for g := range 4 {
		if v.Before(g) != as.Before(g) {
			t.Errorf("before %d ran %d, want %d", g, v.Before(g), as.Before(g))
		}
	}
	run(3, true)
	run(2, true)
	if err := v.DropGeneration(); err != nil || !slices.Equal(back(v), []int{1, 0}) { // 3 ran after 1
		t.Errorf("before 2 ran %v (%v)", back(v), err)
	}
}

func TestReadBack(t *testing.T) {
	v := full(t)
	got, err := readImage(image(v))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, v) {
		t.Errorf("%+v\nwant\n%+v", got, v)
	}
	if i, ok := got.Find(testStart + 0x1020); !ok || i != 1 {
		t.Errorf("found %d, %v", i, ok)
	}
	if got.Current() != 1 || got.Pending() != (Pending{2, Entering}) || len(got.Merges(1)) != 1 {
		t.Errorf("current %d, pending %v", got.Current(), got.Pending())
	}
	if got.Target(1, 1) != newStart+0x500 || got.Target(1, 2) != got.Entries()[2].Trampoline || got.Target(0, 7) != testStart+0x3000 {
		t.Error("targets differ")
	}
}

// TestChanges applies changes to an image, and cuts them short everywhere: what
// is there then is always a valid vIN.
func TestChanges(t *testing.T) {
	old := full(t)
	v := old.Clone()
	if none, err := Changes(old, v); err != nil || len(none) != 0 {
		t.Fatalf("%v, %v", none, err)
	}
	for _, err := range []error{
		second(v.AddVeneer(testStart+0x9000, prologue)),
		second(v.AddSlotEntry(testStart + 0x9100)),
		v.AddSlot(0, testEnd+0x1010, testStart+0x1000),
		second(v.AddGeneration(Generation{BuildID: "ee", Name: "third", Start: newStart + 2<<24, End: newStart + 3<<24})),
		v.SetTarget(3, 8, newStart+2<<24+0x10),
		v.SetTarget(2, 3, newStart+1<<24+0x10),
		v.AddMerge(3, Merge{testStart + 0x8008, []byte{9}, []byte{8}}),
		v.SetPending(Pending{3, Installing}),
		v.SetCurrent(3),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	changes, err := Changes(old, v)
	if err != nil {
		t.Fatal(err)
	}
	live := image(old)
	// What a change that was cut short left behind the counts does no harm.
	for _, r := range v.runs() {
		if n := uint64(len(r.bytes)); r.kind == fixed && r.offset != 0 {
			live[r.offset+n-1] = 0xee
		}
	}
	for _, c := range changes {
		if _, err := readImage(live); err != nil {
			t.Fatalf("before %#x: %v", c.Address, err)
		}
		copy(live[c.Address-testBase:], c.Bytes)
	}
	if !bytes.Equal(live, image(v)) {
		t.Error("the changed image is not the new one")
	}
	if last := changes[len(changes)-1]; last.Address != v.SelectorAddress() || len(last.Bytes) != wordSize {
		t.Errorf("the last change is at %#x", last.Address)
	}
	total := 0
	for _, c := range changes {
		total += len(c.Bytes)
	}
	if total > 2000 {
		t.Errorf("%d bytes in %d changes", total, len(changes))
	}
	other := empty(t, 41, 5)
	if _, err := Changes(old, other); !errors.Is(err, ErrInvalid) {
		t.Errorf("changes to another place: %v", err)
	}
}

// TestChangesBack undoes merges and drops generations, cut short everywhere.
func TestChangesBack(t *testing.T) {
	old := full(t)
	for _, err := range []error{
		old.AddMerge(2, Merge{testStart + 0x8008, []byte{9}, []byte{8}}),
		old.SetCurrent(2),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	v := old.Clone()
	if err := v.DropMerges(1); !errors.Is(err, ErrInvalid) {
		t.Errorf("merges in the middle: %v", err)
	}
	for _, err := range []error{
		v.SetCurrent(0),
		v.DropMerges(2),
		v.DropMerges(1),
		v.DropGeneration(),
		v.DropGeneration(),
		second(v.AddSlotEntry(testStart + 0x9100)),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	changes, err := Changes(old, v)
	if err != nil {
		t.Fatal(err)
	}
	live := image(old)
	for _, c := range changes {
		copy(live[c.Address-testBase:], c.Bytes)
		if _, err := readImage(live); err != nil {
			t.Fatalf("behind %#x: %v", c.Address, err)
		}
	}
	got, err := readImage(live)
	if err != nil || !reflect.DeepEqual(got.Generations(), v.Generations()) || got.Current() != 0 || len(got.Entries()) != 9 {
		t.Errorf("%v: %+v", err, got)
	}
	if _, err := v.AddGeneration(Generation{Start: newStart, End: newStart + 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := Changes(old, v); !errors.Is(err, ErrInvalid) {
		t.Errorf("another generation 1: %v", err)
	}
}

// TestTargetsApart changes words that stubs may read: each is one store.
func TestTargetsApart(t *testing.T) {
	old := full(t)
	v := old.Clone()
	for i := range 7 {
		if err := v.SetTarget(1, i, newStart+0x700); err != nil {
			t.Fatal(err)
		}
	}
	changes, err := Changes(old, v)
	if err != nil || len(changes) != 7 {
		t.Fatalf("%d changes, %v", len(changes), err)
	}
	for _, c := range changes {
		if len(c.Bytes) != wordSize || c.Address%wordSize != 0 {
			t.Errorf("%d bytes at %#x", len(c.Bytes), c.Address)
		}
	}
}

func second(_ int, err error) error { return err }

// TestScribbled flips each byte that is in use: none does harm, and all but those
// of words that may hold other values are found.
func TestScribbled(t *testing.T) {
	v := full(t)
	good := image(v)
	for _, r := range v.Runs() {
		for i := range r.Bytes {
			at := int(r.Address-testBase) + i
			bad := slices.Clone(good)
			bad[at] ^= 0x41
			got, err := readImage(bad)
			switch {
			case err == nil && at >= headerSize && at < headerSize+liveSize:
			case err == nil && reflect.DeepEqual(got, v):
				t.Fatalf("byte %#x is not looked at", at)
			case err == nil:
				if at < int(v.layout.targets) || at >= int(v.layout.code) {
					t.Fatalf("byte %#x may be anything", at)
				}
			case !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion):
				t.Fatalf("byte %#x: %v", at, err)
			}
		}
	}
}

func TestSize(t *testing.T) {
	if table, code := Size(0, 0); table != 0 || code != 0 {
		t.Error("a vIN of nothing")
	}
	if table, code := Size(MaxEntries, MaxSlots); table == 0 || table+code > 128<<20 {
		t.Errorf("%d bytes", table+code)
	}
	for _, base := range []uint64{0, 1, testStart, testStart - page, addressEnd - page} {
		_, err := New(Config{Base: base, Module: Identity{Start: testStart, End: testEnd}, Entries: 1})
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("base %#x: %v", base, err)
		}
	}
}
