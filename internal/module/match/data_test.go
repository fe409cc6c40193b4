package match

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// variants builds two C or C++ sources and matches them, stripped.
func variants(t *testing.T, extension, old, new string, flags ...string) *Match {
	t.Helper()
	const head = "#define E __attribute__((visibility(\"default\"),noinline))\n#define L static __attribute__((noinline))\n"
	write := func(name, text string) string {
		path := filepath.Join(t.TempDir(), name+extension)
		if err := os.WriteFile(path, []byte(head+text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	flags = append([]string{"strip"}, flags...)
	return compareFiles(t, build(t, write("old", old), flags...), build(t, write("new", new), flags...), Options{})
}

const counters = `
static int a, b; static char name[40];
E int get_a(int x) { a += x; return a * 3 + x; }
E int get_b(int x) { b ^= x; return b * 5 - x; }
E char *get_name(void) { name[3]++; return name; }
`

const pick = "E struct s *pick(int i) { return t[i & 1]; } E void put(int i, struct s *p) { t[i] = p; p->v += i; }"

func TestData(t *testing.T) {
	for _, c := range []struct {
		name, old, new string
		want           []string
	}{
		{"another counter in the same code: both have strong proofs that disagree",
			counters + "E int use(int x) { return a + x; }",
			counters + "E int use(int x) { return b + x; } E int use2(int x) { return a * x + 77; }",
			[]string{"data_identity_conflict"}},
		{"a new counter takes the padding",
			`static char flag; static long total; E long f(long x) { total += x; return total; } E char g(int x) { flag = x; return flag; }`,
			`static char flag, fresh; static long total; E long f(long x) { total += x; return total; } E char g(int x) { fresh += flag; flag = x; return flag + fresh; }`,
			[]string{"data_identity_unproved"}},
		{"a buffer grew",
			`static char buf[64]; static int n; E char *f(int x) { n += x; return buf; } E int g(int x) { return buf[x & 63] + n; }`,
			`static char buf[128]; static int n; E char *f(int x) { n += x; return buf; } E int g(int x) { return buf[x & 127] + n; }`,
			[]string{"data_grown"}},
		{"a writable table of labels",
			`E int f(int x, int n) { static void *t[] = {&&p, &&q, &&r}; t[n & 1] = t[2]; goto *t[x]; p: return n + 1; q: return n * 7; r: return n ^ 5; }`,
			`E int f(int x, int n) { static void *t[] = {&&p, &&q, &&r}; t[n & 1] = t[2]; goto *t[x]; p: return n + 2; q: return n * 9; r: return n ^ 6; }`,
			[]string{"label_table"}},
		{"a constructor sets up something else",
			`static int table[8]; __attribute__((constructor)) static void fill(void) { for (int i = 0; i < 8; i++) table[i] = i * 3; } E int f(int i) { return table[i & 7] + 1; }`,
			`static int table[8]; __attribute__((constructor)) static void fill(void) { for (int i = 0; i < 8; i++) table[i] = i * 5 + 2; } E int f(int i) { return table[i & 7] + 2; }`,
			[]string{"constructor_changed"}},
		{"a constructor is new",
			`static int table[8]; E int f(int i) { return table[i & 7] + 1; } E void g(int i) { table[i & 7] = i; }`,
			`static int table[8]; __attribute__((constructor)) static void fill(void) { table[3] = 5; } E int f(int i) { return table[i & 7] + 2; } E void g(int i) { table[i & 7] = i; }`,
			[]string{"constructor_changed"}},
		{"objects of a table, told by their contents",
			"struct s { const char *n; int v; }; static struct s one = {\"one\", 1}, two = {\"two\", 2}; static struct s *t[] = {&one, &two};" + pick + "E int c(int x) { return x * 3; }",
			"struct s { const char *n; int v; }; static int before[4] = {1, 2, 3, 4}; E int *early(void) { return before; } static struct s one = {\"one\", 1}, two = {\"two\", 2}; static struct s *t[] = {&one, &two};" + pick + "E int c(int x) { return x * 5; }",
			[]string{"data_identity_unproved"}}, // early is new, and so is what it refers to
		{"an initial value changed",
			`static int level = 3; static const char *who = "one"; E int f(int x) { level += x; return level; } E const char *g(void) { return who; } E void h(const char *w) { who = w; } E int c(int x) { return x * 3; }`,
			`static int level = 4; static const char *who = "two"; E int f(int x) { level += x; return level; } E const char *g(void) { return who; } E void h(const char *w) { who = w; } E int c(int x) { return x * 5; }`,
			nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := variants(t, ".c", c.old, c.new)
			if got := codes(m); !slices.Equal(got, c.want) {
				t.Errorf("refused for %q, want %q: %+v\n%+v", got, c.want, m.Refusals, m.Data)
			}
			if c.name == "objects of a table, told by their contents" {
				if n := m.Figures.Objects["unproved"]; n != 1 {
					t.Errorf("%v: %+v", m.Figures.Objects, m.Refusals)
				}
			}
			if c.name == "an initial value changed" {
				pointers := 0
				for _, i := range m.Initial {
					if i.Pointer {
						pointers++
					}
				}
				if len(m.Initial) != 2 || pointers != 1 {
					t.Errorf("initial changes %+v", m.Initial)
				}
			}
		})
	}
}

// TestInitialValuesAreWhole: of a value that differs in one byte all of it is told,
// as the program may have written the other bytes.
func TestInitialValuesAreWhole(t *testing.T) {
	const source = `static long limit = %d; static int level = %d, other = 5; E long f(long x) { limit += x; return limit; }
		E int g(int x) { level += x; return level; } E int h(int x) { other *= x; return other; } E int c(int x) { return x * %d; }`
	m := variants(t, ".c", fmt.Sprintf(source, 256, 0x10000, 3), fmt.Sprintf(source, 512, 0x20000, 5))
	var sizes []uint64
	for _, i := range m.Initial {
		sizes = append(sizes, i.Size)
	}
	slices.Sort(sizes)
	if want := []uint64{4, 8}; !slices.Equal(sizes, want) || len(m.Refusals) > 0 {
		t.Errorf("values of %v bytes, want %v: %+v %v", sizes, want, m.Initial, m.Refusals)
	}
}

const shapes = `
#include <stdexcept>
#include <string>
struct Base { virtual ~Base() {} virtual int area(int x) = 0; virtual int more(int x) { return x + MORE; } int n = 0; };
struct Square : Base { int area(int x) override { n++; return x * x * AREA; } };
struct Circle : Base { int area(int x) override { n += 2; if (x < 0) throw std::range_error("negative"); return x * 3; } };
extern "C" E Base *make(int kind) { if (kind) return new Square; return new Circle; }
extern "C" E int safe(Base *b, int x) { try { return b->area(x) + b->more(1); } catch (const CAUGHT &e) { return -1; } }
`

// TestVirtualFunctions: the entries of vtables are redirected, exception tables
// are part of a function.
func TestVirtualFunctions(t *testing.T) {
	old := "#define AREA 1\n#define MORE 2\n#define CAUGHT std::range_error\n" + shapes
	m := variants(t, ".cc", old, "#define AREA 4\n#define MORE 2\n#define CAUGHT std::range_error\n"+shapes, "-lstdc++")
	if len(m.Refusals) > 0 {
		t.Errorf("%+v", m.Refusals)
	}
	changed := 0
	for _, e := range m.Entries {
		q := m.Pairs[e.Pair]
		if q.State == Changed && e.Kind == Veneer {
			changed++
		}
	}
	if changed != 1 {
		t.Errorf("%d changed functions are redirected, want the virtual one: %+v", changed, m.Entries)
	}
	m = variants(t, ".cc", old, "#define AREA 1\n#define MORE 2\n#define CAUGHT std::logic_error\n"+shapes, "-lstdc++")
	if s := stateOf(t, m, "safe"); s != Referring {
		t.Errorf("safe is %v, though it catches something else", s)
	}
	if _, ok := entryOf(m, "safe"); !ok {
		t.Errorf("entries %+v", m.Entries)
	}
}

// TestTakenOverText: a function that took over another's text and
// place must not take over its data.
func TestTakenOverText(t *testing.T) {
	old := `
static int first; static long second;
L int bump(int x) { first += x; first ^= 17; first *= x + 3; first -= x * 9; first |= x << 2; return first + x * 77 - (first >> 3); }
E int use(int x) { return bump(x) + 1; }
E long other(long x) { second += x; return second; }
E int last(int x) { first -= 5; return first * x; }
`
	m := variants(t, ".c", old, `
static int fresh, first; static long second;
L int bump(int x) { fresh += x; fresh ^= 17; fresh *= x + 3; fresh -= x * 9; fresh |= x << 2; return fresh + x * 77 - (fresh >> 3); }
E int use(int x) { return bump(x) + 1; }
E long other(long x) { second += x; return second; }
E int last(int x) { first -= 5; return first * x; }
E int more(int x) { return first + fresh + x; }
`)
	if got := codes(m); !contains(got, string(CodeDataConflict)) || len(m.Pairs) == 0 {
		t.Errorf("a new variable was taken for an old one: %+v", m.Data)
	}
}
