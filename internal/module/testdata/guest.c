/* A library with all that a refresh looks at: code that is called and code that
 * is not, constants, relocated pointers in RELRO, imports. */
#include <stdio.h>
#include <stdlib.h>

static int twice(int n) { return 2 * n; }
static int square(int n) { return n * n; }

typedef int operation(int);
static operation *const operations[] = {twice, square};
static const char *const names[] = {"twice", "square"};
const int primes[1200] = {2, 3, 5, 7, 11, 13};

int guest_work(int n) {
	int sum = primes[n % 6];
	for (unsigned i = 0; i < sizeof operations / sizeof *operations; i++)
		sum += operations[i](n) + names[i][0];
	return sum;
}

/* Never called: what is corrupted here is not run. */
__attribute__((aligned(4096), noinline)) int guest_idle(int n) {
	char text[64];
	snprintf(text, sizeof text, "%d %s", n, names[n & 1]);
	return atoi(text) + 0x12345678 + n * 17;
}
__attribute__((aligned(4096))) int guest_end(void) { return 0; }
