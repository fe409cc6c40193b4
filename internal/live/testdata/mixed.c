/* Calls libmixed.so (mixed_lib.c) all the time, from two threads, and knows what
 * each build has to answer.
 *
 *   mixed [farewell=FILE] [killed] [late] [brief] [write] [stay] [churn] [open=FILE] [fork] [seccomp] [files] [memory] [lock] [busy=N] [wait=N] [signal]
 *
 * "killed" allows for initial values of another build, as vOS may be killed before
 * it comes to calls.
 *
 * SIGUSR1  is the next step: calls what was not called yet, closes or opens the
 *          library, makes a child, lets the threads that wait go on, changes
 *          a variable of the library
 */
#include "report.h"
#include <dlfcn.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>

typedef long operation(long);
#define FUNCTIONS(F) \
	F(int, mixed_build, void) F(int, mixed_again, void) F(int, mixed_third, void) F(long, mixed_calls, void) \
	F(long, mixed_seed, long) F(long, mixed_untouched, void) F(void, mixed_do_not, long) F(long, mixed_touched, void) \
	F(void, mixed_touch, long) F(const char *, mixed_words, void) F(long, mixed_peek, void) F(void, mixed_poke, long) \
	F(long, mixed_here, void) F(void, mixed_name, const char *) F(const char *, mixed_named, void) \
	F(operation *, mixed_operation, int) F(int, mixed_is_own, operation *) F(void, mixed_choose, operation *) \
	F(long, mixed_run, long) F(long, mixed_last, void) F(void *, mixed_self, void) F(int, mixed_give, operation *) \
	F(long, mixed_take, int, long) F(const char *, mixed_text, void) F(long, mixed_square, int) \
	F(const char *, mixed_case, int) F(long, mixed_push, long) F(long, mixed_sum, void) F(void, mixed_double, void) \
	F(void, mixed_drop, void) F(int, mixed_late, void) F(int, mixed_wait, int) F(unsigned long, mixed_busy, unsigned) \
	F(void, mixed_farewell, const char *) F(long, mixed_brief, long) F(void, mixed_write, int, char)

#ifdef OPENED
#define DECLARE(type, name, ...) static type (*name)(__VA_ARGS__);
FUNCTIONS(DECLARE)
static void *handle;
static const char *library;
static void open_library(void)
{
	if (!(handle = dlopen(library, RTLD_NOW | RTLD_LOCAL))) {
		fprintf(stderr, "%s\n", dlerror());
		_exit(2);
	}
#define FIND(type, name, ...) if (!(name = (type (*)(__VA_ARGS__))dlsym(handle, #name))) wrong("no %s", #name);
	FUNCTIONS(FIND)
}
static long *object(void) { return dlsym(handle, "mixed_object"); }
#else
#define DECLARE(type, name, ...) type name(__VA_ARGS__);
FUNCTIONS(DECLARE)
extern long mixed_object;
static long *object(void) { return &mixed_object; }
#endif

static struct counter *build, *again, *third, *steps, *late, *untouched, *touched, *words, *child_build, *child_works, *child_errors,
	*waited, *went, *busy_build[4], *handled, *brief;
static volatile sig_atomic_t step;
static int may_late, may_fork, may_be_killed, may_brief, may_write;
static operation *taken[2], *mine;
static long called, seeded, pushed, named;
static int number;
static struct shared { long build, works, errors; char error[200]; } *shared;

static void on_step(int s) { (void)s; step++; }
static long callback(long n) { return n * 3; }

static void expect(long got, long want, const char *what)
{
	if (got != want)
		wrong("%s: %ld, not %ld (build %d)", what, got, want, mixed_build());
}
static void expect_text(const char *got, const char *want, const char *what)
{
	if (strcmp(got, want))
		wrong("%s: %s, not %s", what, got, want);
}

/* Called again after an answer of another build. */
static int steady(int b) { return mixed_build() == b && mixed_again() == b; }

static void set_up(void)
{
	taken[0] = mixed_operation(0), taken[1] = mixed_operation(1);
	mine = callback;
	number = mixed_give(mine);
	mixed_touch(333);
	mixed_name("kept by the library");
	mixed_choose(taken[1]);
	seeded = mixed_seed(0);
	called = mixed_calls();
	for (long i = 1; i <= 50; i++)
		pushed += mixed_push(i);
	*object() = 4711;
}

static void work(void)
{
	int b = mixed_build();
	expect(mixed_calls(), ++called, "calls counted by the library");
	expect(mixed_seed(2), seeded += 2, "a variable with an initial value");
	expect(mixed_touched(), 333, "a value that the program set");
	expect_text(mixed_named(), "kept by the library", "text");
	++*object();
	expect(mixed_peek(), *object(), "the exported object");
	mixed_poke(*object() + 5);
	expect(mixed_peek(), *object(), "the exported object, set by the library");
	expect(mixed_operation(0) == taken[0] && mixed_operation(1) == taken[1], 1, "the address of a static function");
	expect(mixed_is_own(taken[0]) && mixed_is_own(taken[1]) && !mixed_is_own(mine), 1, "the library knows its functions");
	expect(mixed_give(mine), number, "the library knows the callback");
	expect(mixed_sum(), pushed, "a list in the heap");
#ifndef OPENED
	expect(mixed_self() == (void *)mixed_build, 1, "the address of an exported function");
#else
	expect(mixed_self() == dlsym(handle, "mixed_build"), 1, "the address of an exported function");
#endif
	expect(mixed_square(5), 25, "a constant");
	expect_text(mixed_case(6), "six", "a constant text");
	static const char *const texts[] = {"", "the first build", "a second build, with more to say", "3rd"};
	long run = mixed_run(7), first = taken[0](1), take = mixed_take(number, 5), square = mixed_square(7), last = mixed_last();
	long initial = mixed_untouched();
	const char *text = mixed_text();
	char copy[7] = {0};
	strncpy(copy, mixed_words(), 6);
	if (steady(b)) { /* no other build took over in between */
		expect(run, b * 100 - 7, "a function by a pointer in data");
		expect(last, run, "the answer that the library kept");
		expect(first, b * 100 + 1, "a static function by a pointer of the program");
		expect(take, 15 + b, "the program's callback");
		expect(square, 100 * b, "a changed constant");
		expect_text(text, texts[b], "a changed text");
		if (!may_be_killed)
			expect(initial, 10 * b, "an initial value");
		if (!may_be_killed && copy[5] != '0' + b)
			wrong("a long initial value: %s of build %d", copy, b);
	}
	progressed();
}

static void *other_thread(void *unused)
{
	(void)unused;
	for (long n = mixed_here();; n++) {
		sleep_ms(1);
		expect(mixed_here(), n + 1, "a variable of the thread");
	}
}

static void *busy_thread(void *unused)
{
	(void)unused;
	for (;;) {
		unsigned long r = mixed_busy(20000);
		if (r % 10 < 4)
			bump(busy_build[r % 10]);
		if (r - r % 10 != (mixed_busy(20000) / 10) * 10)
			wrong("a busy thread: %lu", r);
		progressed();
	}
}

/* Threads that come, call the library for the first time, and go. */
static void *fleeting_thread(void *unused)
{
	expect(mixed_here(), 8, "a variable of a new thread");
	mixed_busy(100);
	expect(mixed_here(), 9, "a variable of a new thread");
	return unused;
}
static void *churning_thread(void *unused)
{
	for (;;) {
		pthread_t t[4];
		for (int i = 0; i < 4; i++)
			t[i] = spawn(fleeting_thread, unused);
		for (int i = 0; i < 4; i++)
			pthread_join(t[i], 0);
		progressed();
	}
}

static int gate[2];
static void *waiting_thread(void *unused)
{
	(void)unused;
	bump(waited);
	expect(mixed_wait(gate[0]), 1, "the build in which a thread waited");
	bump(went);
	return 0;
}

/* A handler that interrupted the library, and stays. */
static void on_timer(int s)
{
	(void)s;
	bump(handled);
	int e = errno, b = mixed_build();
	usleep(300);
	(void)b;
	errno = e;
}
static void *interrupted_thread(void *unused)
{
	(void)unused;
	sigset_t s;
	sigemptyset(&s);
	sigaddset(&s, SIGALRM);
	pthread_sigmask(SIG_UNBLOCK, &s, 0);
	unsigned long right = mixed_busy(50000) / 10;
	for (;;)
		if (mixed_busy(50000) / 10 != right)
			wrong("a thread that is interrupted");
}

static void child(void)
{
	signal(SIGUSR1, SIG_IGN);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;) {
		work();
		shared->build = mixed_build();
		shared->works++;
		shared->errors = report_errors;
		memcpy(shared->error, report_error, sizeof shared->error);
		sleep_ms(1);
	}
}

#ifdef OPENED
static pthread_mutex_t in_use = PTHREAD_MUTEX_INITIALIZER; /* of handle, by who is not the worker */
#endif

static void do_step(void)
{
#ifdef OPENED
	pthread_mutex_lock(&in_use);
	if (handle) {
		dlclose(handle);
		handle = 0;
	} else {
		open_library();
		if (!mixed_named()[0])
			pushed = 0, set_up(); /* it is a new copy */
	}
	pthread_mutex_unlock(&in_use);
	return;
#endif
	if (may_brief)
		brief->n = mixed_brief(7);
	if (may_write)
		mixed_write(0, 'B');
	if (may_late)
		late->n = mixed_late();
	if (may_fork) {
		pid_t p = fork();
		if (p == 0)
			child();
		must(p, "fork");
	}
	if (gate[1])
		for (long i = 0; i < waited->n; i++)
			if (write(gate[1], "g", 1) != 1)
				wrong("write");
}

static void *worker(void *unused)
{
	(void)unused;
	int seen = 0;
	for (;;) {
#ifdef OPENED
		if (handle)
#endif
			work();
		if (seen != step)
			seen++, do_step(), bump(steps);
		usleep(200);
	}
}

static void before_report(void)
{
	child_build->n = shared->build, child_works->n = shared->works, child_errors->n = shared->errors;
	if (shared->errors)
		wrong("child: %s", shared->error);
#ifdef OPENED
	pthread_mutex_lock(&in_use); /* the worker may be about to close it */
	if (handle)
#endif
	{
		build->n = mixed_build(), again->n = mixed_again(), third->n = mixed_third();
		untouched->n = mixed_untouched(), touched->n = mixed_touched(), words->n = mixed_words()[5] - '0';
	}
#ifdef OPENED
	pthread_mutex_unlock(&in_use);
#endif
}
static void at_quit(void) { exit(0); }

static void forbid(int number)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)number, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {sizeof code / sizeof *code, code};
	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
	must(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), "seccomp");
}

int main(int argc, char **argv)
{
	build = counter("build"), again = counter("again"), third = counter("third"), steps = counter("steps"), late = counter("late");
	untouched = counter("untouched"), touched = counter("touched"), words = counter("words"), waited = counter("waited"), went = counter("went");
	child_build = counter("child.build"), child_works = counter("child.works"), child_errors = counter("child.errors");
	handled = counter("handled"), brief = counter("brief");
	busy_build[0] = counter("busy.0"), busy_build[1] = counter("busy.1"), busy_build[2] = counter("busy.2"), busy_build[3] = counter("busy.3");
	shared = mmap(0, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	report_before = before_report;
	report_at_quit = at_quit;
	struct sigaction a = {.sa_handler = on_step, .sa_flags = SA_RESTART};
	sigaction(SIGUSR1, &a, 0);
#ifdef OPENED
	for (int i = 1; i < argc; i++)
		if (!strncmp(argv[i], "open=", 5))
			library = argv[i] + 5;
	open_library();
#endif
	for (int i = 1; i < argc; i++)
		may_be_killed |= !strcmp(argv[i], "killed");
	set_up();
	/* Signals are for the worker, which is the one that has them not blocked. */
	sigset_t s;
	sigemptyset(&s);
	sigaddset(&s, SIGALRM);
	pthread_sigmask(SIG_BLOCK, &s, 0);
	spawn(worker, 0);
	sigaddset(&s, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &s, 0);
#ifndef OPENED
	spawn(other_thread, 0);
#endif
	for (int i = 1; i < argc; i++) {
		const char *value = strchr(argv[i], '=');
		if (!strncmp(argv[i], "farewell=", 9))
			mixed_farewell(value + 1);
		else if (!strcmp(argv[i], "brief"))
			may_brief = 1;
		else if (!strcmp(argv[i], "write"))
			may_write = may_be_killed = 1;
		else if (!strcmp(argv[i], "stay"))
			spawn(other_thread, 0);
		else if (!strcmp(argv[i], "churn"))
			spawn(churning_thread, 0);
		else if (!strcmp(argv[i], "late"))
			may_late = 1;
		else if (!strcmp(argv[i], "fork"))
			may_fork = 1;
		else if (!strcmp(argv[i], "seccomp"))
			forbid(SYS_memfd_create);
		else if (!strcmp(argv[i], "lock"))
			must(mlockall(MCL_CURRENT | MCL_FUTURE), "mlockall");
		else if (!strcmp(argv[i], "signal")) {
			struct sigaction t = {.sa_handler = on_timer, .sa_flags = SA_RESTART};
			sigaction(SIGALRM, &t, 0);
			spawn(interrupted_thread, 0);
			struct itimerval every = {{0, 500}, {0, 500}};
			must(setitimer(ITIMER_REAL, &every, 0), "setitimer");
		} else if (!strncmp(argv[i], "busy=", 5)) {
			for (int n = atoi(value + 1); n > 0; n--)
				spawn(busy_thread, 0);
		} else if (!strncmp(argv[i], "wait=", 5)) {
			must(pipe(gate), "pipe");
			for (int n = atoi(value + 1); n > 0; n--)
				spawn(waiting_thread, 0);
		} else if (!strcmp(argv[i], "files")) {
			struct rlimit r = {64, 64};
			must(setrlimit(RLIMIT_NOFILE, &r), "setrlimit");
			while (dup(1) != -1)
				;
		} else if (!strcmp(argv[i], "memory")) {
			sleep_ms(300); /* threads make their arenas */
			long pages = 0;
			FILE *f = fopen("/proc/self/statm", "r");
			if (!f || fscanf(f, "%ld", &pages) != 1)
				return 2;
			fclose(f);
			struct rlimit r = {(rlim_t)pages * 4096, (rlim_t)pages * 4096};
			must(setrlimit(RLIMIT_AS, &r), "setrlimit");
		}
	}
	report_serve();
}
