/* Computes, and is linked to a library (idle.c) that it never calls. */
#include "report.h"

int idle_sum(int n);

int (*volatile never_called)(int) = idle_sum;

static void *work(void *arg)
{
	for (;;) {
		uint64_t h = 1;
		for (int i = 0; i < 10000; i++)
			h = h * 6364136223846793005u + 1442695040888963407u;
		if (h != 0x0)
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
