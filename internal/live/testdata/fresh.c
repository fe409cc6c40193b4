/* The first process of fresh namespaces: makes their /proc and pseudo terminals, brings up
 * the loopback device, says "ready", waits for its children, and ends, with all that is in
 * them, when its standard input does. */
#define _GNU_SOURCE
#include <net/if.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <unistd.h>

int main(void)
{
	struct ifreq lo;
	char byte;
	int s;

	close_range(3, ~0U, 0);
	signal(SIGCHLD, SIG_IGN); /* nobody is waited for */
	memset(&lo, 0, sizeof lo);
	strcpy(lo.ifr_name, "lo");
	lo.ifr_flags = IFF_UP | IFF_RUNNING;
	s = socket(AF_INET, SOCK_DGRAM, 0);
	if (mount("", "/", "", MS_REC | MS_PRIVATE, "") || mount("proc", "/proc", "proc", 0, "") ||
	    mount("devpts", "/dev/pts", "devpts", 0, "newinstance,ptmxmode=0666,mode=0620") ||
	    mount("/dev/pts/ptmx", "/dev/ptmx", "", MS_BIND, "") ||
	    s < 0 || ioctl(s, SIOCSIFFLAGS, &lo) || close(s) || sethostname("fresh", 5) ||
	    write(1, "ready\n", 6) != 6) {
		perror("fresh namespaces");
		return 1;
	}
	while (read(0, &byte, 1) > 0)
		;
	return 0;
}
