package testbed

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Subreaper makes this process the parent of orphaned descendants, so that it
// sees and can reap what a killed vOS or server leaves behind, even where PID 1
// reaps late (prctl(2), PR_SET_CHILD_SUBREAPER).
func Subreaper() error {
	const prSetChildSubreaper = 36
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, prSetChildSubreaper, 1, 0); errno != 0 {
		return fmt.Errorf("become a subreaper: %w", errno)
	}
	return nil
}

// ReapOrphans reaps those children of this process that have ended and are in
// pids: processes that became its children because their parent died. Children
// that os/exec waits for must not be among them.
func ReapOrphans(pids ...int) {
	for _, pid := range pids {
		for {
			_, err := syscall.Wait4(pid, nil, syscall.WNOHANG, nil)
			if err != syscall.EINTR {
				break
			}
		}
	}
}

// A Snapshot is what this process holds at one time.
type Snapshot struct {
	descriptors []string
	children    []string
	traced      []string // threads of others that this process traces
	goroutines  int
}

// TakeSnapshot lists this process's descriptors, children and tracees, and counts
// its goroutines: the runtime keeps threads of its own, so a thread that was
// forgotten shows as the goroutine that holds it.
func TakeSnapshot() (Snapshot, error) {
	var s Snapshot
	all, err := descriptors(os.Getpid())
	if err != nil {
		return s, fmt.Errorf("take a snapshot: %w", err)
	}
	for _, d := range all {
		// Reading the folder needs a descriptor itself. The runtime opens its
		// epoll instance and its eventfd when they are first needed, and keeps
		// one pidfd for nobody.
		_, target, _ := strings.Cut(d, " ")
		if strings.HasPrefix(target, fmt.Sprintf("/proc/%d/fd", os.Getpid())) ||
			target == "anon_inode:[eventpoll]" || target == "anon_inode:[eventfd]" {
			continue
		}
		s.descriptors = append(s.descriptors, d)
	}
	for _, p := range allProcesses() {
		if p.parent == os.Getpid() {
			command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p.pid)) // for people; may be gone
			s.children = append(s.children, fmt.Sprintf("%d %s %c", p.pid, strings.TrimSpace(string(command)), p.state))
		}
	}
	slices.Sort(s.children)
	s.traced = tracees()
	s.goroutines = runtime.NumGoroutine()
	return s, nil
}

// tracees lists the threads of all processes that a thread of this one traces.
func tracees() []string {
	own, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return nil
	}
	tracer := make(map[string]bool)
	for _, task := range own {
		tracer[task.Name()] = true
	}
	var all []string
	for _, p := range allProcesses() {
		folder := fmt.Sprintf("/proc/%d/task/", p.pid)
		tasks, err := os.ReadDir(folder)
		if err != nil {
			continue // it has ended
		}
		for _, task := range tasks {
			text, err := os.ReadFile(folder + task.Name() + "/status")
			if err != nil {
				continue
			}
			_, rest, _ := strings.Cut(string(text), "\nTracerPid:\t")
			if by, _, _ := strings.Cut(rest, "\n"); by != "0" && tracer[by] {
				all = append(all, fmt.Sprintf("thread %s of %d", task.Name(), p.pid))
			}
		}
	}
	return all
}

// signalGoroutines is what os/signal starts at its first use and keeps.
const signalGoroutines = 1

// Leaks lists what this process holds now and did not hold in the snapshot
// before, a line each: descriptors and children, dead ones that nobody reaped
// included. Things that are just being closed get a second to go.
func (before Snapshot) Leaks() ([]string, error) {
	for end := time.Now().Add(time.Second); ; time.Sleep(10 * time.Millisecond) {
		now, err := TakeSnapshot()
		if err != nil {
			return nil, err
		}
		var leaks []string
		for _, line := range slices.Concat(diff("descriptor", before.descriptors, now.descriptors),
			diff("child", before.children, now.children), diff("tracee", before.traced, now.traced)) {
			if strings.HasPrefix(line, "+") {
				leaks = append(leaks, line)
			}
		}
		if now.goroutines > before.goroutines+signalGoroutines {
			leaks = append(leaks, fmt.Sprintf("+ %d goroutines", now.goroutines-before.goroutines))
		}
		if len(leaks) == 0 || time.Now().After(end) {
			return leaks, nil
		}
	}
}

// RunTests is the body of a TestMain that fails the run of a package on what
// it leaks:
//
//	func TestMain(m *testing.M) { os.Exit(testbed.RunTests(m)) }
func RunTests(m interface{ Run() int }) int {
	if err := Subreaper(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	before, err := TakeSnapshot()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	leaks, err := before.Leaks()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for _, leak := range leaks {
		fmt.Fprintln(os.Stderr, "leaked by this test run:", leak)
	}
	if code == 0 && len(leaks) > 0 {
		return 1
	}
	return code
}
