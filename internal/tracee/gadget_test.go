package tracee

import (
	"encoding/binary"
	"testing"
)

func TestGadgetsFound(t *testing.T) {
	const at = 0x7f0000001000
	tests := []struct {
		name string
		code []byte
		want Gadgets
	}{
		{"nothing", []byte{0x90, 0x90}, Gadgets{}},
		{"syscall; ret", []byte{0x90, 0x0f, 0x05, 0xc3}, Gadgets{Syscall: at + 1, Plain: at + 1}},
		{"the vDSO's way: registers cleared before ret",
			[]byte{0x0f, 0x05, 0x31, 0xd2, 0x31, 0xc9, 0x45, 0x31, 0xc0, 0x45, 0x31, 0xdb, 0xc3}, Gadgets{Syscall: at}},
		{"the result is cleared", []byte{0x0f, 0x05, 0x31, 0xc0, 0xc3}, Gadgets{}},
		{"the stack pointer is cleared", []byte{0x0f, 0x05, 0x31, 0xe4, 0xc3}, Gadgets{}},
		{"two registers are mixed", []byte{0x0f, 0x05, 0x31, 0xd1, 0xc3}, Gadgets{}},
		{"code goes on", []byte{0x0f, 0x05, 0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff}, Gadgets{}},
		{"code ends", []byte{0x0f, 0x05}, Gadgets{}},
		{"a second syscall is the right one", []byte{0x0f, 0x05, 0x90, 0x0f, 0x05, 0xc3}, Gadgets{Syscall: at + 3, Plain: at + 3}},
		{"__restore_rt of glibc", []byte{0x90, 0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05}, Gadgets{Sigreturn: at + 1}},
		{"sigreturn of others", []byte{0xb8, 15, 0, 0, 0, 0x0f, 0x05}, Gadgets{Sigreturn: at}},
		{"another system call", []byte{0xb8, 14, 0, 0, 0, 0x0f, 0x05}, Gadgets{}},
		{"pop within an instruction", []byte{0x41, 0x58, 0xc3}, Gadgets{PopRAX: at + 1}},
		{"pops of arguments", []byte{0x41, 0x5f, 0xc3, 0x5e, 0xc3, 0x5a, 0x5b, 0xc3, 0x5a, 0xc3},
			Gadgets{PopRDI: at + 1, PopRSI: at + 3, PopRDX: at + 8}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var g Gadgets
			g.Add(test.code, at)
			if g != test.want {
				t.Errorf("got %+v, want %+v", g, test.want)
			}
		})
	}
}

func TestGadgetsTail(t *testing.T) {
	words := func(b []byte) (w []uint64) {
		for ; len(b) >= 8; b = b[8:] {
			w = append(w, binary.LittleEndian.Uint64(b))
		}
		return w
	}
	direct := words(Gadgets{Syscall: 1, Sigreturn: 2, PopRAX: 3}.tail())
	if len(direct) != 1 || direct[0] != 2 {
		t.Errorf("with a sigreturn: %v", direct)
	}
	popped := words(Gadgets{Syscall: 1, PopRAX: 3}.tail())
	if len(popped) != 3 || popped[0] != 3 || popped[1] != sysRTSigreturn || popped[2] != 1 {
		t.Errorf("without: %v", popped)
	}
}

func TestWithout(t *testing.T) {
	r := Range{0x1000, 0x9000}
	tests := []struct {
		name  string
		avoid []Range
		want  []Range
	}{
		{"nothing", nil, []Range{r}},
		{"beside", []Range{{0x9000, 0xa000}, {0, 0x1000}}, []Range{r}},
		{"within", []Range{{0x2000, 0x3000}}, []Range{{0x1000, 0x2000}, {0x3000, 0x9000}}},
		{"both ends", []Range{{0, 0x2000}, {0x8000, 0xf000}}, []Range{{0x2000, 0x8000}}},
		{"all", []Range{{0, 0xf000}}, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := without(r, test.avoid)
			if len(got) != len(test.want) {
				t.Fatalf("got %v, want %v", got, test.want)
			}
			for i := range got {
				if got[i] != test.want[i] {
					t.Errorf("got %v, want %v", got, test.want)
				}
			}
		})
	}
}
