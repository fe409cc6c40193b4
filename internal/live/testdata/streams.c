/* Serves one connection at a time of any address at a port: sends a stream of bytes and
   checks that what it receives is the same stream, from its begin, each at its place. */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static unsigned char at(uint64_t i) { return i ^ i >> 8 ^ i >> 16 ^ i >> 24; }

static void *sends(void *socket)
{
	static unsigned char b[60000];
	for (uint64_t n = 0;;) {
		for (size_t i = 0; i < sizeof b; i++)
			b[i] = at(n + i);
		for (size_t done = 0; done < sizeof b;) {
			struct pollfd p = {.fd = (int)(intptr_t)socket, .events = POLLOUT};
			if (poll(&p, 1, -1) != 1)
				_exit(4);
			ssize_t m = send(p.fd, b + done, sizeof b - done, MSG_NOSIGNAL | MSG_DONTWAIT);
			if (m < 0 && errno != EAGAIN)
				_exit(4);
			done += m > 0 ? m : 0;
		}
		n += sizeof b;
	}
	return 0;
}

int main(int argc, char **argv)
{
	(void)argc;
	struct sockaddr_in6 a = {.sin6_family = AF_INET6, .sin6_port = htons(atoi(argv[1])), .sin6_addr = in6addr_any};
	int s = socket(AF_INET6, SOCK_STREAM, 0), on = 1;
	setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	if (bind(s, (struct sockaddr *)&a, sizeof a) || listen(s, 1))
		return 2;
	int c = accept(s, 0, 0);
	pthread_t thread;
	if (c < 0 || pthread_create(&thread, 0, sends, (void *)(intptr_t)c))
		return 2;
	static unsigned char b[50000];
	for (uint64_t n = 0;;) {
		ssize_t m = read(c, b, sizeof b);
		if (m <= 0)
			return 3;
		for (ssize_t i = 0; i < m; i++)
			if (b[i] != at(n + i))
				return 5;
		n += m;
	}
}
