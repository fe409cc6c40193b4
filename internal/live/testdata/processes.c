/* Does what it reads on stdin, by lines, and answers: calls getppid 100 times (work),
 * executes itself (exec), starts children that call getppid 30 times and stay (fork) or
 * 5 times and end (vfork), runs itself, to an end or to stay (spawn, stay), and reaps
 * children (reap). */
#define _GNU_SOURCE
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CHILDREN = 20, STATUS = 33 };
extern char **environ;

static void call(int n)
{
	while (n-- > 0)
		getppid();
}

static void ended(pid_t child)
{
	int status;
	if (child < 0 || waitpid(child, &status, 0) != child || !WIFEXITED(status) || WEXITSTATUS(status) != STATUS)
		abort();
}

static pid_t run(const char *how)
{
	pid_t child;
	char *args[] = {"processes", (char *)how, NULL};
	if (posix_spawn(&child, "/proc/self/exe", NULL, NULL, args, environ))
		abort();
	return child;
}

static void stay(void)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	char line[80];
	if (argc > 1) {
		call(7);
		if (!strcmp(argv[1], "stay"))
			stay();
		return STATUS;
	}
	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof line, stdin)) {
		pid_t child = 0;
		if (!strcmp(line, "work\n")) {
			call(100);
		} else if (!strcmp(line, "exec\n")) {
			char *args[] = {"processes", NULL};
			execv("/proc/self/exe", args);
			abort();
		} else if (!strcmp(line, "fork\n")) {
			int ready[2];
			char c;
			if (pipe(ready) || (child = fork()) < 0)
				abort();
			if (child == 0) {
				call(30);
				if (write(ready[1], "", 1) != 1)
					abort();
				stay();
			}
			if (read(ready[0], &c, 1) != 1 || close(ready[0]) || close(ready[1]))
				abort();
		} else if (!strcmp(line, "vfork\n")) {
			for (int i = 0; i < CHILDREN; i++) {
				pid_t child = vfork();
				if (child == 0) {
					call(5);
					_exit(STATUS);
				}
				ended(child);
			}
		} else if (!strcmp(line, "spawn\n")) {
			for (int i = 0; i < CHILDREN; i++)
				ended(run("end"));
		} else if (!strcmp(line, "stay\n")) {
			child = run("stay");
		} else if (!strcmp(line, "reap\n")) {
			while (wait(NULL) > 0)
				child++;
		}
		printf("%d\n", child);
		fflush(stdout);
	}
}
