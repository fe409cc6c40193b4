/* Calls the guest library all the time and dies if an answer is wrong.
 *
 *   host             linked to libguest.so
 *   host open PATH   opens PATH by dlopen; closes it on SIGUSR1
 *   host lock        locks all its memory
 */
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static volatile sig_atomic_t close_it;
static void on_signal(int s) { close_it = s; }

#ifdef LINKED
int guest_work(int n);
#endif

int main(int argc, char **argv) {
	int (*work)(int) = NULL;
	void *handle = NULL;
#ifdef LINKED
	work = guest_work;
#endif
	signal(SIGUSR1, on_signal);
	if (argc == 3 && !strcmp(argv[1], "open")) {
		if (!(handle = dlopen(argv[2], RTLD_NOW))) return fprintf(stderr, "%s\n", dlerror()), 1;
		work = (int (*)(int))dlsym(handle, "guest_work");
	}
	if (argc == 2 && !strcmp(argv[1], "lock") && mlockall(MCL_CURRENT)) return perror("mlockall"), 1;
	int want[100];
	if (work)
		for (int i = 0; i < 100; i++) want[i] = work(i);
	puts("ready");
	fflush(stdout);
	for (unsigned n = 0;; n++) {
		if (work && work(n % 100) != want[n % 100]) abort();
		if (n % 1000 == 0) usleep(100);
		if (close_it && handle) {
			dlclose(handle);
			handle = NULL;
			work = NULL;
		}
	}
}
