/* Calls the guest library all the time and dies if an answer is wrong.
 *
 *   host             linked to libguest.so
 *   host open PATH   opens PATH by dlopen; closes it on SIGUSR1
 *   host lock        locks all its memory
 *   host unseal      makes RELRO of libguest.so writable again
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
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

static int unseal(struct dl_phdr_info *info, size_t size, void *result) {
	(void)size;
	if (!strstr(info->dlpi_name, "libguest.so")) return 0;
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *h = &info->dlpi_phdr[i];
		if (h->p_type != PT_GNU_RELRO) continue;
		unsigned long start = (info->dlpi_addr + h->p_vaddr) & -4096UL;
		unsigned long end = (info->dlpi_addr + h->p_vaddr + h->p_memsz) & -4096UL;
		*(int *)result = mprotect((void *)start, end - start, PROT_READ | PROT_WRITE);
	}
	return 1;
}

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
	int unsealed = -1;
	if (argc == 2 && !strcmp(argv[1], "unseal") && (dl_iterate_phdr(unseal, &unsealed), unsealed)) return perror("mprotect"), 1;
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
