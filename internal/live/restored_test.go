package live

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/snapshot/dump"
	"github.com/virtualizing-os/vos/internal/snapshot/restore"
	"github.com/virtualizing-os/vos/internal/testbed"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// A restored is a program that comes and goes. It answers the lines "report" on its
// standard input as fixtures do.
type restored struct {
	pid     int
	files   [3]*os.File // its ends
	stdin   *os.File
	answers *os.File
	lines   *bufio.Scanner
	last    testbed.Report
}

// startRestored starts a program that says that it is ready.
func startRestored(t *testing.T, argv ...string) *restored {
	t.Helper()
	p := &restored{}
	pipe := func() (r, w *os.File) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close(); w.Close() })
		return r, w
	}
	p.files[0], p.stdin = pipe()
	p.answers, p.files[1] = pipe()
	p.files[2] = os.Stderr
	p.lines = bufio.NewScanner(p.answers)
	// What whoever started the tests has left open is not the program's.
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range open {
		if fd, err := strconv.Atoi(entry.Name()); err == nil && fd > 2 {
			syscall.CloseOnExec(fd)
		}
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.files[0], p.files[1], p.files[2]
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.pid = cmd.Process.Pid
	t.Cleanup(func() { p.end(t, syscall.SIGKILL) })
	if line := p.line(t); line != "ready" {
		t.Fatalf("%v printed %q", argv, line)
	}
	return p
}

func (p *restored) line(t *testing.T) string {
	t.Helper()
	if err := p.answers.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if !p.lines.Scan() {
		t.Fatalf("process %d says nothing: %v", p.pid, p.lines.Err())
	}
	return p.lines.Text()
}

// report asks the program until it has worked, and all was well.
func (p *restored) report(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := p.stdin.WriteString("report\n"); err != nil {
			t.Fatal(err)
		}
		var r testbed.Report
		if err := json.Unmarshal([]byte(p.line(t)), &r); err != nil {
			t.Fatal(err)
		}
		err := r.Healthy(p.last)
		if err == nil {
			p.last = r
			return
		}
		if r.Errors > 0 || time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// cycle checkpoints the program, which ends, and restores it.
func (p *restored) cycle(t *testing.T, dir string) (dump.Result, restore.Result) {
	t.Helper()
	return p.cycleWith(t, dir, func() {})
}

// cycleWith is cycle with something that is done while the program is not there.
func (p *restored) cycleWith(t *testing.T, dir string, between func()) (dump.Result, restore.Result) {
	t.Helper()
	process, err := procfs.Open(p.pid)
	if err != nil {
		t.Fatal(err)
	}
	defer process.Close()
	look, err := dump.Look(t.Context(), process, dump.Options{Inherit: []int{0, 1, 2}})
	if err != nil {
		t.Fatal(err)
	}
	w, err := image.Create(dir, image.WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	kept, err := look.Commit(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	r, err := image.Open(dir, image.ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p.gone(t)
	between()
	plan, err := restore.Look(t.Context(), r, restore.Options{Inherit: map[int]*os.File{0: p.files[0], 1: p.files[1], 2: p.files[2]}})
	if err != nil {
		t.Fatal(err)
	}
	built, err := plan.Commit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return kept, built
}

// gone waits until nothing has the program's id.
func (p *restored) gone(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(200 * time.Microsecond) {
		// It is a child of the tests, or of init.
		_, _ = syscall.Wait4(p.pid, nil, syscall.WNOHANG, nil)
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", p.pid)); errors.Is(err, fs.ErrNotExist) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d is still there", p.pid)
		}
	}
}

func (p *restored) end(t *testing.T, signal syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(p.pid, signal); errors.Is(err, syscall.ESRCH) {
		return
	}
	p.gone(t)
}

// pythonReport is a program in Python with state of several sorts, that it checks.
const pythonReport = `
import hashlib, json, sys, threading, time
progress, errors, error = 0, 0, ""
words = {str(n): hashlib.sha256(str(n).encode()).hexdigest() for n in range(2000)}
lock = threading.Condition()
def work():
    global progress, errors, error
    n = 0
    while True:
        n = (n + 7) % 2000
        if words[str(n)] != hashlib.sha256(str(n).encode()).hexdigest():
            errors, error = errors + 1, "a digest differs"
        before = time.monotonic()
        time.sleep(0.001)
        if time.monotonic() - before < 0.001:
            errors, error = errors + 1, "a sleep was cut short"
        with lock:
            progress += 1
            lock.notify_all()
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
print("ready", flush=True)
for line in sys.stdin:
    if line == "quit\n":
        break
    with lock:
        seen = progress
        lock.wait_for(lambda: progress > seen, timeout=5)
    print(json.dumps({"fixture": "python", "errors": errors, "error": error, "progress": progress, "counts": {}}), flush=True)
`

// TestRestored takes programs through many cycles of checkpoint, end and restore. They
// check their own state, and go on where they were.
func TestRestored(t *testing.T) {
	cycles := 20
	if soak {
		cycles = 200
	}
	fixture := func(name string, args ...string) func(*testing.T) []string {
		return func(t *testing.T) []string {
			build, err := testbed.Source(name)
			if err != nil {
				t.Fatal(err)
			}
			return append([]string{testbed.MustCompile(t, build)}, args...)
		}
	}
	for name, command := range map[string]func(*testing.T) []string{
		"plain": fixture("plain"), "static": fixture("static"), "nopie": fixture("nopie"),
		"64 busy threads":    fixture("threads", "64", "busy"),
		"64 waiting threads": fixture("threads", "64", "blocked", "2"),
		"64 mixed threads":   fixture("threads", "64", "mixed", "5"),
		// Its timer does not expire while it is not there.
		"signals": fixture("signals", "1000", "1000000"), "rseq": fixture("rseq"), "coroutine": fixture("coroutine"),
		"python3": func(t *testing.T) []string {
			path := testbed.NeedTool(t, "python3")
			return []string{path, "-c", pythonReport}
		},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			p := startRestored(t, command(t)...)
			folder := t.TempDir()
			var frozen, built []time.Duration
			for n := range cycles {
				p.report(t)
				kept, r := p.cycle(t, filepath.Join(folder, fmt.Sprint(n)))
				frozen, built = append(frozen, kept.Freeze), append(built, r.Total)
			}
			p.report(t)
			t.Logf("%d cycles: frozen for %v, restored in %v, medians", cycles, median(frozen), median(built))
		})
	}
}

func median(all []time.Duration) time.Duration {
	slices.Sort(all)
	return all[len(all)/2]
}

// waiting sleeps, polls and waits for futexes again and again, each for a tenth of a
// second, and tells whether one was cut short.
const waiting = `
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
static volatile long progress[4];
static volatile int wrong, code;
static long now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000L + t.tv_nsec;
}
static void *wait_again(void *kind)
{
	long n = (long)kind;
	static int word;
	for (;;) {
		struct timespec tenth = {0, 100000000};
		long begin = now();
		int result = 0;
		errno = 0;
		switch (n) {
		case 0: result = nanosleep(&tenth, 0); break;
		case 1: result = poll(0, 0, 100); break;
		case 2: /* the number in an instruction, as libraries have it */
			__asm__ volatile("mov %4, %%r10\n mov $202, %%eax\n syscall" : "=a"(result)
				: "D"(&word), "S"(FUTEX_WAIT_PRIVATE), "d"(0), "r"(&tenth) : "rcx", "r10", "r11", "memory");
			result = result == -ETIMEDOUT ? 0 : result;
			break;
		case 3: result = clock_nanosleep(CLOCK_MONOTONIC, 0, &tenth, 0); break;
		}
		if (result || now() - begin < 100000000)
			wrong = n + 1, code = result ? errno ? errno : result : -1;
		progress[n]++;
	}
	return 0;
}
int main(void)
{
	pthread_t t;
	for (long n = 0; n < 4; n++)
		pthread_create(&t, 0, wait_again, (void *)n);
	setvbuf(stdout, 0, _IOLBF, 0);
	puts("ready");
	char line[100];
	while (fgets(line, sizeof line, stdin)) {
		long least = LONG_MAX;
		for (int n = 0; n < 4; n++)
			least = progress[n] < least ? progress[n] : least;
		printf("{\"fixture\":\"waiting\",\"errors\":%d,\"error\":\"wait %d: %d\",\"progress\":%ld}\n", wrong != 0, wrong, code, least);
	}
}`

// TestRestoredAfterStops checkpoints a program whose waits were interrupted before: its
// kernel goes on with the rest of them, and the restored program's can't.
func TestRestoredAfterStops(t *testing.T) {
	p := startRestored(t, testbed.MustCompile(t, testbed.Build{Name: "waiting", Source: waiting}))
	folder := t.TempDir()
	for n := range 5 {
		p.report(t)
		for range 2 {
			process, err := procfs.Open(p.pid)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tracee.Do(t.Context(), process, tracee.Options{}, (*tracee.Session).StopAll); err != nil {
				t.Fatal(err)
			}
			process.Close()
		}
		p.cycle(t, filepath.Join(folder, fmt.Sprint(n)))
	}
	p.report(t)
}
