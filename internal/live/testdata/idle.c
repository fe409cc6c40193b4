/* A library whose code nobody runs, so that its file may be spoiled. */
#include <stdlib.h>

static const char *const names[] = {"spoiled", "whole"};
static const int primes[5000] = {2, 3, 5, 7, 11};

const char *idle_name(int n)
{
	return names[n & 1];
}

int idle_sum(int n)
{
	int sum = 0;
	while (n-- > 0)
		sum += primes[n % 5] * atoi(names[n & 1]);
	return sum;
}
