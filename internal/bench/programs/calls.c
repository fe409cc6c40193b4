// calls THREADS: for each line that it reads, "call" or "pair", all threads call a
// function of a library, or malloc and free, and the processor time of a call is
// printed in ns: the median of the threads.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

void nothing(void);

enum { MOST = 64 };
static int threads, pairs, count;
static double took[MOST];
static pthread_barrier_t barrier;

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static void *run(void *arg)
{
	pthread_barrier_wait(&barrier);
	double begin = now();
	if (pairs)
		for (int i = 0; i < count; i++) {
			void *p = malloc(64);
			__asm__ volatile("" ::"r"(p) : "memory");
			free(p);
		}
	else
		for (int i = 0; i < count; i++)
			nothing();
	took[(long)arg] = (now() - begin) / count;
	return 0;
}

static int less(const void *a, const void *b)
{
	double d = *(const double *)a - *(const double *)b;
	return d < 0 ? -1 : d > 0;
}

int main(int argc, char **argv)
{
	char line[16];
	threads = argc > 1 ? atoi(argv[1]) : 1;
	if (threads < 1 || threads > MOST)
		return 2;
	count = 4000000 / threads;
	while (fgets(line, sizeof line, stdin)) {
		pthread_t t[MOST];
		pairs = !strcmp(line, "pair\n");
		pthread_barrier_init(&barrier, 0, threads);
		for (long i = 0; i < threads; i++)
			if (pthread_create(&t[i], 0, run, (void *)i))
				return 1;
		for (int i = 0; i < threads; i++)
			pthread_join(t[i], 0);
		qsort(took, threads, sizeof *took, less);
		printf("%.3f\n", took[threads / 2]);
		fflush(stdout);
	}
	return 0;
}
