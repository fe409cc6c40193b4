/*
 * huge.c: has private memory of huge pages: three of which the second is never touched, and
 * one that is not reserved and can only be read. Each connection to the port that its
 * argument names gets how many there were, counted in that memory, and 0 if all is there.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum { HUGE = 2 << 20, WORDS = HUGE / sizeof(long) };

static long *map(int pages, int flags)
{
	long *at = mmap(0, (size_t)pages * HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | flags, -1, 0);
	if (at == MAP_FAILED) {
		perror("mmap");
		exit(2);
	}
	return at;
}

int main(int argc, char **argv)
{
	long *a = map(3, 0), *b = map(1, MAP_NORESERVE), *end = a + 2 * WORDS;
	for (long i = 0; i < WORDS; i++) {
		a[i] = i * 77 + 1;
		b[i] = ~i;
	}
	if (argc != 2 || mprotect(b, HUGE, PROT_READ))
		return 3;
	int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 8))
		return 4;
	for (;;) {
		int c = accept(listener, 0, 0);
		long wrong = 0;
		for (long i = 0; i < WORDS; i++)
			wrong += (a[i] != i * 77 + 1) + (b[i] != ~i) + (i > 7 && end[i] != 0);
		end[7]++;
		char line[100];
		int n = snprintf(line, sizeof line, "%ld %ld\n", end[7], wrong);
		if (write(c, line, n) != n)
			return 5;
		close(c);
	}
}
