package live

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// personal has threads of different personalities.
const personal = `
#include <pthread.h>
#include <stdio.h>
#include <sys/personality.h>
#include <unistd.h>
static pthread_barrier_t both;
static void *other(void *unused)
{
	personality(ADDR_NO_RANDOMIZE | UNAME26);
	pthread_barrier_wait(&both);
	for (;;)
		pause();
}
int main(void)
{
	pthread_t t;
	personality(ADDR_NO_RANDOMIZE | READ_IMPLIES_EXEC);
	pthread_barrier_init(&both, 0, 2);
	pthread_create(&t, 0, other, 0);
	pthread_barrier_wait(&both);
	setvbuf(stdout, 0, _IOLBF, 0);
	puts("ready");
	pause();
}`

// TestRestoredPersonality: each thread has the personality that it had.
func TestRestoredPersonality(t *testing.T) {
	p := startRestored(t, testbed.MustCompile(t, testbed.Build{Name: "personal", Source: personal}))
	before := p.ofThreads(t, "personality")
	if before != "00440000\n00060000\n" && before != "00060000\n00440000\n" {
		t.Fatalf("personalities %q", before)
	}
	p.cycle(t, filepath.Join(t.TempDir(), "image"))
	if after := p.ofThreads(t, "personality"); after != before {
		t.Errorf("personalities\n%swere\n%s", after, before)
	}
}

// ofThreads returns the text of a file of /proc/PID/task/TID of all threads.
func (p *restored) ofThreads(t *testing.T, name string) string {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/%s", p.pid, name))
	if err != nil || len(files) == 0 {
		t.Fatalf("no threads: %v", err)
	}
	var all strings.Builder
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(text)
	}
	return all.String()
}
