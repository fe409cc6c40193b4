package tracee

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// dieEnv makes the test binary, which holds a session of the process of helperEnv, kill
// itself at a point of a solo.
const dieEnv = "VOS_TEST_DIE"

// What a solo of these tests does in a page of the process: it notes the time, sleeps,
// and notes it again.
const (
	soloNap    = 300 * time.Millisecond
	napAt      = 64
	beginsAt   = 0
	endsAt     = 16
	soloAsleep = soloNap / 3
)

// noting maps a page and returns the calls that write to it.
func noting(s *Session) (page uint64, calls []SoloCall, err error) {
	if page, err = s.Call(syscall.SYS_MMAP, 0, pageSize, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANONYMOUS, ^uint64(0), 0); err != nil {
		return 0, nil, err
	}
	nap := binary.LittleEndian.AppendUint64(make([]byte, 8), uint64(soloNap))
	if _, err := s.memory.WriteAt(nap, int64(page)+napAt); err != nil {
		return 0, nil, err
	}
	add := func(number uint64, args ...uint64) {
		c := SoloCall{Call: Call{Number: number}}
		copy(c.Args[:], args)
		calls = append(calls, c)
	}
	add(syscall.SYS_CLOCK_GETTIME, 1, page+beginsAt)
	add(syscall.SYS_NANOSLEEP, page+napAt, 0)
	add(syscall.SYS_CLOCK_GETTIME, 1, page+endsAt)
	return page, calls, nil
}

// dieInSolo is the helper. It prints the address of the page.
func dieInSolo(p *procfs.Process, at string) error {
	_, err := Do(context.Background(), p, Options{}, func(s *Session) error {
		if err := s.StopAll(); err != nil {
			return err
		}
		if err := s.Borrow(); err != nil {
			return err
		}
		page, calls, err := noting(s)
		if err != nil {
			return err
		}
		fmt.Println(page)
		solo, err := s.MapSolo(len(calls))
		if err != nil {
			return err
		}
		if err := s.GiveBack(); err != nil {
			return err
		}
		perform, err := s.layOut(solo, calls)
		if err != nil {
			return err
		}
		die := func() error { return syscall.Kill(os.Getpid(), syscall.SIGKILL) }
		for i := len(perform.tids) - 1; i >= 0; i-- {
			if at == "others" && i == 0 || at == "half" && i == len(perform.tids)/2 {
				return die()
			}
			if err := s.bar(perform, i); err != nil {
				return err
			}
		}
		if at == "running" {
			if err := kernel.ContinueToSyscall(perform.tids[0], 0); err != nil {
				return err
			}
		}
		return die()
	})
	return errors.Join(err, errors.New("it should have died"))
}

// TestTracerDiesInSolo kills the tracer where a thread is to make calls alone. They are
// all made while no other thread runs, or none is; then all go on.
func TestTracerDiesInSolo(t *testing.T) {
	for _, at := range []string{"half", "others", "all", "running"} {
		t.Run(at, func(t *testing.T) {
			p := steady(t, []string{"STEADY_EINTR=fatal"}, "16", "mixed")
			memory, err := p.OpenMemory()
			if err != nil {
				t.Fatal(err)
			}
			defer memory.Close()
			helper := exec.Command(os.Args[0])
			helper.Env = append(os.Environ(), fmt.Sprintf("%s=%d", helperEnv, p.PID()), dieEnv+"="+at)
			var out, stderr bytes.Buffer
			helper.Stdout, helper.Stderr = &out, &stderr
			if err := helper.Run(); err == nil || err.Error() != "signal: killed" {
				t.Fatalf("the helper: %v: %s", err, stderr.String())
			}
			page, err := strconv.ParseInt(strings.TrimSpace(out.String()), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			noted := func(at int64) bool {
				var words [16]byte
				if _, err := memory.ReadAt(words[:], page+at); err != nil {
					t.Fatal(err)
				}
				return words != [16]byte{}
			}
			if made := at == "all" || at == "running"; !made {
				time.Sleep((soloPatience + 1) * time.Second)
				if noted(beginsAt) {
					t.Error("calls were made, though not all were barred")
				}
				checkFree(t, p)
				return
			}
			await(t, func() bool { return noted(beginsAt) })
			before := cpuTime(t, p)
			time.Sleep(soloAsleep)
			if after := cpuTime(t, p); !noted(endsAt) && after > before+4 { // ticks of 10 ms
				t.Errorf("the others ran for %d ticks meanwhile", after-before)
			}
			await(t, func() bool { return noted(endsAt) })
			checkFree(t, p)
		})
	}
}

func await(t *testing.T, done func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nothing was done")
		}
	}
}

// cpuTime is what all threads have run in user mode, in ticks.
func cpuTime(t *testing.T, p *procfs.Process) (ticks uint64) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID()))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	ticks, err = strconv.ParseUint(strings.Fields(rest)[11], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return ticks
}

// TestSolo makes calls alone, again and again: all is as it was, and results are right.
func TestSolo(t *testing.T) {
	for _, mode := range [][]string{{"1", "spin"}, {"1", "wait"}, {"16", "mixed"}, {"64", "wait"}} {
		t.Run(strings.Join(mode, " "), func(t *testing.T) {
			p := steady(t, []string{"STEADY_EINTR=fatal"}, mode...)
			before := mappings(t, p)
			for range 20 {
				_, err := Do(context.Background(), p, Options{}, func(s *Session) error {
					if err := s.StopAll(); err != nil {
						return err
					}
					if err := s.CheckSolo([]Call{{Number: syscall.SYS_GETPID}}); err != nil {
						return err
					}
					if err := s.Borrow(); err != nil {
						return err
					}
					solo, err := s.MapSolo(3)
					if err != nil {
						return err
					}
					if err := s.GiveBack(); err != nil {
						return err
					}
					// The second fails, and its target is mapped: it is passed over.
					calls := []SoloCall{{Call: Call{Number: syscall.SYS_GETPID}},
						{Call: Call{Number: syscall.SYS_CLOSE, Args: [6]uint64{1 << 30}}, Target: solo.data}, {Call: Call{Number: syscall.SYS_GETPPID}}}
					results, err := s.RunAlone(solo, calls)
					if err != nil {
						return err
					}
					if results[0] != s.ownPID || syscall.Errno(-results[1]) != syscall.EBADF || results[2] != uint64(os.Getpid()) {
						return fmt.Errorf("results %x", results)
					}
					if err := s.Borrow(); err != nil {
						return err
					}
					return s.UnmapSolo(solo)
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			checkFree(t, p)
			if after := mappings(t, p); len(after) != len(before) {
				t.Errorf("mappings were %v and are %v", before, after)
			}
		})
	}
}
