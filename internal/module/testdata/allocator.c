/* Its only thread allocates and frees memory all the time.
 *
 *   allocator signals    with a timer, whose handler takes most of the time
 *   allocator handler    within a handler
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

static volatile unsigned long turns;
static void on_signal(int s) {
	for (int i = 0; i < 300000 || s == SIGUSR1; i++) turns++;
}

int main(int argc, char **argv) {
	static unsigned char *held[256];
	if (argc > 1 && !strcmp(argv[1], "signals")) {
		struct itimerval every = {{0, 1000}, {0, 1000}};
		signal(SIGALRM, on_signal);
		if (setitimer(ITIMER_REAL, &every, NULL)) return 1;
	}
	puts("ready");
	fflush(stdout);
	if (argc > 1 && !strcmp(argv[1], "handler")) {
		signal(SIGUSR1, on_signal);
		raise(SIGUSR1);
	}
	for (unsigned n = 0;; n++) {
		unsigned i = n * 2654435761u >> 24;
		if (held[i] && *held[i] != (unsigned char)i) abort();
		free(held[i]);
		if (!(held[i] = malloc(1 + (n * 40503u >> 4) % 100000))) abort();
		*held[i] = (unsigned char)i;
	}
}
