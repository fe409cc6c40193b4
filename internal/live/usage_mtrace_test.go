package live

import (
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestUsageAgreesWithMtrace lets python3 do the same work twice: once glibc's mtrace
// writes down each block, once vos usage counts. What is held differs by less than 1 %,
// in all and of libxml2.
func TestUsageAgreesWithMtrace(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	start := func(env ...string) *talker {
		t.Helper()
		cmd := exec.Command("/usr/bin/python3", "-I", "-c", text(t, "held.py"))
		// The same order of hashes, and no pools: they are one block for many.
		cmd.Env = append(os.Environ(), append(env, "PYTHONHASHSEED=0", "PYTHONMALLOC=malloc")...)
		return startTalker(t, cmd)
	}
	traced := start("LD_PRELOAD=libc_malloc_debug.so.0", "MALLOC_TRACE="+log)
	for _, line := range []string{"mtrace", "work", "muntrace"} {
		traced.asks(t, line, "done")
	}
	blocks, want := heldByTrace(t, log)

	counted := start()
	attachAll(t, []int{counted.pid}, "--memory")
	counted.asks(t, "work", "done")
	got := make(map[string]int64)
	for _, u := range usageOf(t, strconv.Itoa(counted.pid), "--memory") {
		got[""] += u.HeldBytes
		got[u.Module] += u.HeldBytes
	}
	if blocks < 10000 {
		t.Errorf("only %d blocks are held", blocks)
	}
	for _, name := range []string{"", "libxml2.so.2"} {
		t.Logf("%s: %d bytes held by mtrace, %d by counting", orAll(name), want[name], got[name])
		if math.Abs(float64(got[name]-want[name])) > float64(want[name])/100 || want[name] < 1<<20 {
			t.Errorf("%s: %d bytes are counted as held, and mtrace has %d", orAll(name), got[name], want[name])
		}
	}
	detachAll(t, []int{counted.pid})
	checkFree(t, counted.pid)
}

func orAll(module string) string {
	if module == "" {
		return "all modules"
	}
	return module
}

// heldByTrace returns what is allocated at the end of a log of mtrace: how many blocks,
// and the bytes of all ("") and of each module, as glibc rounds them up: a block is the
// odd multiple of 8 from 24 on that holds it.
func heldByTrace(t *testing.T, log string) (blocks int, bytes map[string]int64) {
	t.Helper()
	content, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`^@ ([^:\s]+):\S+ ([-+<>]) (0x[0-9a-f]+)(?: (0x[0-9a-f]+))?$`)
	sizes := make(map[string]int64)
	bytes = make(map[string]int64)
	add := func(module string, n int64) {
		bytes[""] += n
		bytes[module] += n
	}
	for text := range strings.Lines(string(content)) {
		m := line.FindStringSubmatch(strings.TrimSpace(text))
		if m == nil {
			if !strings.HasPrefix(text, "= ") {
				t.Fatalf("mtrace says %q", text)
			}
			continue
		}
		module, block := filepath.Base(m[1]), m[3]
		switch m[2] {
		case "+", ">":
			size, err := strconv.ParseInt(m[4], 0, 64)
			if err != nil {
				t.Fatal(err)
			}
			sizes[block] = max(24, (size+8+15)&^15-8)
			add(module, sizes[block])
		default: // 0 where the block is older than the log
			add(module, -sizes[block])
			delete(sizes, block)
		}
	}
	return len(sizes), bytes
}
