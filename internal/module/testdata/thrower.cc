/* Calls code that is put into its page from outside, as soon as it is told so:
 * an exception has to pass through it. Other threads throw and allocate.
 *
 *   thrower FILE     writes the address of the page to FILE
 *
 * The page: code, at 1024 an .eh_frame, at 2048 an object for libgcc, at 3072 the
 * word that tells to call, then that of exceptions that came through, then what it was last told.
 */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string>
#include <sys/mman.h>
#include <unistd.h>

static void toss() { throw 4711; }

static void *work(void *) {
	for (long n = 0;; n++) {
		try {
			std::string s(1 + n % 3000, 'x');
			if (n % 2) throw s;
		} catch (const std::string &s) {
			if (s.size() != size_t(1 + n % 3000)) abort();
		}
		if (n % 64 == 0) usleep(100);
	}
	return NULL;
}

int main(int argc, char **argv) {
	if (argc != 2) return 2;
	char *page = (char *)mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	volatile long *call = (volatile long *)(page + 3072), *through = call + 1, *told = call + 2;
	FILE *f = fopen(argv[1], "w");
	if (!f) return 1;
	fprintf(f, "%p\n", (void *)page);
	fclose(f);
	for (int i = 0; i < 4; i++) {
		pthread_t t;
		if (pthread_create(&t, NULL, work, NULL)) abort();
	}
	puts("ready");
	fflush(stdout);
	for (;;) {
		usleep(200);
		if (!(*told = *call)) continue;
		try {
			((void (*)(void (*)()))page)(toss);
			abort();
		} catch (int n) {
			if (n != 4711) abort();
			*through = *through + 1;
		}
	}
}
