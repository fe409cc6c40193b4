package live

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// counting is a program that writes how far it has counted to its standard output, a
// file, at its begin.
const counting = `
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
int main(void)
{
	close_range(3, ~0U, 0);
	for (long n = 1;; n++) {
		char text[32];
		snprintf(text, sizeof text, "%-20ld", n);
		if (pwrite(1, text, strlen(text), 0) < 0)
			return 1;
		struct timespec ms = {0, 1000000};
		nanosleep(&ms, 0);
	}
}`

// TestSeries writes a series of checkpoints, ends the program, and goes back to the
// oldest and the newest of them.
func TestSeries(t *testing.T) {
	folder := t.TempDir()
	program := testbed.MustCompile(t, testbed.Build{Name: "counting", Source: counting})
	out, err := os.Create(filepath.Join(folder, "count"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program)
	cmd.Stdout, cmd.SysProcAttr = out, &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil { // or it is the tests', too
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	end := func() {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		var status syscall.WaitStatus
		if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil {
			t.Fatal(err)
		}
	}
	count := func() int {
		t.Helper()
		text, err := os.ReadFile(out.Name())
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		return n
	}
	const keep = 2
	images := filepath.Join(folder, "images")
	series := exec.Command(binary, "checkpoint", strconv.Itoa(pid), "-D", images, "--every", "100ms", "--keep", strconv.Itoa(keep), "--json")
	series.Stderr = os.Stderr
	lines, err := series.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := series.Start(); err != nil {
		t.Fatal(err)
	}
	scan := bufio.NewScanner(lines)
	for range 7 {
		if !scan.Scan() || !strings.Contains(scan.Text(), `"outcome":"checkpointed"`) {
			t.Fatalf("the series went on with %q, %v", scan.Text(), scan.Err())
		}
	}
	if err := series.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := series.Wait(); err != nil {
		t.Fatalf("the series ended by %v", err)
	}
	entries, err := os.ReadDir(images)
	if err != nil || len(entries) < keep || len(entries) > 2*keep {
		t.Fatalf("%d images, %v", len(entries), err)
	}
	last := count()
	end()
	var begins []int
	for _, e := range entries {
		image := filepath.Join(images, e.Name())
		vos(t, "image", image).expect(t, 0)
		vos(t, "restore", "-D", image).expect(t, 7) // the file has changed since
		vos(t, "restore", "-D", image, "--force-files").expect(t, 0)
		await(t, "the program to count", func() bool { return count() < last })
		begins = append(begins, count())
		end()
		last = 1 << 30
		if err := os.WriteFile(out.Name(), []byte(strconv.Itoa(last)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i := 1; i < len(begins); i++ {
		if begins[i] <= begins[i-1] {
			t.Errorf("counts are %v: not those of their times", begins)
		}
	}
}
