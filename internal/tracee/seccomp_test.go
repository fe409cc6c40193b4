package tracee

import (
	"errors"
	"syscall"
	"testing"

	"github.com/virtualizing-os/vos/internal/kernel"
)

type bpf = kernel.FilterInstruction

const seccompKill = 0x80000000

func TestRunFilter(t *testing.T) {
	load := func(k uint32) bpf { return bpf{Code: 0x20, K: k} }
	ret := func(k uint32) bpf { return bpf{Code: 0x06, K: k} }
	equal := func(k uint32, yes, no uint8) bpf { return bpf{Code: 0x15, JT: yes, JF: no, K: k} }

	onlyMadvise := []bpf{load(4), equal(auditArchX86_64, 1, 0), ret(seccompKill), load(0),
		equal(syscall.SYS_MADVISE, 0, 1), ret(seccompAllow), ret(seccompKill)}
	byArgument := []bpf{load(16 + 8*2), {Code: 0x54, K: 0xff}, equal(4, 0, 1), ret(seccompAllow), ret(0x50001)}
	viaScratch := []bpf{load(0), {Code: 0x02, K: 3}, {Code: 0x00, K: 1}, {Code: 0x61, K: 3}, {Code: 0x0c}, {Code: 0x16}}

	tests := []struct {
		name    string
		program []bpf
		call    Call
		want    uint32
		err     error
	}{
		{"allowed by number", onlyMadvise, Call{Number: syscall.SYS_MADVISE}, seccompAllow, nil},
		{"killed by number", onlyMadvise, Call{Number: syscall.SYS_MMAP}, seccompKill, nil},
		{"allowed by argument", byArgument, Call{Args: [6]uint64{0, 0, 4}}, seccompAllow, nil},
		{"error by argument", byArgument, Call{Args: [6]uint64{0, 0, 5}}, 0x50001, nil},
		{"scratch memory and arithmetic", viaScratch, Call{Number: 41}, 42, nil},
		{"no return", []bpf{load(0)}, Call{}, 0, errFilter},
		{"load beyond the data", []bpf{load(64), ret(0)}, Call{}, 0, errFilter},
		{"unaligned load", []bpf{load(2), ret(0)}, Call{}, 0, errFilter},
		{"jump beyond the end", []bpf{{Code: 0x05, K: 9}, ret(0)}, Call{}, 0, errFilter},
		{"division by zero", []bpf{{Code: 0x34, K: 0}, ret(0)}, Call{}, 0, errFilter},
		{"empty", nil, Call{}, 0, errFilter},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := runFilter(test.program, seccompData(test.call, 0))
			if got != test.want || !errors.Is(err, test.err) {
				t.Errorf("got %#x, %v; want %#x, %v", got, err, test.want, test.err)
			}
		})
	}
}
