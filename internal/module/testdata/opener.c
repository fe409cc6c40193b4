/* Opens a library by dlopen and calls it, while other threads allocate memory and
 * open and close another library all the time. Dies if anything is wrong.
 *
 *   opener PATH OTHER THREADS     SIGUSR1: closes PATH and goes on calling it
 *                                 SIGUSR2: closes it and does not
 */
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *other;
static volatile sig_atomic_t close_it;
static void on_signal(int s) { close_it = s; }

static void allocate(unsigned *seed) {
	static __thread unsigned char *held[64];
	static __thread size_t length[64];
	unsigned i = rand_r(seed) % 64;
	if (held[i] && (held[i][0] != (unsigned char)i || held[i][length[i] - 1] != (unsigned char)i)) abort();
	free(held[i]);
	length[i] = 1 + rand_r(seed) % (rand_r(seed) % 16 ? 2000 : 200000);
	if (!(held[i] = malloc(length[i]))) abort();
	held[i][0] = held[i][length[i] - 1] = (unsigned char)i;
}

static void *work(void *arg) {
	unsigned seed = (unsigned)(size_t)arg;
	for (unsigned n = 0;; n++) {
		errno = 4711;
		for (int i = 0; i < 200; i++) allocate(&seed);
		if (errno != 4711) abort();
		if (n % 8 == seed % 8) {
			void *h = dlopen(other, RTLD_NOW);
			if (!h || !dlsym(h, "guest_work")) abort();
			if (dlclose(h)) abort();
		}
		if (n % 16 == 0) usleep(200);
	}
	return NULL;
}

int main(int argc, char **argv) {
	if (argc != 4) return 2;
	other = argv[2];
	signal(SIGUSR1, on_signal);
	signal(SIGUSR2, on_signal);
	void *handle = dlopen(argv[1], RTLD_NOW);
	if (!handle) return fprintf(stderr, "%s\n", dlerror()), 1;
	int (*guest)(int) = (int (*)(int))dlsym(handle, "guest_work");
	int want[100];
	for (int i = 0; i < 100; i++) want[i] = guest(i);
	for (long i = 1; i <= atoi(argv[3]); i++) {
		pthread_t t;
		if (pthread_create(&t, NULL, work, (void *)i)) abort();
	}
	puts("ready");
	fflush(stdout);
	unsigned seed = 1;
	for (unsigned n = 0;; n++) {
		if (guest && guest(n % 100) != want[n % 100]) abort();
		allocate(&seed);
		if (atoi(argv[3]) && n % 100 == 0) usleep(500);
		if (close_it && handle) {
			if (dlclose(handle)) abort();
			handle = NULL;
			if (close_it == SIGUSR2) guest = NULL;
		}
	}
}
