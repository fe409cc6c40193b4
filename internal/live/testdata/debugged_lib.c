/* A library whose builds keep accounts in the heap of the program. SWAPPED
 * has another layout of them. */
#include <stdlib.h>
#include <string.h>

struct account {
	long number;
#ifdef SWAPPED
	long paid, owed; /* always the same */
#else
	long owed, paid;
#endif
	char owner[40];
	struct account *next;
};
static struct account *all;

int debugged_build(void) { return BUILD; }

#if BUILD == 1
#define EITHER paid
#else
#define EITHER owed /* as right, but it looks as if a field had moved */
#endif

void debugged_open(long number, const char *owner)
{
	struct account *a = calloc(1, sizeof *a);
	if (!a)
		abort();
	a->number = number;
	strncpy(a->owner, owner, sizeof a->owner - 1);
	a->next = all;
	all = a;
}

void debugged_buy(long number, long n)
{
	for (struct account *a = all; a; a = a->next)
		if (a->number == number)
			a->owed += n, a->paid += n;
}

long debugged_sum(long less)
{
	long sum = 0;
	for (struct account *a = all; a; a = a->next)
		if (strlen(a->owner) > 2)
			sum += a->EITHER - less;
	return sum;
}

long debugged_most(const char *owner)
{
	long most = 0;
	for (struct account *a = all; a; a = a->next)
		if (!strcmp(a->owner, owner) && a->EITHER > most)
			most = a->EITHER;
	return most;
}
