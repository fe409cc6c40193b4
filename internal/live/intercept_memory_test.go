package live

import (
	"math"
	"os"
	"strconv"
	"syscall"
	"testing"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// leaving is a C++ program that leaves functions in every way but by a return while
// they pass stubs: exceptions from operator new and through qsort, longjmp, and
// siglongjmp out of signal handlers.
const leaving = `
#include "report.h"
#include <csetjmp>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

static struct counter *denied, *thrown, *jumped, *interrupted;
static volatile size_t too_much = (size_t)1 << 62;

static void *deny(void *arg)
{
	for (;;) {
		try {
			char *p = new char[too_much];
			wrong("there are %zu bytes at %p", (size_t)too_much, (void *)p);
		} catch (const std::bad_alloc &) {
			bump(denied);
		}
		std::string s(100, 'x');
		std::vector<std::string> all(20, s);
		if (all[19] != s)
			wrong("a copy differs");
		progressed();
	}
	return arg;
}

static int compare(const void *a, const void *b)
{
	if (*(const int *)a == 7 || *(const int *)b == 7)
		throw std::runtime_error("seven");
	return *(const int *)a - *(const int *)b;
}

static void *sort(void *arg)
{
	for (;;) {
		int numbers[] = {5, 3, 7, 1};
		try {
			qsort(numbers, 4, sizeof *numbers, compare);
			wrong("nothing was thrown");
		} catch (const std::runtime_error &e) {
			if (std::string(e.what()) != "seven")
				wrong("%s was thrown", e.what());
			bump(thrown);
		}
		progressed();
	}
	return arg;
}

static __thread jmp_buf back;

static int leap(const void *, const void *) { longjmp(back, 5); }

static void *jump(void *arg)
{
	for (;;) {
		int numbers[] = {2, 1};
		volatile int kept = 11;
		int n = setjmp(back);
		if (n == 0) {
			kept = 12;
			qsort(numbers, 2, sizeof *numbers, leap);
			wrong("it came back");
		}
		if (n != 5 || kept != 12)
			wrong("setjmp returned %d, and kept %d", n, kept);
		bump(jumped);
		progressed();
	}
	return arg;
}

static sigjmp_buf out;
static volatile sig_atomic_t armed;
static pthread_t target;

static void leave(int)
{
	if (armed && pthread_equal(pthread_self(), target)) {
		armed = 0;
		siglongjmp(out, 1);
	}
}

static void *handled(void *arg)
{
	target = pthread_self();
	for (;;) {
		volatile long n = 0;
		if (sigsetjmp(out, 1) == 0) {
			armed = 1;
			for (;;)
				n += labs(n) % 3 + getppid() % 2 + 1; // getppid passes a stub
		}
		bump(interrupted);
		progressed();
	}
	return arg;
}

static void *shoot(void *arg)
{
	for (;;) {
		if (armed)
			pthread_kill(target, SIGUSR1);
		usleep(200);
	}
	return arg;
}

int main()
{
	denied = counter("denied");
	thrown = counter("thrown");
	jumped = counter("jumped");
	interrupted = counter("interrupted");
	struct sigaction sa = {};
	sa.sa_handler = leave;
	sigaction(SIGUSR1, &sa, nullptr);
	spawn(deny, nullptr);
	spawn(sort, nullptr);
	spawn(jump, nullptr);
	spawn(handled, nullptr);
	spawn(shoot, nullptr);
	report_serve();
}
`

// TestInterceptLeaving: what leaves functions otherwise than by a return does so
// through stubs as well.
func TestInterceptLeaving(t *testing.T) {
	program := testbed.MustCompile(t, testbed.Build{Name: "leaving", Source: leaving, Files: []string{"report.h"}, Language: "c++", Flags: []string{"-fno-builtin"}})
	s, f := start(t, testbed.FixtureOptions{}, program)
	rounds := 3
	if soak {
		rounds = 50
	}
	for range rounds {
		for _, flags := range [][]string{nil, {"--memory"}, {"--memory", "--pointers"}} {
			attachAll(t, []int{s.pid}, flags...)
			before, err := f.Report(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			await(t, "all four ways", func() bool {
				now, err := f.Report(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				for name, n := range now.Counts {
					if n < before.Counts[name]+3 {
						return false
					}
				}
				return true
			})
			s.unharmed(t)
			detachAll(t, []int{s.pid})
			s.unharmed(t)
		}
	}
}

// holder is a program of threads that allocate and free in every way, in the program
// and in a library, when it is told to; then it says what is held.
const holder = `
#include "report.h"
#include <malloc.h>

enum { THREADS = 8, BLOCKS = 300, ROUNDS = 20000 };
void *library_get(size_t n);
void library_free(void *p);

static struct counter *held, *done;

static void *work(void *arg)
{
	void *blocks[BLOCKS] = {0};
	unsigned seed = (unsigned)(uintptr_t)arg;
	for (int i = 0; i < ROUNDS; i++) {
		void **b = &blocks[rand_r(&seed) % BLOCKS];
		size_t n = rand_r(&seed) % 5000;
		char *s = 0;
		switch (rand_r(&seed) % 8) {
		case 0: free(*b); *b = malloc(n); break;
		case 1: free(*b); *b = calloc(2, n); break;
		case 2: *b = realloc(*b, n + 1); break;
		case 3: free(*b); *b = 0; break;
		case 4: free(*b); *b = library_get(n); break;
		case 5: library_free(*b); *b = 0; break;
		case 6: free(*b); *b = strdup("a text"); break;
		case 7: free(*b); if (asprintf(&s, "%zu %d", n, i) > 0) *b = s; break;
		}
	}
	long sum = 0;
	for (int i = 0; i < BLOCKS; i++)
		sum += blocks[i] ? (long)malloc_usable_size(blocks[i]) : 0;
	__atomic_add_fetch(&held->n, sum, __ATOMIC_RELAXED);
	return 0;
}

static volatile sig_atomic_t told;
static void tell(int n) { (void)n; told++; }

static void *wait_for_it(void *arg)
{
	for (int n = 0;; usleep(1000)) {
		progressed();
		if (n == told)
			continue;
		pthread_t t[THREADS];
		for (uintptr_t i = 0; i < THREADS; i++)
			pthread_create(&t[i], 0, work, (void *)(i + 1 + (uintptr_t)n * THREADS));
		for (int i = 0; i < THREADS; i++)
			pthread_join(t[i], 0);
		done->n = ++n;
	}
	return arg;
}

int main(void)
{
	held = counter("held");
	done = counter("done");
	signal(SIGUSR1, tell);
	spawn(wait_for_it, 0);
	report_serve();
}
`

const holderLibrary = `
#include <stdlib.h>
void *library_get(size_t n) { return malloc(n); }
void library_free(void *p) { free(p); }
`

// TestInterceptMemoryIsExact compares what is counted as held with what the allocator
// says of the blocks that are: glibc's, by its headers, and jemalloc, by its function.
func TestInterceptMemoryIsExact(t *testing.T) {
	program := testbed.MustCompile(t, testbed.Build{Name: "holder", Source: holder, Files: []string{"report.h"}, Flags: []string{"-fno-builtin"},
		Parts: []testbed.Build{{Name: "libholder.so", Source: holderLibrary, Flags: []string{"-shared", "-fPIC", "-fno-builtin", "-Wl,-soname,libholder.so"}}}})
	const jemalloc = "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2" // redis-server needs it
	for name, env := range map[string][]string{
		"glibc": nil, "glibc that spoils": {"MALLOC_PERTURB_=165"}, "glibc without sequences": {"GLIBC_TUNABLES=glibc.pthread.rseq=0"},
		"jemalloc": {"LD_PRELOAD=" + jemalloc},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "jemalloc" {
				if _, err := os.Stat(jemalloc); err != nil {
					t.Fatal(err)
				}
			}
			s, f := start(t, testbed.FixtureOptions{Env: env}, program)
			rounds := int64(0)
			work := func() (held int64) {
				t.Helper()
				if err := syscall.Kill(s.pid, syscall.SIGUSR1); err != nil {
					t.Fatal(err)
				}
				rounds++
				await(t, "its threads", func() bool {
					report, err := f.Report(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					held = report.Counts["held"]
					return report.Counts["done"] == rounds
				})
				return held
			}
			attachAll(t, []int{s.pid}, "--memory") // malloc has not been called yet
			for range 2 {
				held := work()
				counted, owned := int64(0), int64(0)
				for _, u := range usageOf(t, strconv.Itoa(s.pid), "--memory") {
					counted += u.HeldBytes
					owned += u.OwnedBytes
				}
				if off := math.Abs(float64(counted - held)); off > float64(held)/100 || held < 1<<20 {
					t.Errorf("%d bytes are counted as held, and %d are", counted, held)
				}
				t.Logf("%d bytes counted, %d held, %d owned by samples", counted, held, owned)
			}
			detachAll(t, []int{s.pid})
			s.unharmed(t)
		})
	}
}
