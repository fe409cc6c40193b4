/*
 * clocks.c: answers each connection to the port that its argument names by what the
 * functions of the vDSO tell that it has found when it began: CLOCK_MONOTONIC in
 * nanoseconds, the time, that of gettimeofday, and by how much getcpu's CPU is wrong.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	void *vdso = dlopen("linux-vdso.so.1", RTLD_NOW | RTLD_NOLOAD);
	int (*clock)(clockid_t, struct timespec *) = dlsym(vdso, "__vdso_clock_gettime");
	int (*resolution)(clockid_t, struct timespec *) = dlsym(vdso, "__vdso_clock_getres");
	int (*day)(struct timeval *, void *) = dlsym(vdso, "__vdso_gettimeofday");
	time_t (*seconds)(time_t *) = dlsym(vdso, "__vdso_time");
	long (*getcpu)(unsigned *, unsigned *, void *) = dlsym(vdso, "__vdso_getcpu");
	if (argc != 2 || !clock || !resolution || !day || !seconds || !getcpu)
		return 2;
	cpu_set_t one;
	CPU_ZERO(&one);
	CPU_SET(0, &one);
	sched_setaffinity(0, sizeof one, &one);
	int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 8))
		return 3;
	for (;;) {
		int c = accept(listener, 0, 0);
		struct timespec now, least;
		struct timeval tv;
		unsigned cpu = 77;
		clock(CLOCK_MONOTONIC, &now);
		resolution(CLOCK_MONOTONIC, &least);
		day(&tv, 0);
		getcpu(&cpu, 0, 0);
		char line[200];
		int n = snprintf(line, sizeof line, "%ld %ld %ld %u %ld\n", now.tv_sec * 1000000000L + now.tv_nsec, (long)seconds(0), (long)tv.tv_sec, cpu, least.tv_nsec);
		if (write(c, line, n) != n)
			return 4;
		close(c);
	}
}
