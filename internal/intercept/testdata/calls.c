// Runs the code of an interceptor: calls MODE FILE BASE SIZE CODE WORDS STUBS...
// maps what FILE holds at BASE, calls stubs, and writes all that is there back.
// Built static and without PIE, so that the test knows where its functions are.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/rseq.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHECK(x) do { if (!(x)) { printf("line %d: %s\n", __LINE__, #x); exit(1); } } while (0)

static unsigned long stubs[64];

// What the target of a stub found in registers, and what the caller had put there.
unsigned long seen[16], given[16], seen_flags, given_flags;
unsigned char seen_vectors[16][32], given_vectors[16][32];
unsigned long seen_return;

__attribute__((naked)) void target_registers(void) {
	asm("mov %rax, seen+0(%rip)\n mov %rbx, seen+8(%rip)\n mov %rcx, seen+16(%rip)\n mov %rdx, seen+24(%rip)\n"
	    "mov %rsi, seen+32(%rip)\n mov %rdi, seen+40(%rip)\n mov %rbp, seen+48(%rip)\n mov %rsp, seen+56(%rip)\n"
	    "mov %r8, seen+64(%rip)\n mov %r9, seen+72(%rip)\n mov %r10, seen+80(%rip)\n"
	    "mov %r12, seen+96(%rip)\n mov %r13, seen+104(%rip)\n mov %r14, seen+112(%rip)\n mov %r15, seen+120(%rip)\n"
	    "pushfq\n pop %rax\n mov %rax, seen_flags(%rip)\n"
	    "mov (%rsp), %rax\n mov %rax, seen_return(%rip)\n"
	    "lea seen_vectors(%rip), %rax\n"
	    "vmovdqu %ymm0, 0(%rax)\n vmovdqu %ymm1, 32(%rax)\n vmovdqu %ymm2, 64(%rax)\n vmovdqu %ymm3, 96(%rax)\n"
	    "vmovdqu %ymm4, 128(%rax)\n vmovdqu %ymm5, 160(%rax)\n vmovdqu %ymm6, 192(%rax)\n vmovdqu %ymm7, 224(%rax)\n"
	    "vmovdqu %ymm8, 256(%rax)\n vmovdqu %ymm9, 288(%rax)\n vmovdqu %ymm10, 320(%rax)\n vmovdqu %ymm11, 352(%rax)\n"
	    "vmovdqu %ymm12, 384(%rax)\n vmovdqu %ymm13, 416(%rax)\n vmovdqu %ymm14, 448(%rax)\n vmovdqu %ymm15, 480(%rax)\n"
	    "ret");
}

unsigned long saved[8], called, expected_return;

// Sets all registers and flags, and calls. The direction flag stays clear.
__attribute__((naked, noinline)) void call_with_registers(void) {
	asm("mov %rbx, saved+0(%rip)\n mov %rbp, saved+8(%rip)\n mov %r12, saved+16(%rip)\n mov %r13, saved+24(%rip)\n"
	    "mov %r14, saved+32(%rip)\n mov %r15, saved+40(%rip)\n"
	    "lea given_vectors(%rip), %rax\n"
	    "vmovdqu 0(%rax), %ymm0\n vmovdqu 32(%rax), %ymm1\n vmovdqu 64(%rax), %ymm2\n vmovdqu 96(%rax), %ymm3\n"
	    "vmovdqu 128(%rax), %ymm4\n vmovdqu 160(%rax), %ymm5\n vmovdqu 192(%rax), %ymm6\n vmovdqu 224(%rax), %ymm7\n"
	    "vmovdqu 256(%rax), %ymm8\n vmovdqu 288(%rax), %ymm9\n vmovdqu 320(%rax), %ymm10\n vmovdqu 352(%rax), %ymm11\n"
	    "vmovdqu 384(%rax), %ymm12\n vmovdqu 416(%rax), %ymm13\n vmovdqu 448(%rax), %ymm14\n vmovdqu 480(%rax), %ymm15\n"
	    "mov given+8(%rip), %rbx\n mov given+16(%rip), %rcx\n mov given+24(%rip), %rdx\n mov given+32(%rip), %rsi\n"
	    "mov given+40(%rip), %rdi\n mov given+48(%rip), %rbp\n mov given+64(%rip), %r8\n mov given+72(%rip), %r9\n"
	    "mov given+80(%rip), %r10\n mov given+96(%rip), %r12\n mov given+104(%rip), %r13\n mov given+112(%rip), %r14\n"
	    "mov given+120(%rip), %r15\n"
	    "lea -8(%rsp), %rax\n mov %rax, given+56(%rip)\n" // what the target finds
	    "lea 1f(%rip), %rax\n mov %rax, expected_return(%rip)\n"
	    "pushq given_flags(%rip)\n mov given+0(%rip), %rax\n popfq\n"
	    "call *called(%rip)\n"
	    "1: vzeroupper\n"
	    "mov saved+0(%rip), %rbx\n mov saved+8(%rip), %rbp\n mov saved+16(%rip), %r12\n mov saved+24(%rip), %r13\n"
	    "mov saved+32(%rip), %r14\n mov saved+40(%rip), %r15\n ret");
}

static void registers(void) {
	const unsigned long status = 0x8d5; // OF SF ZF AF PF CF
	for (int round = 0; round < 5000; round++) {
		for (int i = 0; i < 16; i++)
			given[i] = ((unsigned long)random() << 33) ^ random();
		for (unsigned i = 0; i < sizeof given_vectors; i++)
			((unsigned char *)given_vectors)[i] = random();
		given_flags = 0x202 | (random() & status);
		called = stubs[0];
		call_with_registers();
		for (int i = 0; i < 16; i++)
			if (i != 11) // r11
				CHECK(seen[i] == given[i]);
		CHECK((seen_flags & status) == (given_flags & status));
		CHECK(!memcmp(seen_vectors, given_vectors, sizeof given_vectors));
		CHECK(seen_return == expected_return);
	}
}

__attribute__((noinline)) void target_nothing(void) { asm volatile(""); }
void target_signal(void) {}

enum { THREADS = 64, CALLS = 200000 };
static unsigned long signals;
static pthread_barrier_t barrier;

static void handler(int n) {
	(void)n;
	((void (*)(void))stubs[2])();
	((void (*)(void))stubs[1])();
	__atomic_add_fetch(&signals, 1, __ATOMIC_RELAXED);
}

static void *caller(void *arg) {
	(void)arg;
	pthread_barrier_wait(&barrier);
	void (*f)(void) = (void (*)(void))stubs[1];
	for (int i = 0; i < CALLS; i++)
		f();
	return 0;
}

static void threads(void) {
	struct sigaction sa = {.sa_handler = handler, .sa_flags = SA_RESTART};
	sigaction(SIGALRM, &sa, 0);
	pthread_barrier_init(&barrier, 0, THREADS);
	pthread_t t[THREADS];
	struct itimerval every = {{0, 50}, {0, 50}};
	setitimer(ITIMER_REAL, &every, 0);
	for (int i = 0; i < THREADS; i++)
		CHECK(!pthread_create(&t[i], 0, caller, 0));
	for (int i = 0; i < THREADS; i++)
		pthread_join(t[i], 0);
	struct itimerval never = {0};
	setitimer(ITIMER_REAL, &never, 0);
	printf("%lu %lu\n", (unsigned long)THREADS * CALLS + signals, signals);
}

// Memory: what stubs count is compared with malloc_usable_size of what is held.
typedef void *(*allocate)(size_t);
typedef void *(*clear)(size_t, size_t);
typedef void *(*again)(void *, size_t);
typedef void *(*array)(void *, size_t, size_t);
typedef void (*release)(void *);
typedef int (*aligned)(void **, size_t, size_t);
typedef char *(*duplicate)(const char *);
typedef int (*print)(char **, const char *, ...);
typedef int (*checked)(char **, int, const char *, ...);
typedef int (*list)(char **, const char *, va_list);
typedef ssize_t (*line)(char **, size_t *, FILE *);
enum { MALLOC, CALLOC, REALLOC, ARRAY, FREE, MEMALIGN, STRDUP, ASPRINTF, CHECKED, LIST, GETLINE, NEW, DELETE };
#define S(type, n) ((type)stubs[n])

static int listed(char **into, const char *format, ...) {
	va_list ap;
	va_start(ap, format);
	int n = S(list, LIST)(into, format, ap);
	va_end(ap);
	return n;
}

enum { HELD = 400 };
static unsigned long held_all;

static void *worker(void *arg) {
	unsigned seed = (unsigned)(long)arg;
	static const char text[] = "a line that getline reads, which is longer than what it begins with, as it begins with "
				   "120 bytes: so it goes on for some more words than would be needed to say this\n";
	void *held[HELD] = {0};
	for (int i = 0; i < 60000; i++) {
		int n = rand_r(&seed) % HELD;
		size_t size = rand_r(&seed) % 2000;
		if (rand_r(&seed) % 500 == 0)
			size = 200000 + rand_r(&seed) % 400000; // mapped
		char *was = held[n], *s = 0;
		switch (rand_r(&seed) % 14) {
		case 0: S(release, FREE)(was); held[n] = S(allocate, MALLOC)(size); break;
		case 1: S(release, FREE)(was); held[n] = S(clear, CALLOC)(3, size); break;
		case 2: held[n] = S(again, REALLOC)(was, size); break;
		case 3: held[n] = S(array, ARRAY)(was, size, 2); break;
		case 4: S(release, FREE)(was); held[n] = 0; break;
		case 5: S(release, FREE)(was); CHECK(!S(aligned, MEMALIGN)(&held[n], 64, size)); break;
		case 6: S(release, FREE)(was); held[n] = S(duplicate, STRDUP)("a string"); break;
		case 7:
			S(release, FREE)(was);
			CHECK(S(print, ASPRINTF)(&s, "%d %s %.1f %d %d %d %.2f %d %d", 1, "two", 3.0, 4, 5, 6, 7.25, 8, 9) == 24);
			CHECK(!strcmp(s, "1 two 3.0 4 5 6 7.25 8 9") || (printf("<%s>\n", s), 0));
			held[n] = s;
			break;
		case 8:
			S(release, FREE)(was);
			CHECK(S(checked, CHECKED)(&s, 1, "%s %d %d %d %d %.1f", "x", 1, 2, 3, 4, 5.5) == 13);
			CHECK(!strcmp(s, "x 1 2 3 4 5.5"));
			held[n] = s;
			break;
		case 9: S(release, FREE)(was); CHECK(listed(&s, "%d", n) > 0); held[n] = s; break;
		case 10: {
			FILE *f = fmemopen((void *)text, sizeof text - 1, "r");
			size_t length = was ? malloc_usable_size(was) : 0;
			s = was;
			CHECK(S(line, GETLINE)(&s, &length, f) == sizeof text - 1 && !strcmp(s, text));
			held[n] = s;
			fclose(f);
			break;
		}
		case 11: S(release, FREE)(was); held[n] = S(allocate, NEW)(size); break;
		case 12: S(release, DELETE)(was); held[n] = 0; break;
		case 13:
			errno = 0;
			CHECK(!S(allocate, MALLOC)(1UL << 62) && errno == ENOMEM);
			CHECK(!S(again, REALLOC)(was, 1UL << 62));
			CHECK(S(line, GETLINE)(0, 0, stdin) == -1 && errno == EINVAL);
			break;
		}
	}
	unsigned long sum = 0;
	for (int i = 0; i < HELD; i++)
		if (held[i])
			sum += malloc_usable_size(held[i]);
	__atomic_add_fetch(&held_all, sum, __ATOMIC_RELAXED);
	return 0;
}

static void tick(int n) { (void)n; }

// What operator new is, and delete: malloc and free are called instead.
void *target_new(size_t n) { (void)n; return 0; }
void target_delete(void *p) { (void)p; abort(); }

static void memory(void) {
	struct sigaction sa = {.sa_handler = tick, .sa_flags = SA_RESTART};
	sigaction(SIGALRM, &sa, 0);
	struct itimerval every = {{0, 100}, {0, 100}};
	setitimer(ITIMER_REAL, &every, 0);
	pthread_t t[8];
	for (long i = 0; i < 8; i++)
		CHECK(!pthread_create(&t[i], 0, worker, (void *)(i + 1)));
	for (int i = 0; i < 8; i++)
		pthread_join(t[i], 0);
	struct itimerval never = {0};
	setitimer(ITIMER_REAL, &never, 0);
	printf("%lu\n", held_all);
}

// A child finds nothing counted, and counts for itself.
static void forked(unsigned long words, unsigned long bytes) {
	for (int i = 0; i < 100; i++)
		((void (*)(void))stubs[1])();
	pid_t child = fork();
	if (!child) {
		unsigned long sum = 0;
		for (unsigned long i = 0; i < bytes / 8; i++)
			sum += ((unsigned long *)words)[i];
		for (int i = 0; i < 7; i++)
			((void (*)(void))stubs[1])();
		unsigned long after = 0;
		for (unsigned long i = 0; i < bytes / 8; i++)
			after += ((unsigned long *)words)[i];
		_exit(sum == 0 && after == 7 ? 0 : 1);
	}
	int status;
	waitpid(child, &status, 0);
	CHECK(status == 0);
}

static double now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

// ns a call: directly by a slot, by each stub; 5 rounds, the least.
static double cost(unsigned long slot) {
	void (*volatile f)(void) = (void (*)(void))slot;
	double least = 1e9;
	for (int round = 0; round < 7; round++) {
		double start = now();
		for (int i = 0; i < 2000000; i++)
			f();
		double each = (now() - start) / 2000000;
		if (each < least)
			least = each;
	}
	return least;
}

static double pair(allocate m, release f) {
	double least = 1e9;
	for (int round = 0; round < 7; round++) {
		double start = now();
		for (int i = 0; i < 1000000; i++) {
			void *p = m(64);
			asm volatile("" :: "r"(p) : "memory");
			f(p);
		}
		double each = (now() - start) / 1000000;
		if (each < least)
			least = each;
	}
	return least;
}

static void speed(void) {
	double direct = cost((unsigned long)target_nothing), counted = cost(stubs[0]);
	double plain = pair(malloc, free), attributed = pair((allocate)stubs[1], (release)stubs[2]);
	printf("%.3f %.3f %.3f %.3f\n", direct, counted, plain, attributed);
}

extern int __asprintf_chk(char **, int, const char *, ...), __vasprintf_chk(char **, int, const char *, va_list);

// Functions that the test wants to have the addresses of.
void *linked[] = {malloc, calloc, realloc, reallocarray, free, posix_memalign, strdup, asprintf, __asprintf_chk,
		  vasprintf, __vasprintf_chk, getline, malloc_usable_size};

int main(int argc, char **argv) {
	if (argc == 2) {
		printf("%ld %u\n", (long)__rseq_offset, (unsigned)__rseq_size);
		return 0;
	}
	const char *mode = argv[1], *file = argv[2];
	unsigned long at[4];
	for (int i = 0; i < 4; i++)
		at[i] = strtoul(argv[3 + i], 0, 16);
	unsigned long base = at[0], size = at[1], code = at[2], words = at[3];
	for (int i = 7; i < argc; i++)
		stubs[i - 7] = strtoul(argv[i], 0, 16);
	int fd = open(file, O_RDWR);
	CHECK(fd >= 0);
	int fixed = MAP_PRIVATE | MAP_FIXED_NOREPLACE;
	CHECK(mmap((void *)base, code - base, PROT_READ, fixed, fd, 0) != MAP_FAILED);
	CHECK(mmap((void *)code, words - code, PROT_READ | PROT_EXEC, fixed, fd, code - base) != MAP_FAILED);
	CHECK(mmap((void *)words, base + size - words, PROT_READ | PROT_WRITE, fixed | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) != MAP_FAILED);
	CHECK(!madvise((void *)words, base + size - words, MADV_WIPEONFORK));
	switch (*mode) {
	case 'r': registers(); break;
	case 't': threads(); break;
	case 'm': memory(); break;
	case 'f': forked(words, base + size - words); break;
	case 's': speed(); break;
	}
	CHECK(pwrite(fd, (void *)words, base + size - words, words - base) == (ssize_t)(base + size - words));
	return 0;
}
