/* Runs in strict seccomp mode: any call but read, write, exit and rt_sigreturn
 * kills it. It speaks the protocol of report.h without the rest of it. */
#include <linux/seccomp.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static uint64_t sum(void)
{
	uint64_t h = 1;
	for (int i = 0; i < 100000; i++)
		h = h * 6364136223846793005u + 1442695040888963407u;
	return h;
}

static void finish(int status)
{
	for (;;)
		syscall(SYS_exit, status);
}

int main(void)
{
	uint64_t expected = sum();
	int errors = 0, progress = 0;
	char c, text[200];

	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) == -1)
		return 2;
	if (write(1, "ready\n", 6) != 6)
		finish(3);
	for (;;) {
		int quit = 0;
		do {
			if (read(0, &c, 1) != 1)
				finish(3);
			quit |= c == 'q';
		} while (c != '\n');
		if (quit)
			finish(0);
		progress += 2;
		errors += sum() != expected;
		int n = snprintf(text, sizeof text, "{\"fixture\":\"strict\",\"errors\":%d,\"error\":\"a sum changed\",\"progress\":%d}\n", errors, progress);
		if (write(1, text, n) != n)
			finish(3);
	}
}
