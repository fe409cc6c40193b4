package vin

import (
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// calledFunctions is how many functions testdata/calls.c has; the last one is
// reached by a slot.
const calledFunctions = 13

// TestCalls runs the code: a program maps the vIN, installs its veneers, and
// calls its functions in both generations.
func TestCalls(t *testing.T) {
	folder := t.TempDir()
	program := filepath.Join(folder, "calls")
	testbed.GCC(t, "-O1", "-Wall", "-Werror", "-no-pie", "-fcf-protection=none", "-z", "noexecstack", "-o", program, "testdata/calls.c")

	address, at := symbols(t, program)
	v, err := New(Config{
		Base:    0x2000_0000,
		Module:  Identity{Soname: "calls", Start: 0x40_0000, End: 0x50_0000},
		Entries: 100,
		Slots:   1,
	})
	if err != nil {
		t.Fatal(err)
	}
	one, err := v.AddGeneration(Generation{Name: "new", Start: address["new_start"], End: address["new_end"]})
	if err != nil {
		t.Fatal(err)
	}
	table, code := Size(100, 1)
	file := filepath.Join(folder, Name)
	args := []string{file}
	for i := range calledFunctions {
		function := address[fmt.Sprintf("old_%d", i)]
		if i == calledFunctions-1 {
			_, err = v.AddSlotEntry(function)
		} else {
			_, err = v.AddVeneer(function, at(function, 32))
		}
		if err != nil {
			t.Fatalf("function %d: %v", i, err)
		}
		if err := v.SetTarget(one, i, address[fmt.Sprintf("new_%d", i)]); err != nil {
			t.Fatal(err)
		}
	}
	stub := v.Entries()[calledFunctions-1].Stub
	for _, n := range []uint64{v.Config().Base, table, code, v.SelectorAddress(), v.SelectorFor(0), v.SelectorFor(one), stub} {
		args = append(args, fmt.Sprintf("%x", n))
	}
	for i := range calledFunctions - 1 {
		veneer, _ := v.Veneer(i)
		args = append(args, fmt.Sprintf("%x", veneer))
	}
	if err := os.WriteFile(file, append(v.Table(), v.Code()...), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput()
	if err != nil || string(out) != "done\n" {
		t.Fatalf("%v: %s", err, out)
	}
}

// symbols returns the addresses of a program's symbols, and what reads its code.
func symbols(t *testing.T, program string) (address map[string]uint64, at func(uint64, int) []byte) {
	t.Helper()
	f, err := elf.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	address = map[string]uint64{}
	for _, s := range all {
		address[s.Name] = s.Value
	}
	text := f.Section(".text")
	code, err := text.Data()
	if err != nil {
		t.Fatal(err)
	}
	return address, func(a uint64, n int) []byte { return code[a-text.Addr:][:n] }
}
