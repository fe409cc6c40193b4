/*
 * handles_leader.c: a program whose first thread has ended. Descriptor 7 is its
 * argument, open for appending.
 */
#include "report.h"

static void *serve(void *arg)
{
	sleep_ms(50); /* the first thread is a zombie by now */
	report_serve();
	return arg;
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
	int fd = must(open(argv[argc - 1], O_WRONLY | O_APPEND | O_CREAT, 0600), "open");
	must(dup2(fd, 7), "dup2");
	spawn(work, 0);
	spawn(serve, 0);
	pthread_exit(0);
}
