package match

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/virtualizing-os/vos/internal/dso"
)

// program writes C sources of many functions: twins, callers, tables, switch
// statements, data. A change of the seed's second part makes the new build.
type program struct {
	b       strings.Builder
	r       *rand.Rand
	n       int
	changed func(i int) int // 0 as before, 1 changed, 2 gone, 3 a new one before it
}

func (p *program) source() string {
	p.b.WriteString("#include <stdlib.h>\n#include <string.h>\n#include <stdio.h>\n#define LOCAL static __attribute__((noinline))\n#define EXPORT __attribute__((visibility(\"default\"),noinline))\n")
	var gone []bool
	for i := range p.n {
		how := p.changed(i)
		gone = append(gone, how == 2)
		if how == 3 {
			p.function(i, true, 0, gone)
		}
		if how != 2 {
			p.function(i, false, how, gone)
		} else {
			p.r = rand.New(rand.NewPCG(uint64(i), 7))
		}
	}
	fmt.Fprintf(&p.b, "static int (*const table[])(int) = {")
	for i := 0; i < p.n; i += 7 {
		if !gone[i] {
			fmt.Fprintf(&p.b, "f%d, ", i)
		}
	}
	p.b.WriteString("0};\nEXPORT int dispatch(int i, int x) { return table[i](x); }\n")
	for i := 0; i < p.n; i += 5 {
		fmt.Fprintf(&p.b, "EXPORT int e%d(int x) { return ", i)
		for k := i; k < min(i+5, p.n); k++ {
			if !gone[k] {
				fmt.Fprintf(&p.b, "f%d(x + %d) ^ ", k, k)
			}
		}
		p.b.WriteString("x; }\n")
	}
	return p.b.String()
}

// function writes f<i>: its shape follows from i alone, so that most are alike.
func (p *program) function(i int, extra bool, how int, gone []bool) {
	r := rand.New(rand.NewPCG(uint64(i), 3))
	name := fmt.Sprintf("f%d", i)
	if extra {
		r = rand.New(rand.NewPCG(uint64(i), 99))
		name = fmt.Sprintf("added%d", i)
	}
	kind := r.IntN(6)
	fmt.Fprintf(&p.b, "static int %s_counter, %s_other; static char %s_buffer[%d];\n", name, name, name, 8+8*r.IntN(6))
	if extra {
		fmt.Fprintf(&p.b, "EXPORT int %s(int x) {\n", name)
	} else {
		fmt.Fprintf(&p.b, "LOCAL int %s(int x) {\n", name)
	}
	if how == 1 {
		fmt.Fprintf(&p.b, "  if (x > %d) x -= %s_other;\n", 100+i, name)
	}
	switch kind {
	case 0: // twins: getters and counters
		fmt.Fprintf(&p.b, "  %s_counter += x; return %s_counter;\n", name, name)
	case 1:
		fmt.Fprintf(&p.b, "  %s_other++; return x + %s_other;\n", name, name)
	case 2:
		fmt.Fprintf(&p.b, "  snprintf(%s_buffer, sizeof %s_buffer, \"%s %%d\", x); return %s_buffer[x & 7] + %d;\n", name, name, name, name, r.IntN(1000))
	case 3:
		fmt.Fprintf(&p.b, "  switch (x) {")
		for c := range 5 + r.IntN(6) {
			fmt.Fprintf(&p.b, " case %d: %s_counter ^= %d; return rand() %% %d;", c, name, r.IntN(5000), 2+r.IntN(90))
		}
		fmt.Fprintf(&p.b, " } return %s_counter;\n", name)
	case 4:
		callee := i - 1 - r.IntN(4)
		call := "x"
		if callee >= 0 && !gone[callee] && !extra {
			call = fmt.Sprintf("f%d(x)", callee)
		}
		fmt.Fprintf(&p.b, "  int t = %s; for (int k = 0; k < x; k++) t = t * %d + %s_buffer[k & 7]; return t;\n", call, 3+r.IntN(200), name)
	case 5:
		fmt.Fprintf(&p.b, "  memset(%s_buffer, x, sizeof %s_buffer); %s_counter--; return %s_counter * %s_other;\n", name, name, name, name, name)
	}
	p.b.WriteString("}\n")
}

// generated builds a program twice, with and without symbols.
func generated(t testing.TB, seed uint64, n int, level string, changed func(i int) int) (full, stripped string) {
	p := program{n: n, changed: changed}
	path := filepath.Join(t.TempDir(), fmt.Sprintf("generated%d.c", seed))
	if err := os.WriteFile(path, []byte(p.source()), 0o600); err != nil {
		t.Fatal(err)
	}
	return build(t, path, level), build(t, path, level, "strip")
}

// TestStrippedPairsAgreeWithNames builds pairs of programs twice: what is paired
// and mapped without symbols must be what the symbols say.
func TestStrippedPairsAgreeWithNames(t *testing.T) {
	pairs, data := map[Trust]int{}, map[Proof]int{}
	seeds := uint64(4)
	if os.Getenv("VOS_SOAK") != "" {
		seeds = 32
	}
	for seed := range seeds {
		r := rand.New(rand.NewPCG(seed, 1))
		how, level := make([]int, 220), []string{"-O2", "-Os", "-O3", "-O1"}[seed%4]
		for i := range how {
			if x := r.IntN(100); x < int(2+seed%8*3) {
				how[i] = 1
			} else if x < int(3+seed%8*4) {
				how[i] = 2 + r.IntN(2)
			}
		}
		oldFull, oldStripped := generated(t, seed*2, len(how), level, func(int) int { return 0 })
		newFull, newStripped := generated(t, seed*2+1, len(how), level, func(i int) int { return how[i] })
		m := compareFiles(t, oldStripped, newStripped, Options{})
		checkAgainstNames(t, m, openPath(t, oldFull), openPath(t, newFull), pairs, data)
	}
	t.Logf("pairs checked %v, addresses %v", pairs, data)
	if pairs[Strong] < 100 || data[ByCode] < 50 {
		t.Error("hardly anything was checked")
	}
}

// checkAgainstNames compares trusted pairs and proved addresses with symbols.
func checkAgainstNames(t *testing.T, m *Match, oldFull, newFull *dso.Object, pairs map[Trust]int, data map[Proof]int) {
	t.Helper()
	old, err := readLabels(oldFull, nil)
	if err != nil {
		t.Fatal(err)
	}
	new, err := readLabels(newFull, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range m.Pairs {
		a, b := old.at(m.Old.Functions[q.Old].Addr), new.at(m.New.Functions[q.New].Addr)
		if len(a) == 0 || len(b) == 0 || q.Trust < Likely {
			continue
		}
		pairs[q.Trust]++
		if base(a[0].name) != base(b[0].name) {
			t.Errorf("%s is paired with %s by %s, %s", a[0].name, b[0].name, q.By, q.Trust)
		}
	}
	for _, v := range m.Data.Intervals {
		if v.Relro {
			continue
		}
		b, ok := new.object(v.New)
		if !ok {
			continue
		}
		a, ok := old.object(v.Old)
		data[v.Proof]++
		if !ok || a.name != b.name || v.Old-a.addr != v.New-b.addr {
			t.Errorf("%s+%#x is mapped to %s+%#x by %s", b.name, v.New-b.addr, a.name, v.Old-a.addr, v.Proof)
		}
	}
}

// base is a name without what the compiler adds to clones and parts.
func base(name string) string {
	name, _, _ = strings.Cut(name, ".")
	return name
}
