package vex

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/virtualizing-os/vos/internal/api"
)

func TestGroup(t *testing.T) {
	process := func(pid, ppid int, name, executable string) api.Process {
		return api.Process{PID: pid, PPID: ppid, Name: name, Executable: executable, Threads: 1, Modules: pid}
	}
	withList := process(12, 10, "nginx", "/usr/sbin/nginx")
	withList.OutdatedModules, withList.CorruptModules = []string{"libz", "libc"}, []string{"libz"}
	other := process(13, 10, "nginx", "/usr/sbin/nginx")
	other.OutdatedModules, other.Unread = []string{"libz"}, []string{"memory: not permitted"}

	tests := []struct {
		name      string
		processes []api.Process
		want      []string
	}{
		{"a master with its workers", []api.Process{process(10, 1, "nginx", "/usr/sbin/nginx"), withList, other},
			[]string{"nginx 10: 10 12 13, 3 threads, 13 modules, 2 outdated, 1 corrupt, partial true"}},
		{"another program between", []api.Process{process(1, 0, "init", "/init"), process(5, 1, "sh", "/bin/sh"), process(6, 5, "cat", "/bin/cat")},
			[]string{"init 1: 1, 1 threads, 1 modules, 0 outdated, 0 corrupt, partial false", "sh 5: 5, 1 threads, 5 modules, 0 outdated, 0 corrupt, partial false", "cat 6: 6, 1 threads, 6 modules, 0 outdated, 0 corrupt, partial false"}},
		{"executables that may not be read: name and user", []api.Process{process(3, 1, "x", ""), process(4, 3, "x", ""), process(5, 3, "y", "")},
			[]string{"x 3: 3 4, 2 threads, 4 modules, 0 outdated, 0 corrupt, partial false", "y 5: 5, 1 threads, 5 modules, 0 outdated, 0 corrupt, partial false"}},
		{"a loop made by a pid that was used again", []api.Process{process(3, 4, "x", "/x"), process(4, 3, "x", "/x")}, nil},
		{"none", nil, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var got []string
			count := 0
			for _, p := range group(test.processes) {
				line := fmt.Sprintf("%s %d:", p.Name, p.PID)
				for _, m := range p.Processes {
					line += fmt.Sprintf(" %d", m.PID)
					count++
				}
				got = append(got, line+fmt.Sprintf(", %d threads, %d modules, %d outdated, %d corrupt, partial %v", p.Threads, p.Modules, p.Outdated, p.Corrupt, p.Partial))
			}
			if count != len(test.processes) {
				t.Errorf("%d processes of %d are left", count, len(test.processes))
			}
			if diff := cmp.Diff(test.want, got); test.want != nil && diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestInOrder(t *testing.T) {
	items := make([]int, 100)
	for i := range items {
		items[i] = i
	}
	t.Run("results come in order", func(t *testing.T) {
		var got []int
		err := inOrder(context.Background(), items, func(_ context.Context, i int) int {
			time.Sleep(time.Duration(100-i) * 10 * time.Microsecond)
			return i
		}, func(i int) error {
			got = append(got, i)
			return nil
		})
		if err != nil || !slices.Equal(got, items) {
			t.Errorf("%v, %v", got, err)
		}
	})
	t.Run("every item is let go of after an error", func(t *testing.T) {
		failure := errors.New("broken pipe")
		let := make(chan int, len(items))
		err := inOrder(context.Background(), items, func(_ context.Context, i int) int {
			let <- i
			return i
		}, func(i int) error {
			if i == 3 {
				return failure
			}
			if i > 3 {
				t.Errorf("%d was emitted after the error", i)
			}
			return nil
		})
		if !errors.Is(err, failure) || len(let) != len(items) {
			t.Errorf("%v, %d of %d", err, len(let), len(items))
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := inOrder(ctx, items, func(_ context.Context, i int) int { return i }, func(int) error { return nil }); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	t.Run("nothing", func(t *testing.T) {
		if err := inOrder(context.Background(), nil, func(context.Context, int) int { return 0 }, func(int) error { return nil }); err != nil {
			t.Error(err)
		}
	})
}
