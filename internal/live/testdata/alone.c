/* Runs a program in a session of its own, with no descriptors but 0 to 2, and interrupted by
 * what a shell makes its background ignore. */
#define _GNU_SOURCE
#include <signal.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	(void)argc;
	close_range(3, ~0U, 0);
	setsid();
	signal(SIGINT, SIG_DFL);
	signal(SIGQUIT, SIG_DFL);
	execvp(argv[1], argv + 1);
	return 127;
}
