/*
 * vfork.c FIFO: the main thread waits in vfork, where nothing can stop it, until
 * somebody has opened FIFO for writing and closed it again. Another thread
 * computes and reports.
 */
#include "report.h"

#include <sys/wait.h>

static struct counter *children;

static void *serve(void *arg)
{
	(void)arg;
	report_serve();
}

static void *work(void *arg)
{
	for (;;) {
		progressed();
		sleep_ms(1);
	}
	return arg;
}

int main(int argc, char **argv)
{
	char c;
	int status = 0;

	children = counter("children");
	if (argc != 2)
		return 2;
	spawn(work, 0);
	spawn(serve, 0);
	pid_t child = vfork();
	if (child == 0) {
		int fd = open(argv[1], O_RDONLY);
		while (read(fd, &c, 1) > 0)
			;
		_exit(33);
	}
	if (waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != 33)
		wrong("the child ended with status %x", status);
	bump(children);
	for (;;)
		pause();
}
