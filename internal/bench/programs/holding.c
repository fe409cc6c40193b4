/* holding THREADS MIB: has so many threads, and so much memory that it has written, and
 * counts. In a session of its own, with no descriptors but 0 to 2. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static volatile unsigned long counted;

static void *body(void *arg)
{
	struct timespec ms = {0, 1000000};
	for (;;) {
		if (!arg)
			counted++;
		nanosleep(&ms, 0);
	}
}

int main(int argc, char **argv)
{
	(void)argc;
	close_range(3, ~0U, 0);
	setsid();
	size_t size = (size_t)atol(argv[2]) << 20;
	unsigned *words = malloc(size + 1);
	for (size_t i = 0; i < size / sizeof *words; i++)
		words[i] = i * 2654435761u;
	for (long n = 1; n < atol(argv[1]); n++) {
		pthread_t t;
		if (pthread_create(&t, 0, body, argv))
			return 1;
	}
	puts("ready");
	fflush(stdout);
	close(1);
	open("/dev/null", O_RDWR);
	body(0);
}
