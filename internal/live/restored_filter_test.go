package live

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// filtered has seccomp filters that forbid much of what it takes to build a process: one
// for all threads, and with "own" another one for the second thread. With "rights" it has
// given up its rights afterwards.
const filtered = `
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>
static volatile int own, again;
static volatile long asked, told, code;
static int forbid(const int *calls, int count, unsigned action, unsigned flags)
{
	struct sock_filter f[40] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr))};
	int n = 1;
	for (int i = 0; i < count; i++) {
		f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[i], 0, 1);
		f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, action);
	}
	f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct sock_fprog program = {n, f};
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
}
static int errno_of(long call)
{
	struct utsname name;
	errno = 0;
	syscall(call, &name);
	return errno;
}
static void *second(void *unused)
{
	static const int calls[] = {SYS_uname};
	if (own)
		forbid(calls, 1, SECCOMP_RET_ERRNO | 77, SECCOMP_FILTER_FLAG_LOG);
	for (;; told = asked) {
		code = errno_of(SYS_uname) * 1000 + errno_of(SYS_getppid);
		while (told == asked)
			usleep(1000);
	}
}
int main(int argc, char **argv)
{
	static const int deadly[] = {SYS_munmap, SYS_mremap, SYS_capset, SYS_setgroups, SYS_setresuid, SYS_clone3, SYS_mprotect,
		SYS_sched_setattr, SYS_prlimit64, SYS_close_range, SYS_set_robust_list, SYS_pidfd_getfd};
	static const int plain[] = {SYS_getppid};
	own = !strcmp(argv[1], "own");
	int rights = !strcmp(argv[1], "rights");
	pthread_t t;
	setvbuf(stdout, 0, _IOLBF, 0);
	if (forbid(plain, 1, SECCOMP_RET_ERRNO | 55, 0)) /* with no new privileges, or the right to it */
		return 1;
	pthread_create(&t, 0, second, 0);
	while (!code)
		usleep(1000);
	if (rights && setresuid(65534, 65534, 65534))
		return 2;
	if (!strcmp(argv[1], "asks"))
		return forbid(plain, 1, SECCOMP_RET_USER_NOTIF, 0) || puts("ready") < 0 || pause();
	if (rights)
		prctl(PR_SET_DUMPABLE, 1);
	if (!rights && forbid(deadly, sizeof deadly / sizeof *deadly, SECCOMP_RET_KILL_PROCESS, own ? 0 : SECCOMP_FILTER_FLAG_TSYNC))
		return 3;
	puts("ready");
	char line[100];
	while (fgets(line, sizeof line, stdin)) {
		const char *wrong = "";
		asked++;
		while (told != asked)
			usleep(1000);
		if (code != (own ? 77055 : 55))
			wrong = "the second thread has other filters";
		if (errno_of(SYS_getppid) != 55 || errno_of(SYS_uname))
			wrong = "the main thread has other filters";
		if (!rights && !own && asked > 4 && forbid(plain, 1, SECCOMP_RET_ERRNO | 55, SECCOMP_FILTER_FLAG_TSYNC))
			wrong = "its threads do not have the same filters";
		printf("{\"fixture\":\"filtered\",\"errors\":%d,\"error\":\"%s\",\"progress\":%ld}\n", *wrong != 0, wrong, asked);
	}
}`

// TestRestoredFilters: threads have the seccomp filters that they had, whatever these
// forbid, and may set more.
func TestRestoredFilters(t *testing.T) {
	path := testbed.MustCompile(t, testbed.Build{Name: "filtered", Source: filtered})
	for _, how := range []string{"common", "own", "rights"} {
		t.Run(how, func(t *testing.T) {
			p := startRestored(t, path, how)
			folder := t.TempDir()
			for n := range 4 {
				p.report(t)
				before := p.filters(t)
				p.cycle(t, filepath.Join(folder, fmt.Sprint(n)))
				if after := p.filters(t); after != before {
					t.Errorf("it has the filters\n%s\nand had\n%s", after, before)
				}
			}
			p.report(t)
			p.report(t)
		})
	}
}

// TestFilterAsks: a filter that asks another process is refused.
func TestFilterAsks(t *testing.T) {
	p := startRestored(t, testbed.MustCompile(t, testbed.Build{Name: "filtered", Source: filtered}), "asks")
	got := vos(t, "checkpoint", fmt.Sprint(p.pid), "-D", filepath.Join(t.TempDir(), "image"), "--inherit", "0,1,2").expect(t, 7)
	if !strings.Contains(got.Stderr, "seccomp_filter") {
		t.Error(got.Stderr)
	}
	if call, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", p.pid)); err != nil || !strings.HasPrefix(string(call), fmt.Sprint(syscall.SYS_PAUSE)+" ") {
		t.Errorf("it does not wait as before: %s, %v", call, err)
	}
}

// filters tells the modes and filters of all threads.
func (p *restored) filters(t *testing.T) (all string) {
	t.Helper()
	for line := range strings.Lines(p.ofThreads(t, "status")) {
		if strings.HasPrefix(line, "Seccomp") || strings.HasPrefix(line, "NoNewPrivs") {
			all += line
		}
	}
	return all
}
