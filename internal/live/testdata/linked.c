/* Computes, and is linked to a library (idle.c) that it never calls. */
#include "report.h"

int idle_sum(int n);

int (*volatile never_called)(int) = idle_sum;

static void *work(void *arg)
{
	uint64_t sum = 0;
	for (;;) {
		check_sum(10000, &sum);
		progressed();
		sleep_ms(1);
	}
	return arg;
}

int main(void)
{
	spawn(work, 0);
	report_serve();
}
