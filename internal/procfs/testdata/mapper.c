// mapper maps a page of each file that it is given, and memory of every kind
// that has a name of its own, says so, and waits for the end of its input.
// With "-t" first its main thread ends, and another one does the waiting.
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <unistd.h>

static void *wait_for_end(void *unused)
{
	char c;
	usleep(20000); // the main thread is to be gone
	puts("ready");
	fflush(stdout);
	while (read(0, &c, 1) > 0)
		;
	exit(0);
	return unused;
}

int main(int argc, char **argv)
{
	int first = 1, threads = argc > 1 && strcmp(argv[1], "-t") == 0;
	for (int i = first + threads; i < argc; i++) {
		int fd = open(argv[i], O_RDONLY);
		if (fd < 0 || mmap(0, 4096, PROT_READ, MAP_PRIVATE, fd, 0) == MAP_FAILED) {
			perror(argv[i]);
			return 1;
		}
		close(fd);
	}
	int fd = memfd_create("a\n[heap]", 0);
	if (ftruncate(fd, 4096) || mmap(0, 4096, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED)
		return 1;
	mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int shm = shmget(IPC_PRIVATE, 4096, 0600);
	shmat(shm, 0, 0);
	shmctl(shm, IPC_RMID, 0);
	// Six pages of which the second is written and the fourth only read.
	char *anonymous = mmap((void *)0x200000000000, 6 * 4096, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	if (anonymous == MAP_FAILED)
		return 1;
	madvise(anonymous, 6 * 4096, MADV_NOHUGEPAGE);
	prctl(0x53564d41 /* PR_SET_VMA */, 0, anonymous, 6 * 4096, "six pages");
	anonymous[4096] = 1;
	*(volatile char *)(anonymous + 3 * 4096);
	prctl(PR_SET_NAME, "m) R 1\n(\\x");

	pthread_t thread;
	if (threads) {
		pthread_create(&thread, 0, wait_for_end, 0);
		pthread_exit(0);
	}
	wait_for_end(0);
}
