// A program that is as it was started until SIGUSR1: then it has a child, by argument
// "child", or another current directory, by "directory".
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv) {
	sigset_t set;
	int got;
	close_range(3, ~0U, 0); // what a test runner may have left open
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	puts("ready");
	fflush(stdout);
	if (argc < 2 || sigwait(&set, &got) != 0)
		return 1;
	if (strcmp(argv[1], "child") == 0) {
		if (fork() == 0)
			for (;;)
				pause();
	} else if (chdir("/") != 0) {
		return 1;
	}
	puts("changed");
	fflush(stdout);
	for (;;)
		pause();
}
