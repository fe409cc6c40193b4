/* within.c: N threads that are in lib.c all the time, or (blocked) wait. */
#include "report.h"

unsigned long lib_step10(unsigned long), lib_step21(unsigned long), lib_step32(unsigned long), lib_step43(unsigned long);

static void once(void)
{
	static volatile unsigned long sink;
	sink = lib_step10(lib_step21(lib_step32(lib_step43(sink))));
	progressed();
}

static void *busy(void *arg)
{
	for (;;)
		once();
	return arg;
}

static void *blocked(void *arg)
{
	for (;;)
		pause();
	return arg;
}

int main(int argc, char **argv)
{
	int n = argc > 1 ? atoi(argv[1]) : 1, is_busy = argc > 2 && strcmp(argv[2], "busy") == 0;
	once();
	for (int i = 1; i < n; i++)
		spawn(is_busy ? busy : blocked, 0);
	if (!is_busy)
		report_serve();
	report_ready();
	for (;;) {
		once();
		report_step(0);
	}
}
