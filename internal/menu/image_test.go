package menu

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/x86"
)

// addresses gives every function that is wanted an address of its own.
func addresses() map[string]uint64 {
	all := make(map[string]uint64)
	for _, names := range wanted {
		for _, name := range names {
			all[name] = 0
		}
	}
	for i, name := range sortedNames(all) {
		all[name] = 0x7f00_0000_0000 + 0x100*uint64(i+1)
	}
	return all
}

func image(t *testing.T, items ...Item) ([]byte, header) {
	t.Helper()
	b, err := makeImage(addresses(), items)
	if err != nil {
		t.Fatal(err)
	}
	h, err := readHeader(b, uint64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return b, h
}

// TestImage decodes the code: all of it is instructions that are known, every call
// of a function goes through its word, each of which is used, and the ranges of
// which the header tells hold no call.
func TestImage(t *testing.T) {
	b, h := image(t, Item{"Status", "'/a b' ctl 1 status"}, Item{"Refresh", "x"})
	if h.size != uint64(len(b)) || h.size%procfs.PageSize != 0 {
		t.Errorf("%+v of %d bytes", h, len(b))
	}
	names := make(map[uint64]string)
	for name, at := range addresses() {
		names[at] = name
	}
	used := make(map[string]bool)
	for at := uint64(headerSize); at < h.gone.End; {
		inst, err := x86.Decode(b[at:])
		if err != nil {
			t.Fatalf("at %#x: %v", at, err)
		}
		if inst.IsRIPRelative() {
			word, _ := inst.Target(at)
			switch {
			case word+8 <= h.state:
				if name, ok := names[binary.LittleEndian.Uint64(b[word:])]; ok {
					used[name] = true
				} else if inst.Flow == x86.CallIndirect || inst.Flow == x86.JumpIndirect {
					t.Errorf("at %#x: a way to what is no function", at)
				}
			case word >= h.size:
				t.Errorf("at %#x: operand %#x is outside", at, word)
			}
		}
		inRange := at >= h.tail.Start && at < h.tail.End || at >= h.gone.Start && at < h.gone.End
		if inRange && (inst.Flow == x86.Call || inst.Flow == x86.CallIndirect) {
			t.Errorf("at %#x: a call where none may be", at)
		}
		at += uint64(inst.Len)
	}
	for name := range addresses() {
		// Two are called by vos, in a borrowed thread.
		if !used[name] && name != "gdk_threads_add_idle_full" && name != "g_main_context_wakeup" {
			t.Errorf("%s is never used", name)
		}
	}
	for _, text := range []string{"'/a b' ctl 1 status\x00", "Refresh\x00", "vOS\x00", "activate\x00"} {
		if !strings.Contains(string(b[:h.state]), text) {
			t.Errorf("%q is missing", text)
		}
	}
	if strings.Trim(string(b[h.state:]), "\x00") != "" {
		t.Error("the state does not begin as zeros")
	}
}

func TestImageGrows(t *testing.T) {
	small, _ := image(t)
	large, h := image(t, Item{"Status", strings.Repeat("x", 9000)})
	if len(large) <= len(small) || h.state <= 9000 {
		t.Errorf("%d bytes with a long command, %d without", len(large), len(small))
	}
	if _, err := makeImage(addresses(), []Item{{"Status", strings.Repeat("x", maxSize)}}); err == nil {
		t.Error("a command that does not fit was taken")
	}
	again, _ := image(t)
	if string(again) != string(small) {
		t.Error("two menus of the same entries differ")
	}
}

func TestHeaderIsHostile(t *testing.T) {
	b, _ := image(t)
	for at, value := range map[int]uint64{
		headMagic: 1, headVersion: 2, headSize: 1 << 40, headState: 0, headIdle: 0, headTail: 1 << 20, headTailEnd: 0, headGone: 8, headGoneEnd: ^uint64(0),
	} {
		spoiled := append([]byte(nil), b...)
		binary.LittleEndian.PutUint64(spoiled[at:], value)
		if _, err := readHeader(spoiled, uint64(len(b))); !errors.Is(err, errNotMenu) {
			t.Errorf("word %#x as %#x: %v", at, value, err)
		}
	}
	if _, err := readHeader(b[:headerSize-1], uint64(len(b))); !errors.Is(err, errNotMenu) {
		t.Errorf("cut short: %v", err)
	}
	if _, err := readHeader(b, uint64(len(b))+procfs.PageSize); !errors.Is(err, errNotMenu) {
		t.Errorf("in a larger mapping: %v", err)
	}
}

func FuzzHeader(f *testing.F) {
	b, err := makeImage(addresses(), nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[:headerSize], uint64(len(b)))
	f.Fuzz(func(t *testing.T, b []byte, size uint64) {
		h, err := readHeader(b, size)
		if err != nil {
			return
		}
		// What is called or looked at lies within the code.
		if h.size != size || h.idle >= size || h.state >= size || h.tail.End > h.state || h.gone.End > h.state || h.tail.Start >= h.tail.End {
			t.Errorf("%+v of %d bytes", h, size)
		}
	})
}

func TestPrintable(t *testing.T) {
	for _, test := range []struct {
		lines []string
		want  string
	}{
		{[]string{"one", "two"}, "one\ntwo"},
		{[]string{"a\nb\x1b[2J\xff\x00"}, "a\ufffdb\ufffd[2J\ufffd\ufffd"},
		{nil, ""},
	} {
		if got := printable(test.lines); got != test.want {
			t.Errorf("%q: %q, want %q", test.lines, got, test.want)
		}
	}
	long := printable([]string{strings.Repeat("ä", maxTextBytes)})
	if len(long) > maxTextBytes || !utf8.ValidString(long) || !strings.HasSuffix(long, "ä…") {
		t.Errorf("%d bytes, the end is %q", len(long), long[len(long)-8:])
	}
}
