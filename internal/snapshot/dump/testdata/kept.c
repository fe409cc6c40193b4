/* Has a little of all that is kept, tells where, and counts on. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static void on(int n) { (void)n; }
static volatile long counted;

static void *sleeper(void *arg)
{
	stack_t alt = {.ss_sp = arg, .ss_size = 1 << 16};
	sigaltstack(&alt, 0);
	prctl(PR_SET_NAME, "sleeper");
	prctl(PR_SET_TIMERSLACK, 77777);
	for (;;)
		pause();
}

int main(void)
{
	close_range(3, ~0U, 0); /* of whoever started the tests */
	sigset_t blocked;
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGRTMIN + 3);
	sigaddset(&blocked, SIGHUP);
	pthread_sigmask(SIG_BLOCK, &blocked, 0);
	char *alt = malloc(1 << 16);
	pthread_t t;
	pthread_create(&t, 0, sleeper, alt);
	umask(027);
	struct sigaction sa = {.sa_handler = on, .sa_flags = SA_RESTART | SA_ONSTACK};
	sigaddset(&sa.sa_mask, SIGUSR2);
	sigaction(SIGUSR1, &sa, 0);
	union sigval v = {.sival_int = 4711};
	sigqueue(getpid(), SIGRTMIN + 3, v);
	pthread_kill(pthread_self(), SIGHUP);
	struct itimerval it = {{500, 0}, {1000, 0}};
	setitimer(ITIMER_VIRTUAL, &it, 0);
	struct sigevent se = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1, .sigev_value.sival_int = 12};
	timer_t timer;
	timer_create(CLOCK_MONOTONIC, &se, &timer);
	struct itimerspec its = {{0, 0}, {5000, 0}};
	timer_settime(timer, 0, &its, 0);
	cpu_set_t cpus;
	CPU_ZERO(&cpus);
	CPU_SET(0, &cpus);
	sched_setaffinity(0, sizeof cpus, &cpus);
	setpriority(0, 0, 5);

	char *holes = mmap(0, 64 << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	holes[3 << 12] = 'a';
	holes[9 << 12] = 'b';
	mprotect(holes + (9 << 12), 1 << 12, PROT_NONE);
	char *shared = mmap(0, 4 << 12, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	shared[1 << 12] = 's';
	printf("{\"alt\":%lu,\"holes\":%lu,\"shared\":%lu,\"counted\":%lu}\n", (unsigned long)alt, (unsigned long)holes, (unsigned long)shared,
	       (unsigned long)&counted);
	fflush(stdout);
	for (;;) {
		counted++;
		struct timespec ms = {0, 1000000};
		nanosleep(&ms, 0);
	}
}
