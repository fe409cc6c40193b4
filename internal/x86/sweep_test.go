package x86

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// The sweep proves the tables on encodings that no library contains: every
// opcode of every map with forms of ModRM and prefixes, against objdump.

// slot is how far apart the encodings lie in the file that objdump reads. What
// follows each is NOPs, so that objdump finds the next one whatever it makes of
// this one: at most 7 bytes are given, and an instruction has at most 15.
const slot = 24

// modRMForms are pairs of a ModRM and a SIB byte: each reg with memory and with
// a register, and each addressing form.
var modRMForms = func() (forms [][2]byte) {
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
}()

// each yields the beginnings of instructions with all opcodes behind head.
func each(yield func([]byte) bool, head ...byte) bool {
	for opcode := range 256 {
		for _, form := range modRMForms {
			if !yield(append(head[:len(head):len(head)], byte(opcode), form[0], form[1])) {
				return false
			}
		}
	}
	return true
}

// legacyEncodings has the four legacy maps, each with several prefixes.
func legacyEncodings(yield func([]byte) bool) {
	for _, prefix := range []string{"", "\x66", "\xf2", "\xf3", "\x48", "\x66\x48", "\x67", "\xf0", "\x41", "\xf2\x66"} {
		for _, escape := range []string{"", "\x0f", "\x0f\x38", "\x0f\x3a"} {
			if !each(yield, []byte(prefix+escape)...) {
				return
			}
		}
	}
}

// vectorEncodings has the maps of VEX, XOP and EVEX with each pp, W and vector
// length, without and with a register in vvvv.
func vectorEncodings(yield func([]byte) bool) {
	for low := range byte(16) {
		w, length, pp := low>>3<<7, low>>2&1, low&3
		for _, v := range []byte{0x78, 0x50} {
			p := w | v | length<<2 | pp
			if !each(yield, 0xc5, p) {
				return
			}
			for m := range byte(8) {
				if !each(yield, 0xc4, 0xe0|m, p) || !each(yield, 0x8f, 0xe8|m, p) {
					return
				}
				p := w | v | 4 | pp
				if !each(yield, 0x62, 0xf0|m, p, length<<6|0x08) || !each(yield, 0x62, 0xf0|m, p, 0x29) {
					return
				}
			}
		}
	}
}

// TestSweep takes all legacy encodings and a part of the others, without those
// that Decode refuses: they can't have a wrong length. With VOS_SOAK=1 it takes
// all, and so also shows what objdump knows and Decode refuses.
func TestSweep(t *testing.T) {
	testbed.NeedTool(t, "objdump")
	soak := os.Getenv("VOS_SOAK") != ""
	nops := bytes.Repeat([]byte{0x90}, slot)
	var code []byte
	add := func(encoding []byte) {
		padded := append(append(code, encoding...), nops[len(encoding):]...)
		if _, err := Decode(padded[len(code):]); soak || err == nil {
			code = padded
		}
	}
	for e := range legacyEncodings {
		add(e)
	}
	n := 0
	for e := range vectorEncodings {
		if n++; soak || n%11 == 0 { // 11 divides neither the opcodes nor the forms
			add(e)
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
