/* Has something that is not kept: which one is its argument. It says "ready", or what it
 * can't have. */
#define _GNU_SOURCE
#include <linux/aio_abi.h>
#include <linux/io_uring.h>
#include <linux/keyctl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int is(const char *a, const char *b) { return !strcmp(a, b); }

static void must(int ok, const char *what)
{
	if (!ok) {
		perror(what);
		exit(1);
	}
}

static void *waits(void *rights)
{
	if (rights)
		must(!syscall(SYS_setresuid, -1, 65534, -1), "another user");
	puts("ready");
	for (;;)
		pause();
}

static int shares(void *arg)
{
	(void)arg;
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	const char *kind = argv[argc - 1];
	pthread_t t;
	setvbuf(stdout, 0, _IOLBF, 0);
	close_range(3, ~0U, 0);
	char *some = mmap(0, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (is(kind, "asynchronous I/O")) {
		aio_context_t context = 0;
		must(!syscall(SYS_io_setup, 8, &context), "io_setup");
	} else if (is(kind, "userfaultfd")) {
		int fd = syscall(SYS_userfaultfd, 0);
		struct uffdio_api api = {.api = UFFD_API};
		struct uffdio_register r = {{(unsigned long)some, 1 << 16}, UFFDIO_REGISTER_MODE_MISSING, 0};
		must(fd >= 0 && !ioctl(fd, UFFDIO_API, &api) && !ioctl(fd, UFFDIO_REGISTER, &r), "userfaultfd");
	} else if (is(kind, "a ring")) {
		struct io_uring_params p = {0};
		int fd = syscall(SYS_io_uring_setup, 4, &p);
		must(fd >= 0 && mmap(0, 4096, PROT_READ, MAP_SHARED, fd, IORING_OFF_SQ_RING) != MAP_FAILED, "io_uring");
	} else if (is(kind, "memory of two processes")) {
		must(clone(shares, some + (1 << 16), CLONE_VM | SIGCHLD, 0) > 0, "clone");
	} else if (is(kind, "memory of a stranger")) {
		int status;
		must(mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0) != MAP_FAILED, "mmap");
		pid_t child = fork();
		if (!child && !fork())
			shares(0);
		if (!child)
			_exit(0);
		must(waitpid(child, &status, 0) == child, "wait");
	} else if (is(kind, "rights of a thread")) {
		must(!pthread_create(&t, 0, waits, some), "a thread");
		pthread_join(t, 0);
	} else if (is(kind, "no main thread")) {
		must(!pthread_create(&t, 0, waits, 0), "a thread");
		pthread_exit(0);
	} else if (is(kind, "keys of its own")) {
		must(syscall(SYS_add_key, "user", "vos-test", "secret", 6, KEY_SPEC_PROCESS_KEYRING) > 0, "add_key");
	} else if (is(kind, "keys of its thread")) {
		must(syscall(SYS_add_key, "user", "vos-test", "secret", 6, KEY_SPEC_THREAD_KEYRING) > 0, "add_key");
	}
	puts("ready");
	for (;;)
		pause();
}
