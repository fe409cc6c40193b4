/*
 * handles_change.c: descriptors that are opened and closed all the time, in four
 * threads. Each leads to one of 16 files, FOLDER/0 to FOLDER/15, opened for
 * reading and appending in turns, at an offset that is the file's alone. The
 * fixture counts what the kernel answers wrongly: a descriptor that is not the one
 * that it opened.
 */
#include "report.h"
#include <sys/stat.h>

enum { FILES = 16, THREADS = 4, STAYING = 900 };
static char folder[3000];
static struct counter *opened;
static ino_t inodes[FILES];

static int open_one(int n)
{
	char path[4000];
	snprintf(path, sizeof path, "%s/%d", folder, n);
	int fd = open(path, (n % 2 ? O_WRONLY | O_APPEND : O_RDONLY) | O_CREAT, 0600);
	if (fd < 0 || lseek(fd, 1000 + n, SEEK_SET) != 1000 + n)
		wrong("open %s: %s", path, strerror(errno));
	return fd;
}

static void *change(void *arg)
{
	unsigned seed = (unsigned)(uintptr_t)arg;
	int held[50];
	for (;;) {
		int n[50];
		for (int i = 0; i < 50; i++) {
			n[i] = rand_r(&seed) % FILES;
			held[i] = open_one(n[i]);
			if (i % 7 == 0) { /* a number that goes from file to file at once */
				int other = open_one(n[i] = rand_r(&seed) % FILES);
				dup2(other, held[i]);
				close(other);
			}
		}
		for (int i = 0; i < 50; i++) {
			struct stat st;
			if (fstat(held[i], &st) || st.st_ino != inodes[n[i]])
				wrong("descriptor %d is another file", held[i]);
			if (close(held[i]))
				wrong("close %d: %s", held[i], strerror(errno));
			bump(opened);
		}
		progressed();
	}
	return arg;
}

int main(int argc, char **argv)
{
	snprintf(folder, sizeof folder, "%s", argv[argc - 1]);
	opened = counter("opened");
	for (int n = 0; n < FILES; n++) {
		struct stat st;
		int fd = open_one(n);
		must(fstat(fd, &st), "fstat");
		inodes[n] = st.st_ino;
		must(dup2(fd, STAYING + n), "dup2"); /* vos must tell of each */
		close(fd);
	}
	for (uintptr_t i = 1; i <= THREADS; i++)
		spawn(change, (void *)i);
	report_serve();
}
