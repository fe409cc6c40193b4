/* writing FILE [fork]: writes to its memory all the time and ends by abort() when it finds
 * there what it has not written. Threads: one sweeps over a region page by page, one writes
 * here and there in a region of huge pages, one reads FILE past the page cache, one maps,
 * moves, unmaps and protects, in bursts. Prints where it counts. SIGTERM ends it, children
 * reaped. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ul
#define WORDS (PAGE / 8)
static volatile uint64_t counted;
static int forks;
static volatile sig_atomic_t ending;

static void fail(const char *what) {
	dprintf(2, "writing: %s: %s\n", what, strerror(errno));
	abort();
}

static void *map(size_t size) {
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED) fail("mmap");
	return p;
}

static uint64_t next(uint64_t *seed) {
	*seed ^= *seed << 13, *seed ^= *seed >> 7, *seed ^= *seed << 17;
	return *seed;
}

static void rest(long ms) {
	struct timespec t = {ms / 1000, ms % 1000 * 1000000};
	nanosleep(&t, NULL);
}

/* A page has its version three times, and else what follows from page and version. */
static void check(volatile uint64_t *page, uint64_t version) {
	if (page[0] != version || page[WORDS / 2] != version * 3 || page[WORDS - 1] != version * 7) fail("a page is not what was written");
}

static void put(volatile uint64_t *page, uint64_t version) {
	page[0] = version, page[WORDS / 2] = version * 3, page[WORDS - 1] = version * 7;
}

static void *sweep(void *arg) {
	(void)arg;
	const size_t pages = 6144;
	uint64_t *region = map(pages * PAGE);
	for (uint64_t version = 0;; version++)
		for (size_t i = 0; i < pages; i++) {
			check(region + i * WORDS, version);
			put(region + i * WORDS, version + 1);
			counted++;
			if (i % 512 == 0) rest(1);
		}
}

static void *huge(void *arg) {
	(void)arg;
	const size_t size = 8ul << 20, pages = size / PAGE;
	char *all = map(size + (2ul << 20));
	uint64_t *region = (uint64_t *)(((uintptr_t)all + (2ul << 20) - 1) & -(2ul << 20));
	uint64_t *versions = calloc(pages, 8), seed = 88172645463325252ull;
	if (!versions || (madvise(region, size, MADV_HUGEPAGE) && errno != EINVAL)) fail("madvise");
	for (uint64_t n = 1;; n++) {
		size_t i = next(&seed) % pages;
		check(region + i * WORDS, versions[i]);
		put(region + i * WORDS, versions[i] = n);
		if (n % 64 == 0) rest(1);
	}
}

static void *direct(void *arg) {
	const size_t size = 1ul << 20;
	int fd = open(arg, O_RDONLY | O_DIRECT);
	if (fd < 0) fail("open");
	uint64_t *to = map(size);
	for (off_t at = 0;; at = at ? 0 : (off_t)size) { /* two halves */
		if (pread(fd, to, size, at) != (ssize_t)size) fail("pread");
		for (size_t i = 0; i < size / PAGE; i++)
			check(to + i * WORDS, 1 + i + (at ? size / PAGE : 0));
		rest(1);
	}
}

#define SLOTS 16
#define SLOT (64 * PAGE)

static void *churn(void *arg) {
	(void)arg;
	char *window = mmap(NULL, SLOTS * SLOT, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (window == MAP_FAILED) fail("mmap window");
	static uint64_t versions[SLOTS][SLOT / PAGE];
	static int there[SLOTS];
	uint64_t seed = 362436069, version = 0;
	while (!ending) {
		for (uint64_t n = next(&seed) % 100; n && !ending; n--) {
			size_t s = next(&seed) % SLOTS, o = next(&seed) % SLOTS, page = next(&seed) % (SLOT / PAGE);
			char *at = window + s * SLOT, *to = window + o * SLOT;
			if (there[s])
				for (size_t i = 0; i < SLOT / PAGE; i++)
					check((uint64_t *)(at + i * PAGE), versions[s][i]);
			switch (next(&seed) % 6) {
			case 0: /* anew */
				if (mmap(at, SLOT, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED) fail("mmap slot");
				there[s] = 1;
				memset(versions[s], 0, sizeof versions[s]);
				break;
			case 1:
				if (mmap(at, SLOT, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED) fail("unmap slot");
				there[s] = 0;
				break;
			case 2: /* moved over another */
				if (!there[s] || s == o) break;
				if (mremap(at, SLOT, SLOT, MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED) fail("mremap");
				if (mmap(at, SLOT, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED) fail("close slot");
				memcpy(versions[o], versions[s], sizeof versions[s]);
				there[o] = 1, there[s] = 0;
				break;
			case 3:
				if (!there[s]) break;
				if (madvise(at + page * PAGE, PAGE, MADV_DONTNEED)) fail("madvise");
				versions[s][page] = 0;
				break;
			case 4:
				if (!there[s]) break;
				if (mprotect(at, SLOT, PROT_READ)) fail("mprotect");
				check((uint64_t *)(at + page * PAGE), versions[s][page]);
				if (mprotect(at, SLOT, PROT_READ | PROT_WRITE)) fail("mprotect");
				break;
			}
			if (there[s])
				for (size_t i = page; i < SLOT / PAGE; i++)
					put((uint64_t *)(at + i * PAGE), versions[s][i] = ++version);
			if (forks && n % 64 == 0) {
				pid_t pid = fork();
				if (pid < 0) fail("fork");
				if (pid == 0) {
					for (size_t k = 0; k < SLOTS; k++)
						for (size_t i = 0; there[k] && i < SLOT / PAGE; i++)
							check((uint64_t *)(window + k * SLOT + i * PAGE), versions[k][i]);
					_exit(0);
				}
				int status;
				if (waitpid(pid, &status, 0) != pid || status) fail("the child saw something else");
			}
		}
		rest(20 + (long)(next(&seed) % 20));
	}
	_exit(0);
}

static void end(int signal) {
	ending = signal;
}

int main(int argc, char **argv) {
	pthread_t t;
	signal(SIGTERM, end);
	forks = argc > 2;
	close_range(3, ~0U, 0); /* what a shell may have left */
	if (pthread_create(&t, NULL, sweep, NULL) || pthread_create(&t, NULL, huge, NULL) || pthread_create(&t, NULL, direct, argv[1]) ||
	    pthread_create(&t, NULL, churn, NULL))
		fail("pthread_create");
	while (counted < 6144)
		rest(1);
	printf("{\"counted\": %lu}\n", (unsigned long)&counted);
	fflush(stdout);
	for (;;)
		pause();
}
