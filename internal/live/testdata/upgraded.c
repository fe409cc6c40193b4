/*
 * Opens libraries as it is told to, so that their files can be replaced under it:
 *
 *	PATH          opens it
 *	delete=PATH   opens it and deletes its file, as programs do with libraries
 *	              that they unpack for themselves
 *	memfd=PATH    opens a copy that has no file
 *	hide=DIR      goes to a mount namespace of its own, where DIR is empty
 *	chroot=DIR    makes DIR its root directory
 */
#define _GNU_SOURCE
#include "report.h"

#include <dlfcn.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>

static int (*generation)(void);

static void load(const char *path)
{
	void *library = dlopen(path, RTLD_NOW);
	must(library ? 0 : -1, path);
	generation = (int (*)(void))dlsym(library, "generation");
	must(generation ? 0 : -1, "dlsym");
}

static void load_copy(const char *path)
{
	char buf[65536], name[64];
	int from = (int)must(open(path, O_RDONLY), path), to = (int)must(memfd_create("copy", 0), "memfd_create");
	for (ssize_t n; (n = read(from, buf, sizeof buf)) > 0;)
		must(write(to, buf, n) == n ? 0 : -1, "write");
	close(from);
	snprintf(name, sizeof name, "/proc/self/fd/%d", to);
	load(name);
}

static const char *value(const char *argument, const char *key)
{
	size_t n = strlen(key);
	return strncmp(argument, key, n) == 0 ? argument + n : 0;
}

static void *work(void *arg)
{
	for (int first = generation();; sleep_ms(1)) {
		if (generation() != first)
			wrong("the library changed");
		progressed();
	}
	return arg;
}

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		const char *v;
		if ((v = value(argv[i], "delete="))) {
			load(v);
			must(unlink(v), v);
		} else if ((v = value(argv[i], "memfd="))) {
			load_copy(v);
		} else if ((v = value(argv[i], "hide="))) {
			must(unshare(CLONE_NEWNS), "unshare");
			must(mount("none", "/", 0, MS_REC | MS_PRIVATE, 0), "mount");
			must(mount("none", v, "tmpfs", 0, 0), v);
		} else if ((v = value(argv[i], "chroot="))) {
			must(chroot(v), v);
			must(chdir("/"), "chdir");
		} else {
			load(argv[i]);
		}
	}
	spawn(work, 0);
	report_serve();
}
