package live

import (
	"context"
	"math"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// A victim is a program that vos is killed over.
type victim struct {
	target string
	module string // in which there is something to heal
	pids   []int
	check  func(t *testing.T) // right answers since the last check
}

// TestKilledAtAnyInstant kills vos at random instants, log-uniform from 50 µs to
// a whole run, while it verifies or refreshes. The program must live on, answer
// right, be untraced and running, and the next refresh must work.
func TestKilledAtAnyInstant(t *testing.T) {
	kills := 100 // 300 in all
	if soak {
		kills = 1000
	}
	for name, start := range map[string]func(*testing.T) victim{"nginx": nginxVictim, "64 threads": threadsVictim, "redis": redisVictim} {
		t.Run(name, func(t *testing.T) {
			v := start(t)
			commands := [][]string{
				{"refresh", v.target}, {"verify", v.target}, {"refresh", v.target + ":" + v.module}, {"verify", "--full", v.target},
			}
			whole := wholeRuns(t, v, commands)
			killed := 0
			for n := range kills {
				for _, pid := range v.pids {
					corruptGap(t, pid, v.module)
				}
				i := n % len(commands)
				if killAfter(t, instant(whole[i]), commands[i]) {
					killed++
				}
				for _, pid := range v.pids {
					checkFree(t, pid)
				}
				if n%10 == 9 {
					v.check(t)
				}
			}
			if killed < kills/2 {
				t.Errorf("only %d of %d runs were killed before their end", killed, kills)
			}
			vos(t, "refresh", v.target).expect(t, 0)
			vos(t, "verify", "--full", v.target).expect(t, 0)
			v.check(t)
			for _, pid := range v.pids {
				checkFree(t, pid)
			}
		})
	}
}

// wholeRuns measures how long the commands take when nobody kills them.
func wholeRuns(t *testing.T, v victim, commands [][]string) []time.Duration {
	t.Helper()
	whole := make([]time.Duration, len(commands))
	for i, c := range commands {
		var runs []time.Duration
		for range 3 {
			for _, pid := range v.pids {
				corruptGap(t, pid, v.module)
			}
			begin := time.Now()
			if r := vos(t, c...); r.Code != 0 && r.Code != 10 {
				t.Fatalf("vos %v: exit code %d\n%s", c, r.Code, r.Stderr)
			}
			runs = append(runs, time.Since(begin))
		}
		slices.Sort(runs)
		whole[i] = runs[1]
	}
	return whole
}

// instant returns a random time from 50 µs to whole, log-uniform.
func instant(whole time.Duration) time.Duration {
	const first = 50 * time.Microsecond
	return time.Duration(float64(first) * math.Pow(float64(whole)/float64(first), rand.Float64()))
}

// killAfter runs the binary and kills it after d. It reports whether that came
// before the end of the run.
func killAfter(t *testing.T, d time.Duration, args []string) bool {
	t.Helper()
	cmd := exec.Command(binary, args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for begin := time.Now(); time.Since(begin) < d; {
		// Sleeping would round small times up.
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Logf("kill: %v", err)
	}
	err := cmd.Wait()
	return err != nil && err.Error() == "signal: killed"
}

func nginxVictim(t *testing.T) victim {
	binary := renamed(t, "nginx")
	nginx := testbed.RunNginx(t, testbed.NginxOptions{Binary: binary})
	load := nginx.Load(context.Background(), testbed.LoadOptions{})
	t.Cleanup(func() {
		totals := load.Stop()
		t.Log(totals)
		if totals.Failed > 0 || totals.Served == 0 {
			t.Errorf("failed requests: %v", totals.Errors)
		}
	})
	pids := nginx.Pids()
	return victim{filepath.Base(binary), "libz.so.1", pids, func(t *testing.T) {
		t.Helper()
		if totals := load.Totals(); totals.Failed > 0 {
			t.Fatalf("failed requests: %v", totals.Errors)
		}
		if got := nginx.Pids(); !slices.Equal(got, pids) {
			t.Fatalf("processes were %v and are %v", pids, got)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := load.Await(ctx, 20); err != nil {
			t.Fatalf("no more answers: %v", err)
		}
	}}
}

func redisVictim(t *testing.T) victim {
	redis := testbed.RunRedis(t, testbed.RedisOptions{})
	load := redis.Load(context.Background(), testbed.LoadOptions{})
	t.Cleanup(func() {
		totals := load.Stop()
		t.Log(totals)
		if totals.Failed > 0 || totals.Served == 0 || totals.Reconnects > 0 {
			t.Errorf("failed requests: %v", totals.Errors)
		}
	})
	return victim{strconv.Itoa(redis.Pid()), "libc.so.6", []int{redis.Pid()}, func(t *testing.T) {
		t.Helper()
		if totals := load.Totals(); totals.Failed > 0 {
			t.Fatalf("failed requests: %v", totals.Errors)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := load.Await(ctx, 20); err != nil {
			t.Fatalf("no more answers: %v", err)
		}
	}}
}

func threadsVictim(t *testing.T) victim {
	f := testbed.RunFixture(t, "threads", "64", "mixed", "5")
	before, err := f.Report(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return victim{strconv.Itoa(f.Pid()), "libc.so.6", []int{f.Pid()}, func(t *testing.T) {
		t.Helper()
		time.Sleep(20 * time.Millisecond)
		now, err := f.Report(t.Context())
		if err == nil {
			err = now.Healthy(before)
		}
		if err != nil {
			t.Fatal(err)
		}
		before = now
	}}
}
