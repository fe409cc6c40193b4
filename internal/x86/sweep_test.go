package x86

import (
	"bytes"
	"iter"
	"os"
	"path/filepath"
	"testing"
)

// The sweep proves the tables on encodings that no library contains: every
// opcode of every map with forms of ModRM and prefixes, against objdump.

// slot is how far apart the encodings lie in the file that objdump reads. What
// follows each is NOPs, so that objdump finds the next one whatever it makes of
// this one: at most 7 bytes are given, and an instruction has at most 15.
const slot = 24

// modRMForms returns a ModRM byte and a SIB byte: each addressing form, and
// each reg with memory and with a register.
func modRMForms() [][2]byte {
	var forms [][2]byte
	for reg := range byte(8) {
		forms = append(forms, [2]byte{reg << 3, 0x90}, [2]byte{0xc0 | reg<<3, 0x90})
	}
	for _, modRM := range []byte{0x05, 0x40, 0x80} {
		forms = append(forms, [2]byte{modRM, 0x90})
	}
	for _, modRM := range []byte{0x04, 0x44, 0x84} {
		forms = append(forms, [2]byte{modRM, 0x88}, [2]byte{modRM, 0x25})
	}
	return forms
}

// encodings yields the beginnings of instructions. The slice is used again.
func encodings() iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		var code []byte
		each := func(head ...byte) bool {
			for opcode := range 256 {
				for _, form := range modRMForms() {
					code = append(append(code[:0], head...), byte(opcode), form[0], form[1])
					if !yield(code) {
						return false
					}
				}
			}
			return true
		}
		for _, prefix := range []string{"", "\x66", "\xf2", "\xf3", "\x48", "\x66\x48", "\x67", "\xf0", "\x41", "\xf2\x66"} {
			for _, escape := range []string{"", "\x0f", "\x0f\x38", "\x0f\x3a"} {
				if !each([]byte(prefix + escape)...) {
					return
				}
			}
		}
		for pp := range byte(4) {
			for w := range byte(2) {
				for length := range byte(2) {
					low := length<<2 | pp
					for m := range byte(8) {
						if !each(0xc4, 0xe0|m, w<<7|0x78|low) || !each(0xc4, 0xe0|m, w<<7|0x50|low) {
							return
						}
					}
					for m := byte(8); m < 12; m++ {
						if !each(0x8f, 0xe0|m, w<<7|0x78|low) || !each(0x8f, 0xe0|m, w<<7|0x50|low) {
							return
						}
					}
					if !each(0xc5, w<<7|0x78|low) {
						return
					}
				}
				for length := range byte(3) {
					for m := range byte(8) {
						if !each(0x62, 0xf0|m, w<<7|0x7c|pp, length<<5|0x08) || !each(0x62, 0xf0|m, w<<7|0x54|pp, length<<5|0x09) {
							return
						}
					}
				}
			}
		}
	}
}

// TestSweep takes a fifth of the encodings, without those that Decode refuses:
// they can't have a wrong length. With VOS_SOAK=1 it takes all, and so also
// shows what objdump knows and Decode refuses.
func TestSweep(t *testing.T) {
	needObjdump(t)
	soak := os.Getenv("VOS_SOAK") != ""
	nops := bytes.Repeat([]byte{0x90}, slot)
	var code []byte
	n := 0
	for e := range encodings() {
		if n++; !soak && n%5 != 0 {
			continue
		}
		padded := append(append(code, e...), nops[len(e):]...)
		if _, err := Decode(padded[len(code):]); soak || err == nil {
			code = padded
		}
	}
	file := filepath.Join(t.TempDir(), "encodings")
	if err := os.WriteFile(file, code, 0o600); err != nil {
		t.Fatal(err)
	}
	result := newAgreement()
	seen := 0
	err := disassemble(t.Context(), func(l line) bool {
		if l.address%slot == 0 {
			seen++
			result.check("sweep", code[l.address:], l)
		}
		return true
	}, "-D", "-b", "binary", "-m", "i386:x86-64", file)
	if err != nil {
		t.Fatal(err)
	}
	if seen != len(code)/slot {
		t.Errorf("objdump printed %d of %d encodings", seen, len(code)/slot)
	}
	result.report(t)
}
