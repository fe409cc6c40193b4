/* A library whose builds (BUILD is 1, 2, 3) do the same and lay their data out
 * in other places. What shows the build is mixed_build and the like. Each of
 * these makes a build that may not take over, or only in part:
 *
 *   GONE       an export is missing          RESIZED   an exported object is larger
 *   TLS        another thread-local image    STATIC    thread-local at a fixed place
 *   IFUNC      an export is an IFUNC         NEEDS     another library is needed
 *   GROWN      a structure has one more field
 *   ADDED      a variable more
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef BUILD
#define BUILD 1
#endif
#define SHIFT __attribute__((aligned(64 << BUILD)))

typedef long operation(long);

/* What the program must find as it left it, at other places in each build. */
#if BUILD == 2
static SHIFT long last_answer;
static SHIFT char name_kept[40];
#endif
static SHIFT long calls;                      /* .bss */
static SHIFT long seed = 1000;                /* .data */
static SHIFT long untouched = 10 * BUILD;     /* follows the build */
static SHIFT long touched = 256 * BUILD;      /* is the program's, which shares a byte */
static SHIFT char words[32] = {'b', 'u', 'i', 'l', 'd', '0' + BUILD}; /* follows it, longer than a word */
#if BUILD != 2
static SHIFT char name_kept[40];
static SHIFT long last_answer;
#endif
#ifdef ADDED
static SHIFT long added = 5;
#endif

#ifdef STATIC
static __thread long here __attribute__((tls_model("initial-exec"))) = 7;
#elif defined(TLS)
static __thread long here = 8;
#else
static __thread long here = 7;
#endif

/* Exported, and copied into an executable that is not position-independent. */
#ifdef RESIZED
long mixed_object[2] = {300};
#define OBJECT mixed_object[0]
#else
long mixed_object = 300;
#define OBJECT mixed_object
#endif

struct item {
	struct item *next;
#ifdef GROWN
	long more;
#endif
	long value;
	long twice;
	char text[16];
};
static struct item *items;

/* Static functions whose addresses are in data, in the program's hands, and are
 * compared. */
static __attribute__((noinline)) long add(long n) { return n + BUILD * 100; }
static __attribute__((noinline)) long subtract(long n) { return BUILD * 100 - n; }
static operation *current = add;              /* pointer in .data */
static operation *const all[] = {add, subtract}; /* in RELRO */
static operation *given[4];
static int how_many;

int mixed_build(void) { return BUILD; }
int mixed_again(void) { return BUILD; }
#ifdef IFUNC
static int plain_third(void) { return BUILD; }
static int (*choose(void))(void) { return plain_third; }
int mixed_third(void) __attribute__((ifunc("choose")));
#else
int mixed_third(void) { return BUILD; }
#endif

long mixed_calls(void)
{
#ifdef ADDED
	__atomic_add_fetch(&added, 1, __ATOMIC_RELAXED);
#endif
	return __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED);
}
#ifdef ADDED
long mixed_added(void) { return added; }
#endif
long mixed_seed(long n) { return seed += n; }
long mixed_untouched(void) { return untouched; }
void mixed_do_not(long n) { untouched = n; }  /* so that it is no constant */
long mixed_touched(void) { return touched; }
void mixed_touch(long n) { touched = n; }
const char *mixed_words(void) { return words; }
void mixed_write(int at, char c) { words[at] = c; }
long mixed_peek(void) { return OBJECT; }
void mixed_poke(long n) { OBJECT = n; }
long mixed_here(void) { return ++here; }

void mixed_name(const char *n) { strncpy(name_kept, n, sizeof name_kept - 1); }
const char *mixed_named(void) { return name_kept; }

operation *mixed_operation(int n) { return all[n & 1]; }
int mixed_is_own(operation *f) { return f == add || f == subtract; }
void mixed_choose(operation *f) { current = f; }
long mixed_run(long n) { return last_answer = current(n) * 1 + (long)(given[0] ? 0 : 0); }
long mixed_last(void) { return last_answer; }
void *mixed_self(void) { return (void *)mixed_build; }
int mixed_give(operation *f)
{
	for (int i = 0; i < how_many; i++)
		if (given[i] == f)
			return i;
	given[how_many] = f;
	return how_many++;
}
long mixed_take(int i, long n) { return given[i](n) + BUILD; }

/* Constants: strings, a table, a switch. */
const char *mixed_text(void) { return BUILD == 1 ? "the first build" : BUILD == 2 ? "a second build, with more to say" : "3rd"; }
static const short squares[] = {0, 1, 4, 9, 16, 25, 36, BUILD * 100};
long mixed_square(int n) { return squares[n & 7]; }
const char *mixed_case(int n)
{
	switch (n) {
	case 0: return "zero";
	case 1: return "one";
	case 2: return "two";
	case 3: return BUILD == 1 ? "three" : "three again";
	case 4: return "four";
	case 5: return "five";
	case 6: return "six";
	}
	return "many";
}

/* A list in the heap that every build goes through. */
long mixed_push(long n)
{
	struct item *i = malloc(sizeof *i);
	i->value = n;
	i->twice = 2 * n;
	snprintf(i->text, sizeof i->text, "%ld", n);
	i->next = items;
	items = i;
	return n;
}
long mixed_sum(void)
{
	long sum = 0;
	for (struct item *i = items; i; i = i->next) {
		if (i->twice != 2 * i->value || atol(i->text) != i->value)
			return -1;
		sum += i->value;
	}
	return sum;
}
long mixed_longest(void)
{
	long longest = 0;
	for (struct item *i = items; i; i = i->next)
		if ((long)strlen(i->text) > longest)
			longest = (long)strlen(i->text) + i->twice * 0;
	return longest;
}
void mixed_double(void)
{
	for (struct item *i = items; i; i = i->next) {
		i->value *= 2;
		i->twice *= 2;
		snprintf(i->text, sizeof i->text, "%ld", i->value);
	}
}
void mixed_drop(void)
{
	while (items) {
		struct item *i = items;
		items = i->next;
		free(i);
	}
}

#ifndef GONE
/* Called for the first time when a program likes, and only later builds import
 * these functions of libc. */
static int compare(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }
int mixed_late(void)
{
#if BUILD > 1
	int numbers[] = {5, 3, 9, BUILD};
	qsort(numbers, 4, sizeof *numbers, compare);
	return numbers[0] * 100 + (strpbrk("a,b", ",") ? BUILD : 0) + compare(numbers, numbers);
#else
	int same = 1;
	return compare(&same, &same) + 1;
#endif
}
#endif

/* Too short for a jump at its entry. */
static __attribute__((noipa)) long brief(long n) { return n * 10 + BUILD; }
long mixed_brief(long n) { return brief(n); }

/* What a thread is within while the build changes. */
static __attribute__((noinline)) int wait_for(int fd)
{
	char c;
	while (read(fd, &c, 1) == -1)
		;
	return BUILD;
}
int mixed_wait(int fd)
{
	return wait_for(fd);
}
unsigned long mixed_busy(unsigned n)
{
	unsigned long h = 1;
	for (unsigned i = 0; i < n; i++)
		h = h * 6364136223846793005u + 1442695040888963407u;
	return h * 10 + BUILD;
}

static char farewell[128];
static void say_goodbye(void)
{
	FILE *f = fopen(farewell, "w");
	if (f) {
		fprintf(f, "%d %ld", BUILD, calls);
		fclose(f);
	}
}
void mixed_farewell(const char *path)
{
	strncpy(farewell, path, sizeof farewell - 1);
	atexit(say_goodbye);
}

#ifdef NEEDS
double cbrt(double);
double mixed_root(double d) { return cbrt(d); }
#endif
