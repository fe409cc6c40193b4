/*
 * Its memory is given fresh pages while it works on it: threads write and check pages of
 * their own, of all and of the heap, map and unmap, run code that they have written,
 * sleep, take signals on a stack of their own, and have children that check their copies.
 *
 *     renewed THREADS [killed]
 *
 * So many threads write pages. Where vos is killed epoll_wait may be interrupted: the one
 * call of these that a stop breaks off by a plain EINTR, which a tracer that dies in the
 * very moment of the stop can't mend (docs/limits.md).
 */
#include "report.h"
#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>

enum { PAGE = 4096, PAGES = 64, SHARED = 256 };

static char *map(size_t size)
{
	char *at = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	must(at == MAP_FAILED ? -1 : 0, "mmap");
	return at;
}

static uint64_t *word(char *base, int page, int at) { return (uint64_t *)(base + (size_t)page * PAGE) + at; }

static long *tally; /* of all threads, in pages of their own each */

struct writer {
	int number;
	char *own;
	struct counter *rounds;
};

/* write_loop writes the number of the round to three places of each page, and checks what
 * is there of the round before. Every eighth page stays zero. */
static void *write_loop(void *arg)
{
	struct writer *w = arg;
	for (uint64_t round = 1;; round++) {
		for (int p = 0; p < PAGES; p++) {
			for (int k = 0; k < 3; k++) {
				uint64_t *at = word(w->own, p, (int[]){0, 255, 511}[k]), want = p % 8 ? (round - 1) ^ (uint64_t)(p * w->number) : 0;
				if (round == 1)
					want = 0;
				if (*at != want)
					wrong("thread %d, page %d: %llx and not %llx", w->number, p, (unsigned long long)*at, (unsigned long long)want);
				if (p % 8)
					*at = round ^ (uint64_t)(p * w->number);
			}
		}
		long mine = __atomic_add_fetch(&tally[w->number * (PAGE / 8)], 1, __ATOMIC_RELAXED);
		if ((uint64_t)mine != round)
			wrong("thread %d: its tally is %ld in round %llu", w->number, mine, (unsigned long long)round);
		__atomic_add_fetch(&tally[0], 1, __ATOMIC_RELAXED);
		bump(w->rounds);
		progressed();
	}
	return 0;
}

static struct counter *interrupted; /* 0: that is an error */

static void *sleep_loop(void *arg)
{
	struct counter *c = arg;
	int epoll = (int)must(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
	for (;;) {
		double begin = now_ms();
		struct timespec t = {0, 7000000};
		if (nanosleep(&t, 0) == -1)
			wrong("nanosleep: %s", strerror(errno));
		if (now_ms() - begin < 6.9)
			wrong("nanosleep took %.1f ms", now_ms() - begin);
		if (poll(0, 0, 5) != 0)
			wrong("poll: %s", strerror(errno));
		struct epoll_event e;
		int n = epoll_wait(epoll, &e, 1, 5);
		if (n == -1 && errno == EINTR && interrupted)
			bump(interrupted);
		else if (n != 0)
			wrong("epoll_wait: %s", strerror(errno));
		bump(c);
	}
	return 0;
}

static void *churn_loop(void *arg)
{
	struct counter *c = arg;
	unsigned seed = 1;
	for (;;) {
		size_t size = (size_t)(1 + rand_r(&seed) % 64) * PAGE;
		char *at = map(size);
		for (size_t i = 0; i < size; i += PAGE / 2)
			memcpy(at + i, &i, sizeof i);
		if (mprotect(at, PAGE, PROT_READ) == -1)
			wrong("mprotect: %s", strerror(errno));
		char *moved = mremap(at, size, 2 * size, MREMAP_MAYMOVE);
		if (moved == MAP_FAILED) /* two mappings: mprotect has cut it */
			moved = at;
		for (size_t i = 0; i < size; i += PAGE / 2)
			if (memcmp(moved + i, &i, sizeof i))
				wrong("churn: another value at %zu", i);
		if (munmap(moved, moved == at ? size : 2 * size) == -1)
			wrong("munmap: %s", strerror(errno));
		size_t some = 16 + rand_r(&seed) % 200000;
		char *heap = malloc(some), letter = (char)rand_r(&seed);
		memset(heap, letter, some);
		sched_yield();
		if (heap[0] != letter || heap[some / 2] != letter || heap[some - 1] != letter)
			wrong("churn: the heap has changed");
		free(heap);
		bump(c);
	}
	return 0;
}

/* hide_loop has memory that it may not touch most of the time. */
static void *hide_loop(void *arg)
{
	struct counter *c = arg;
	char *at = map(SHARED * PAGE);
	for (uint64_t n = 1;; n++) {
		for (int p = 0; p < SHARED; p++)
			*word(at, p, 9) = n * (uint64_t)p;
		must(mprotect(at, SHARED * PAGE, PROT_NONE), "mprotect");
		sleep_ms(3);
		must(mprotect(at, SHARED * PAGE, PROT_READ | PROT_WRITE), "mprotect");
		for (int p = 0; p < SHARED; p++)
			if (*word(at, p, 9) != n * (uint64_t)p)
				wrong("hidden page %d is another", p);
		bump(c);
	}
	return 0;
}

static void *code_loop(void *arg)
{
	struct counter *c = arg;
	unsigned char *at = (unsigned char *)map(PAGE);
	for (uint32_t n = 1;; n++) {
		must(mprotect(at, PAGE, PROT_READ | PROT_WRITE), "mprotect");
		at[0] = 0xb8; /* mov $n, %eax; ret */
		memcpy(at + 1, &n, 4);
		at[5] = 0xc3;
		must(mprotect(at, PAGE, PROT_READ | PROT_EXEC), "mprotect");
		for (int i = 0; i < 20000; i++)
			if (((uint32_t (*)(void))at)() != n)
				wrong("code returns another number");
		bump(c);
	}
	return 0;
}

static struct counter *alarms;
static char *alternate;

static void alarmed(int signal)
{
	(void)signal;
	char here;
	if (&here < alternate || &here > alternate + 16 * PAGE)
		wrong("a signal was not on its stack");
	bump(alarms);
}

static void *signal_loop(void *arg)
{
	(void)arg;
	alternate = map(16 * PAGE);
	stack_t stack = {.ss_sp = alternate, .ss_size = 16 * PAGE};
	must(sigaltstack(&stack, 0), "sigaltstack");
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGALRM);
	pthread_sigmask(SIG_UNBLOCK, &set, 0);
	struct itimerval every = {{0, 2000}, {0, 2000}};
	must(setitimer(ITIMER_REAL, &every, 0), "setitimer");
	uint64_t last = 0;
	for (;;)
		check_sum(100000, &last);
	return 0;
}

/* cpu_loop checks that the C library knows the CPU: the kernel notes it in the thread's
 * memory. */
static void on_cpu(int cpu)
{
	cpu_set_t set;
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof set, &set) == -1)
		return;
	for (int i = 0; i < 1000; i++)
		if (sched_getcpu() != cpu)
			wrong("a thread of CPU %d is told that it is on %d", cpu, sched_getcpu());
}

static void *cpu_loop(void *arg)
{
	struct counter *c = arg;
	for (int n = 0;; n++) {
		on_cpu(n % 2);
		bump(c);
	}
	return 0;
}

static void *fork_loop(void *arg)
{
	struct counter *c = arg;
	char *copy = map(SHARED * PAGE);
	for (int p = 0; p < SHARED; p++)
		*word(copy, p, 7) = (uint64_t)p * 3 + 1;
	for (;;) {
		pid_t child = (pid_t)must(fork(), "fork");
		if (child == 0) {
			for (int p = 0; p < SHARED; p++)
				if (*word(copy, p, 7) != (uint64_t)p * 3 + 1)
					_exit(1);
			_exit(0);
		}
		int status;
		if (waitpid(child, &status, 0) != child)
			wrong("waitpid: %s", strerror(errno));
		else if (status)
			wrong("a child has other memory: %x", status);
		bump(c);
		sleep_ms(10);
	}
	return 0;
}

static int writers = 8;

/* before_report checks what can be checked at any time, in the main thread. */
static void before_report(void)
{
	static int n;
	long first = __atomic_load_n(&tally[0], __ATOMIC_RELAXED), sum = 0;
	for (int i = 1; i <= writers; i++)
		sum += __atomic_load_n(&tally[i * (PAGE / 8)], __ATOMIC_RELAXED);
	if (sum < first)
		wrong("the tallies are %ld together, and were %ld", sum, first);
	on_cpu(n++ % 2);
}

int main(int argc, char **argv)
{
	if (argc > 1)
		writers = atoi(argv[1]);
	if (argc > 2)
		interrupted = counter("interrupted");
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGALRM);
	pthread_sigmask(SIG_BLOCK, &set, 0);
	alarms = counter("alarms");
	struct sigaction action = {.sa_handler = alarmed, .sa_flags = SA_ONSTACK | SA_RESTART};
	must(sigaction(SIGALRM, &action, 0), "sigaction");
	tally = (long *)map((size_t)(writers + 1) * PAGE);
	for (int i = 1; i <= writers; i++) {
		struct writer *w = calloc(1, sizeof *w);
		*w = (struct writer){.number = i, .own = map(PAGES * PAGE), .rounds = counter("rounds")};
		spawn(write_loop, w);
	}
	spawn(sleep_loop, counter("sleeps"));
	spawn(churn_loop, counter("churns"));
	spawn(code_loop, counter("codes"));
	spawn(hide_loop, counter("hidings"));
	spawn(signal_loop, 0);
	spawn(cpu_loop, counter("cpus"));
	spawn(fork_loop, counter("children"));
	report_before = before_report;
	report_serve();
}
