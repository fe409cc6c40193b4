/*
 * Executable memory that is no module: code made at run time in anonymous
 * memory, in a memfd, in /dev/zero, in a file that was deleted, in a shared
 * mapping; a part of the program's own file mapped a second time. All of it is
 * run all the time, and some is written anew meanwhile.
 */
#include "report.h"

#include <sys/mman.h>

typedef int function(void);

enum { SIZE = 3 * 4096 };

/* write_function makes a function that returns n. */
static void write_function(void *at, int n)
{
	unsigned char code[] = {0xb8, 0, 0, 0, 0, 0xc3}; /* mov $n, %eax; ret */
	memcpy(code + 1, &n, sizeof n);
	memcpy(at, code, sizeof code);
}

static void *map(int fd, int flags)
{
	void *p = mmap(0, SIZE, PROT_READ | PROT_WRITE | PROT_EXEC, flags, fd, 0);
	must(p == MAP_FAILED ? -1 : 0, "mmap");
	return p;
}

static int sized(int fd)
{
	must(fd, "open");
	must(ftruncate(fd, SIZE), "ftruncate");
	return fd;
}

static void *work(void *arg)
{
	char path[] = "/tmp/vos-live-mapped-XXXXXX", text[4096];
	int deleted = sized(mkstemp(path)), memfd = sized(memfd_create("code", 0));
	must(unlink(path), "unlink");
	void *places[] = {
		map(-1, MAP_PRIVATE | MAP_ANONYMOUS),
		map(-1, MAP_SHARED | MAP_ANONYMOUS),
		map(memfd, MAP_PRIVATE),
		map(memfd, MAP_SHARED),
		map(deleted, MAP_PRIVATE),
		map((int)must(open("/dev/zero", O_RDWR), "/dev/zero"), MAP_PRIVATE),
	};
	enum { PLACES = sizeof places / sizeof *places };
	int self = (int)must(open("/proc/self/exe", O_RDONLY), "open");
	unsigned char *again = mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE, self, 0);
	must(again == MAP_FAILED ? -1 : 0, "mmap");
	must(pread(self, text, sizeof text, 0) == sizeof text ? 0 : -1, "pread");
	if (memcmp(again, text, sizeof text) != 0)
		wrong("the second mapping differs");
	memset(again + 64, 0x90, 1024); /* a private copy that differs */
	for (int n = 0;; n++) {
		for (int i = 0; i < PLACES; i++) {
			write_function((char *)places[i] + 64 * (n % 100), n + i);
			if (((function *)((char *)places[i] + 64 * (n % 100)))() != n + i)
				wrong("function %d returned something else", i);
		}
		if (again[64] != 0x90 || again[1000] != 0x90)
			wrong("what was written over the second mapping is gone");
		progressed();
		if (n % 64 == 0)
			sleep_ms(1);
	}
	return arg;
}

int main(void)
{
	spawn(work, 0);
	report_serve();
}
