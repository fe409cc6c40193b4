/* A program that dies (abort) as soon as anything is not as it should be:
 * vector and general registers, the red zone, the signal mask, the stack below
 * small stacks, results of system calls. A tracer that does harm kills it.
 *
 *   steady THREADS MODE    MODE: spin, wait or mixed
 *
 * With STEADY_EINTR=fatal in the environment an EINTR is harm, too. To the file
 * STEADY_CALLEES it writes the addresses of functions to be called from outside.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <poll.h>
#include <time.h>
#include <unistd.h>
#include <ucontext.h>

static int eintr_fatal;

static void fail(const char *what) {
	dprintf(2, "steady: %s: %s\n", what, strerror(errno));
	abort();
}

static void check_mask(void) {
	sigset_t now;
	if (pthread_sigmask(SIG_SETMASK, NULL, &now)) fail("mask");
	for (int s = 1; s < 32; s++)
		if (sigismember(&now, s) != (s == SIGUSR2)) fail("the signal mask changed");
}

/* Fills registers with a pattern, spins, and compares, all within one asm
 * block; 64 bytes of the red zone are used as a leaf function would. */
static void spin(uint64_t seed) {
	uint64_t pattern[4] = {seed, ~seed, seed * 3, seed ^ 0x5555555555555555};
	uint64_t bad;
	__asm__ volatile(
		"vmovdqu (%[p]), %%ymm0\n vmovdqu (%[p]), %%ymm7\n vmovdqu (%[p]), %%ymm15\n"
		"movq (%[p]), %%r12\n movq 8(%[p]), %%r13\n movq (%[p]), %%r8\n movq 8(%[p]), %%r11\n"
		"movq %%r12, -8(%%rsp)\n movq %%r13, -64(%%rsp)\n movq %%r12, -128(%%rsp)\n"
		"movq $20000, %%rcx\n"
		"1: subq $1, %%rcx\n jnz 1b\n"
		"xorq %[bad], %[bad]\n"
		"cmpq %%r12, -8(%%rsp)\n jne 2f\n cmpq %%r13, -64(%%rsp)\n jne 2f\n cmpq %%r12, -128(%%rsp)\n jne 2f\n"
		"cmpq %%r12, %%r8\n jne 2f\n cmpq %%r13, %%r11\n jne 2f\n cmpq %%r12, (%[p])\n jne 2f\n"
		"vmovdqu (%[p]), %%ymm1\n"
		"vpcmpeqb %%ymm0, %%ymm1, %%ymm2\n vpmovmskb %%ymm2, %%r8d\n cmpl $-1, %%r8d\n jne 2f\n"
		"vpcmpeqb %%ymm7, %%ymm1, %%ymm2\n vpmovmskb %%ymm2, %%r8d\n cmpl $-1, %%r8d\n jne 2f\n"
		"vpcmpeqb %%ymm15, %%ymm1, %%ymm2\n vpmovmskb %%ymm2, %%r8d\n cmpl $-1, %%r8d\n jne 2f\n"
		"jmp 3f\n"
		"2: movq $1, %[bad]\n"
		"3: vzeroupper\n"
		: [bad] "=&r"(bad)
		: [p] "r"(pattern)
		: "rcx", "r8", "r11", "r12", "r13", "ymm0", "ymm1", "ymm2", "ymm7", "ymm15", "memory", "cc");
	if (bad) fail("registers or red zone changed");
}

static int wait_epoll(void) {
	static __thread int e;
	if (!e && (e = epoll_create1(0)) < 0) fail("epoll_create1");
	struct epoll_event ev;
	return epoll_wait(e, &ev, 1, 3);
}
static int wait_ppoll(void) {
	struct timespec t = {0, 3000000};
	sigset_t none;
	sigemptyset(&none);
	return ppoll(NULL, 0, &t, &none);
}
static int wait_nanosleep(void) {
	struct timespec t = {0, 3000000};
	return nanosleep(&t, NULL);
}
static int wait_sem(void) {
	static __thread int id = -1;
	if (id < 0) {
		if ((id = semget(IPC_PRIVATE, 1, 0600)) < 0) fail("semget");
	}
	struct sembuf op = {0, -1, 0};
	struct timespec t = {0, 3000000};
	int r = semtimedop(id, &op, 1, &t);
	return r < 0 && errno == EAGAIN ? 0 : r;
}
static int wait_receive(void) {
	static __thread int s[2];
	if (!s[0]) {
		if (socketpair(AF_UNIX, SOCK_STREAM, 0, s)) fail("socketpair");
		struct timeval t = {0, 3000};
		if (setsockopt(s[0], SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t)) fail("setsockopt");
	}
	char b;
	int r = recv(s[0], &b, 1, 0);
	return r < 0 && errno == EAGAIN ? 0 : r;
}
static int wait_signal(void) {
	sigset_t s;
	sigemptyset(&s);
	sigaddset(&s, SIGUSR2);
	struct timespec t = {0, 3000000};
	int r = sigtimedwait(&s, NULL, &t);
	return r < 0 && errno == EAGAIN ? 0 : r;
}

static int (*const waits[])(void) = {wait_epoll, wait_ppoll, wait_nanosleep, wait_sem, wait_receive, wait_signal};

/* A coroutine on 4 KiB of stack between canaries: what lies below its stack
 * pointer is not the tracer's. */
static void coroutine_body(void) {
	for (int i = 0; i < 20; i++) spin(i);
}
enum { size = 8192, guard = 8192 };
static __thread unsigned char *area;
static void coroutine(void) {
	memset(area, 0xa5, guard + size + guard);
	ucontext_t here, there;
	if (getcontext(&there)) fail("getcontext");
	there.uc_stack.ss_sp = area + guard;
	there.uc_stack.ss_size = size;
	there.uc_link = &here;
	makecontext(&there, coroutine_body, 0);
	if (swapcontext(&here, &there)) fail("swapcontext");
	for (int i = 0; i < guard; i++)
		if (area[i] != 0xa5 || area[guard + size + i] != 0xa5) fail("memory beside a small stack changed");
}

/* Functions that a tracer calls. */
static long callee_weigh(long a, long b, long c, long d, long e, const char *text) {
	volatile unsigned char room[200 << 10];
	__attribute__((aligned(32))) volatile uint64_t aligned[4] = {1, 2, 3, 4};
	if ((uintptr_t)aligned % 32) fail("the stack of a function");
	__asm__ volatile("vmovdqa %0, %%ymm7\n vmovdqa %0, %%ymm0\n vmovdqa %0, %%ymm15\n fldpi\n fstp %%st(0)"
		: : "m"(aligned) : "ymm0", "ymm7", "ymm15", "memory");
	memset((void *)room, 1, sizeof room);
	errno = 1234;
	return a + 2 * b + 3 * c + 4 * d + 5 * e + (long)strlen(text) * 1000 + room[77] - 1;
}
static long callee_sleep(long microseconds) {
	struct timespec t = {microseconds / 1000000, microseconds % 1000000 * 1000};
	while (nanosleep(&t, &t))
		if (errno != EINTR) fail("nanosleep in a function");
	return microseconds;
}
static long *volatile nowhere = (long *)8;
static long callee_fault(void) { return *nowhere; }

static void write_callees(void) {
	const char *path = getenv("STEADY_CALLEES");
	if (!path) return;
	FILE *f = fopen(path, "w");
	if (!f) fail(path);
	fprintf(f, "%p %p %p %p\n", (void *)callee_weigh, (void *)callee_sleep, (void *)callee_fault, (void *)__errno_location);
	fclose(f);
}

static pthread_barrier_t set_up;

/* After this a thread allocates nothing: what is mapped stays as it is. */
static void prepare(void) {
	if (!(area = malloc(guard + size + guard))) fail("malloc");
	memset(area, 0, guard + size + guard);
	pthread_barrier_wait(&set_up);
}

static void *thread(void *arg) {
	long id = (long)arg & 0xffff;
	int mode = (long)arg >> 16;
	if (id) prepare();
	for (uint64_t n = id;; n++) {
		int waiting = mode == 2 ? (n & 1) : mode;
		errno = 4711;
		if (waiting) {
			int r = waits[n % (sizeof waits / sizeof *waits)]();
			if (r < 0 && (errno != EINTR || eintr_fatal)) fail("a wait");
		} else if (n % 16 == 0) {
			coroutine();
		} else {
			spin(n);
		}
		if (!waiting && errno != 4711) fail("errno changed");
		check_mask();
	}
	return NULL;
}

int main(int argc, char **argv) {
	if (argc != 3) return 2;
	long threads = atol(argv[1]);
	long mode = !strcmp(argv[2], "spin") ? 0 : !strcmp(argv[2], "wait") ? 1 : 2;
	const char *e = getenv("STEADY_EINTR");
	eintr_fatal = e && !strcmp(e, "fatal");
	sigset_t block;
	sigemptyset(&block);
	sigaddset(&block, SIGUSR2);
	if (pthread_sigmask(SIG_SETMASK, &block, NULL)) fail("mask");
	if (pthread_barrier_init(&set_up, NULL, threads)) fail("barrier");
	pthread_attr_t attr;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 64 << 10);
	for (long i = 1; i < threads; i++) {
		pthread_t t;
		if (pthread_create(&t, &attr, thread, (void *)(i | mode << 16))) fail("pthread_create");
	}
	write_callees();
	prepare();
	puts("ready");
	fflush(stdout);
	thread((void *)(mode << 16));
}
