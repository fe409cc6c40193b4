package live

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// owned has mutexes that the kernel knows of, memory that grows, and attributes that only
// it can ask for. Its argument is a file of two pages.
const owned = `
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

static pthread_mutex_t robust, inheriting;
static pthread_t dies;
static pthread_barrier_t held, may_end;
static volatile long progress, taken;
static __thread long own = 4711;
static const char *error = "";

static void is(int ok, const char *what)
{
	if (!ok && !*error)
		error = what;
}

/* Holds a mutex until it may end, and ends without giving it back. */
static void *holds(void *arg)
{
	own = 12;
	is(!pthread_mutex_lock(&robust), "the robust mutex can't be taken");
	pthread_barrier_wait(&held);
	pthread_barrier_wait(&may_end);
	is(own == 12, "a thread's own memory differs");
	return arg;
}

static void another_holds(void)
{
	is(!pthread_create(&dies, 0, holds, 0), "there is no thread");
	pthread_barrier_wait(&held);
}

/* Wants a mutex again and again that the main thread nearly always holds. */
static void *wants(void *arg)
{
	for (;;) {
		is(!pthread_mutex_lock(&inheriting), "the mutex that inherits can't be taken");
		taken++;
		pthread_mutex_unlock(&inheriting);
		for (long before = progress; before == progress;)
			usleep(1000);
	}
	return arg;
}

int main(int argc, char **argv)
{
	enum { PAGE = 4096, ROOM = 64 << 20 };
	pthread_mutexattr_t a;
	pthread_t t;
	(void)argc;
	setvbuf(stdout, 0, _IOLBF, 0);
	pthread_barrier_init(&held, 0, 2);
	pthread_barrier_init(&may_end, 0, 2);
	pthread_mutexattr_init(&a);
	pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(&robust, &a);
	pthread_mutexattr_init(&a);
	pthread_mutexattr_setprotocol(&a, PTHREAD_PRIO_INHERIT);
	pthread_mutex_init(&inheriting, &a);
	pthread_mutex_lock(&inheriting);
	pthread_create(&t, 0, wants, 0);
	another_holds();

	char *room = mmap(0, ROOM, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	munmap(room, ROOM);
	char *lowest = mmap(room + ROOM - 4 * PAGE, 4 * PAGE, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_FIXED, -1, 0);
	int fd = open(argv[1], O_RDONLY);
	char *file = mmap(0, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	close(fd);
	strcpy(file + PAGE, "its own");
	char *end = sbrk(0);
	prctl(PR_SET_PDEATHSIG, SIGWINCH);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	puts("ready");

	char line[100];
	while (fgets(line, sizeof line, stdin)) {
		pthread_barrier_wait(&may_end);
		pthread_join(dies, 0);
		is(pthread_mutex_lock(&robust) == EOWNERDEAD, "nobody tells that the owner of a mutex has ended");
		pthread_mutex_consistent(&robust);
		pthread_mutex_unlock(&robust);
		another_holds();

		long before = taken;
		pthread_mutex_unlock(&inheriting);
		while (before == taken)
			usleep(100);
		is(!pthread_mutex_lock(&inheriting), "the mutex that inherits is not given back");

		is(!lowest[0] || lowest[0] == 'g', "what has grown differs");
		lowest -= PAGE;
		lowest[0] = 'g';
		is(!strcmp(file, "of the file\n") && !strcmp(file + PAGE, "its own"), "what is mapped of a file differs");
		is(sbrk(PAGE) == end && sbrk(0) == end + PAGE, "the heap does not grow where it ends");
		memset(end, 'h', PAGE);
		is(end[-1] == 'h' || end[-1] == 0, "the heap differs");
		end += PAGE;
		int number = 0;
		prctl(PR_GET_PDEATHSIG, &number);
		is(number == SIGWINCH, "the signal of its parent's end differs");
		prctl(PR_GET_CHILD_SUBREAPER, &number);
		is(number == 1, "it is no subreaper any more");
		is(own == 4711, "the main thread's own memory differs");
		progress++;
		printf("{\"fixture\":\"owned\",\"errors\":%d,\"error\":\"%s\",\"progress\":%ld}\n", *error != 0, error, progress);
	}
}`

// TestRestoredOwned: mutexes are held and waited for as before, and those of a thread that
// ends are told of; memory grows on where it grew; of a file what was written is kept.
func TestRestoredOwned(t *testing.T) {
	cycles := 5
	if soak {
		cycles = 100
	}
	folder := t.TempDir()
	file := filepath.Join(folder, "pages")
	page := make([]byte, 2*4096)
	copy(page, "of the file\n")
	if err := os.WriteFile(file, page, 0o644); err != nil {
		t.Fatal(err)
	}
	p := startRestored(t, testbed.MustCompile(t, testbed.Build{Name: "owned", Source: owned, Flags: []string{"-pthread"}}), file)
	for n := range cycles {
		p.report(t)
		p.cycle(t, filepath.Join(folder, fmt.Sprint(n)))
	}
	p.report(t)
}
