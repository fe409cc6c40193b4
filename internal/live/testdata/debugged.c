/* A program whose accounts a library keeps. Count "build" is the library's. */
#include "report.h"

int debugged_build(void);
void debugged_open(long number, const char *owner);
void debugged_buy(long number, long n);
long debugged_sum(long less);
long debugged_most(const char *owner);

static struct counter *build;

static void look(void) { build->n = debugged_build(); }

static void *work(void *arg)
{
	long sum = 0, bought[4] = {0};
	static const char *const owners[] = {"anna", "bert", "carl", "dora"};
	for (long n = 0; n < 4; n++)
		debugged_open(n, owners[n]);
	for (long n = 0;; n++) {
		debugged_buy(n % 4, n);
		sum += n;
		bought[n % 4] += n;
		if (debugged_sum(1) != sum - 4 || debugged_most(owners[n % 4]) != bought[n % 4])
			wrong("accounts after %ld: %ld, not %ld", n, debugged_sum(0), sum);
		progressed();
		sleep_ms(1);
	}
	return arg;
}

int main(void)
{
	build = counter("build");
	report_before = look;
	spawn(work, 0);
	report_serve();
}
