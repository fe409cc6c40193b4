package live

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// jailed counts in a root directory of its own, in files within and outside of it.
const jailed = `
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
int main(int n, char **args)
{
	close_range(3, ~0U, 0);
	int out = open("outside", O_CREAT | O_RDWR, 0600);
	if (out < 0 || chroot(args[1]) || mkdir("/sub", 0700) || chdir("/sub"))
		return 1;
	int in = open("/sub/inside", O_CREAT | O_RDWR, 0600);
	for (long n = 1;; n++) {
		char text[32], at[64];
		snprintf(text, sizeof text, "%-20ld", n);
		if (pwrite(in, text, strlen(text), 0) < 0 || pwrite(out, text, strlen(text), 0) < 0)
			return 2;
		if (!getcwd(at, sizeof at) || strcmp(at, "/sub") || access("/sub/inside", R_OK) || !access("/proc/self", R_OK))
			return 3;
		struct timespec ms = {0, 1000000};
		nanosleep(&ms, 0);
	}
}`

// TestRestoredRoot checkpoints a program in a root directory of its own, ends it, and
// builds it again.
func TestRestoredRoot(t *testing.T) {
	folder, jail := t.TempDir(), filepath.Join(t.TempDir(), "jail")
	if err := os.Mkdir(jail, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(testbed.MustCompile(t, testbed.Build{Name: "jailed", Source: jailed}), jail)
	cmd.Dir, cmd.SysProcAttr = folder, &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	reap := func() {
		var status syscall.WaitStatus
		if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil || status.Signal() != syscall.SIGKILL {
			t.Errorf("it ended by %v: %v", status, err)
		}
	}
	t.Cleanup(func() {
		if syscall.Kill(pid, syscall.SIGKILL) == nil {
			reap()
		}
	})
	count := func(path string) int {
		text, _ := os.ReadFile(path) // which may not be there yet
		n, _ := strconv.Atoi(strings.TrimSpace(string(text)))
		return n
	}
	counts := func(from int) {
		t.Helper()
		for _, path := range []string{filepath.Join(folder, "outside"), filepath.Join(jail, "sub", "inside")} {
			await(t, "it to count in "+path, func() bool { return count(path) > from+3 })
		}
	}
	counts(0)
	for n := range 3 {
		image := filepath.Join(folder, fmt.Sprint(n))
		vos(t, "checkpoint", strconv.Itoa(pid), "-D", image).expect(t, 0)
		reap()
		from := count(filepath.Join(folder, "outside"))
		vos(t, "restore", "-D", image).expect(t, 0)
		for link, want := range map[string]string{"root": jail, "cwd": filepath.Join(jail, "sub")} {
			if got, err := os.Readlink(fmt.Sprintf("/proc/%d/%s", pid, link)); err != nil || got != want {
				t.Fatalf("its %s is %s, not %s: %v", link, got, want, err)
			}
		}
		counts(from)
	}
}
