package live

import (
	"fmt"
	"maps"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// longWaiting waits for a long time, of each kind with a relative limit of time.
const longWaiting = `
#define _GNU_SOURCE
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
static void *wait_long(void *kind)
{
	static int word;
	struct timespec span = {977 - 97 * (long)kind, 0}, rest;
	switch ((long)kind) {
	case 0: clock_nanosleep(CLOCK_MONOTONIC, 0, &span, 0); break;
	case 1: /* nanosleep, which the C library makes another call of */
		__asm__ volatile("mov $35, %%eax\n syscall" :: "D"(&span), "S"(&rest) : "rax", "rcx", "r11", "memory");
		break;
	case 2: sleep(783); break;
	case 3: poll(0, 0, 686000); break;
	case 4: /* the number in an instruction, as libraries have it */
		__asm__ volatile("mov %0, %%r10\n mov $202, %%eax\n syscall"
			:: "r"(&span), "D"(&word), "S"(FUTEX_WAIT_PRIVATE), "d"(0) : "rax", "rcx", "r10", "r11", "memory");
		break;
	case 5: usleep(492000000); break;
	case 6: /* the number in a register of who calls: the kernel tells where it waits */
		syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &span, 0, 0); break;
	}
	puts("a wait has ended");
	return 0;
}
int main(void)
{
	pthread_t t;
	for (long n = 0; n < 7; n++)
		pthread_create(&t, 0, wait_long, (void *)n);
	setvbuf(stdout, 0, _IOLBF, 0);
	puts("ready");
	pause();
}`

// TestRestoredWaits checkpoints a program that waits for long, again and again: the image
// has the time that is left of each wait, no less, and none of it begins anew.
func TestRestoredWaits(t *testing.T) {
	const kinds = 7
	begin := sinceBoot(t)
	p := startRestored(t, testbed.MustCompile(t, testbed.Build{Name: "long", Source: longWaiting}))
	process, err := procfs.Open(p.pid)
	if err != nil {
		t.Fatal(err)
	}
	defer process.Close()
	await(t, "its threads to wait", func() bool {
		waiting := map[int]int{}
		tids, err := process.Threads()
		if err != nil {
			t.Fatal(err)
		}
		for _, tid := range tids {
			if call, err := process.Syscall(tid); err == nil {
				waiting[call.Number]++
			}
		}
		return maps.Equal(waiting, map[int]int{
			syscall.SYS_PAUSE: 1, syscall.SYS_CLOCK_NANOSLEEP: 3, syscall.SYS_NANOSLEEP: 1, syscall.SYS_POLL: 1, syscall.SYS_FUTEX: 2,
		})
	})
	var most, least [kinds]time.Duration
	began := sinceBoot(t) // of all waits, at the latest
	for kind := range kinds {
		most[kind] = time.Duration(977-97*kind) * time.Second
		least[kind] = most[kind]
	}
	folder := t.TempDir()
	for n := range 3 {
		time.Sleep(100 * time.Millisecond)
		dir := filepath.Join(folder, fmt.Sprint(n))
		stopping := sinceBoot(t)
		p.cycle(t, dir)
		after := sinceBoot(t)
		found := 0
		r, err := image.Open(dir, image.ReadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, thread := range r.Image().Processes[0].Threads[1:] {
			if thread.Restart == nil {
				t.Errorf("of thread %d it is not known what is left: %+v", thread.TID, thread.Registers)
				continue
			}
			left := thread.Restart.Left
			for kind := range kinds {
				if left > least[kind]-50*time.Second && left <= most[kind] {
					found++
					if up := most[kind] - (stopping - began); left > up+time.Millisecond {
						t.Errorf("wait %d has %v left, at most %v are", kind, left, up)
					}
					if low := least[kind] - (after - begin); left < low {
						t.Errorf("wait %d has %v left, at least %v are", kind, left, low)
					}
					most[kind], least[kind] = left, left
				}
			}
		}
		r.Close()
		if found != kinds {
			t.Fatalf("%d of %d waits found", found, kinds)
		}
		// The restored program has waited on since some time between these.
		begin, began = stopping, after
	}
	p.end(t, syscall.SIGTERM)
}

// sinceBoot is CLOCK_MONOTONIC.
func sinceBoot(t *testing.T) time.Duration {
	t.Helper()
	now, _, err := kernel.SinceBoot()
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(now)
}
