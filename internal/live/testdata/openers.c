/* Three libraries, by a macro each, and a program that has them open descriptors and
 * keep them. For "open" it says FD:MODULE of each that they opened; for "again" they
 * do it once more, and for "dup" it duplicates one itself, 1000 times. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define MOST 16

#ifdef FILES
void files_open(int *fds)
{
	char name[] = "/tmp/vos-openers-XXXXXX";
	*fds++ = open("/etc/passwd", O_RDONLY | O_CLOEXEC);
	*fds++ = fileno(fopen("/etc/group", "r"));
	*fds++ = dirfd(opendir("/etc"));
	*fds = mkstemp(name);
	unlink(name);
}
#endif

#ifdef SOCKETS
void sockets_open(int *fds)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof a;
	int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
	if (bind(listener, (struct sockaddr *)&a, size) || listen(listener, 1) || getsockname(listener, (struct sockaddr *)&a, &size) ||
	    connect(client, (struct sockaddr *)&a, size) || socketpair(AF_UNIX, SOCK_DGRAM, 0, fds) || pipe(fds + 2))
		abort();
	fds[4] = listener;
	fds[5] = client;
	fds[6] = accept(listener, NULL, NULL);
}
#endif

#ifdef EVENTS
void events_open(int *fds)
{
	sigset_t s;
	sigemptyset(&s);
	sigaddset(&s, SIGUSR1);
	*fds++ = epoll_create1(EPOLL_CLOEXEC);
	*fds++ = eventfd(0, 0);
	*fds++ = timerfd_create(CLOCK_MONOTONIC, 0);
	*fds++ = signalfd(-1, &s, 0);
	*fds++ = inotify_init1(0);
	*fds = memfd_create("events", 0);
}
#endif

#if !defined FILES && !defined SOCKETS && !defined EVENTS
void files_open(int *), sockets_open(int *), events_open(int *);

int main(void)
{
	char line[80];
	static const char *names[] = {"libfiles.so", "libsockets.so", "libevents.so"};
	void (*libraries[])(int *) = {files_open, sockets_open, events_open};
	printf("ready\n");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		if (!strcmp(line, "dup\n"))
			for (int i = 0; i < 1000; i++)
				if (close(dup(1)))
					abort();
		for (int i = 0; i < 3 && strcmp(line, "dup\n"); i++) {
			int fds[MOST];
			memset(fds, 0xff, sizeof fds);
			libraries[i](fds);
			for (int n = 0; n < MOST && fds[n] >= 0; n++)
				printf("%d:%s ", fds[n], names[i]);
		}
		printf("\n");
		fflush(stdout);
	}
}
#endif
