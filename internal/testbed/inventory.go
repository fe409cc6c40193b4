package testbed

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// An Inventory is what a process holds, seen from outside.
type Inventory struct {
	Pid         int
	Descriptors []string // "3 socket:[4711]", sorted by number
	Threads     []int    // sorted
	Mappings    []string // lines of /proc/PID/maps without addresses: "r-xp 1c000 /usr/lib/…/libz.so.1.2.13"
	RSS         int64    // bytes
}

// TakeInventory lists what pid holds. A process that runs may change meanwhile:
// compare two only where it is known not to.
func TakeInventory(pid int) (Inventory, error) {
	inventory := Inventory{Pid: pid}
	var err error
	if inventory.Descriptors, err = descriptors(pid); err != nil {
		return inventory, fmt.Errorf("take inventory of %d: %w", pid, err)
	}
	if inventory.Threads, err = threads(pid); err != nil {
		return inventory, fmt.Errorf("take inventory of %d: %w", pid, err)
	}
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return inventory, fmt.Errorf("take inventory of %d: %w", pid, err)
	}
	for line := range strings.Lines(string(maps)) {
		// address perms offset device inode path
		fields := strings.SplitN(strings.TrimRight(line, "\n"), " ", 6)
		if len(fields) < 5 {
			return inventory, fmt.Errorf("take inventory of %d: mapping %.80q", pid, line)
		}
		path := ""
		if len(fields) == 6 {
			path = strings.TrimLeft(fields[5], " ")
		}
		offset := strings.TrimLeft(fields[2], "0")
		if offset == "" {
			offset = "0"
		}
		inventory.Mappings = append(inventory.Mappings, fields[1]+" "+offset+" "+path)
	}
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return inventory, fmt.Errorf("take inventory of %d: %w", pid, err)
	}
	var size, resident int64
	if _, err := fmt.Sscan(string(statm), &size, &resident); err != nil {
		return inventory, fmt.Errorf("take inventory of %d: statm %.40q: %w", pid, statm, err)
	}
	inventory.RSS = resident * int64(os.Getpagesize())
	return inventory, nil
}

// Diff lists what differs in the later inventory, a line each: "+ descriptor 5
// pipe:[1]". RSS is left out: it moves by itself.
func (before Inventory) Diff(after Inventory) []string {
	var lines []string
	lines = append(lines, diff("descriptor", before.Descriptors, after.Descriptors)...)
	lines = append(lines, diff("thread", texts(before.Threads), texts(after.Threads))...)
	return append(lines, diff("mapping", before.Mappings, after.Mappings)...)
}

func texts(numbers []int) []string {
	var all []string
	for _, n := range numbers {
		all = append(all, strconv.Itoa(n))
	}
	return all
}

// diff compares two lists as bags: order does not count, number does.
func diff(kind string, before, after []string) []string {
	count := map[string]int{}
	for _, b := range before {
		count[b]--
	}
	for _, a := range after {
		count[a]++
	}
	var lines []string
	for text, n := range count {
		sign := "+"
		if n < 0 {
			sign, n = "-", -n
		}
		for range n {
			lines = append(lines, sign+" "+kind+" "+text)
		}
	}
	slices.Sort(lines)
	return lines
}

func descriptors(pid int) ([]string, error) {
	folder := fmt.Sprintf("/proc/%d/fd", pid)
	numbers, err := numberedEntries(folder)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, n := range numbers {
		target, err := os.Readlink(filepath.Join(folder, strconv.Itoa(n)))
		if errors.Is(err, os.ErrNotExist) {
			continue // closed meanwhile
		}
		if err != nil {
			return nil, err
		}
		all = append(all, strconv.Itoa(n)+" "+target)
	}
	return all, nil
}

func threads(pid int) ([]int, error) {
	return numberedEntries(fmt.Sprintf("/proc/%d/task", pid))
}

func numberedEntries(folder string) ([]int, error) {
	f, err := os.Open(folder)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var numbers []int
	for _, name := range names {
		n, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	return numbers, nil
}

// Disturbance says what keeps the threads of pid from running freely: a tracer,
// a stop by signal (T) or by a tracer (t), or their end. It is "" for a process that is
// left alone. stopExpected allows for a program that was stopped by SIGSTOP
// and should still be.
func Disturbance(pid int, stopExpected bool) (string, error) {
	tids, err := threads(pid)
	if err != nil {
		return "", fmt.Errorf("look at %d: %w", pid, err)
	}
	var found []string
	alive := false
	for _, tid := range tids {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/status", pid, tid))
		if err != nil {
			continue // ended meanwhile
		}
		state, tracer := statusField(status, "State"), statusField(status, "TracerPid")
		alive = alive || !strings.HasPrefix(state, "Z") && !strings.HasPrefix(state, "X")
		if tracer != "0" && tracer != "" {
			found = append(found, fmt.Sprintf("thread %d is traced by %s", tid, tracer))
		}
		if strings.HasPrefix(state, "t") || (strings.HasPrefix(state, "T") && !stopExpected) {
			found = append(found, fmt.Sprintf("thread %d is in state %s", tid, state))
		}
		if stopExpected && !strings.HasPrefix(state, "T") {
			found = append(found, fmt.Sprintf("thread %d is in state %s, not stopped", tid, state))
		}
	}
	if !alive {
		found = append(found, "it has ended")
	}
	return strings.Join(found, "; "), nil
}

// statusField returns the value of a line of a status file (proc(5)). The
// Name line comes first and escapes newlines, so no other line can be forged.
func statusField(status []byte, name string) string {
	for line := range bytes.Lines(status) {
		if value, ok := bytes.CutPrefix(line, []byte(name+":")); ok {
			return string(bytes.TrimSpace(value))
		}
	}
	return ""
}

// AssertUndisturbed ends a test if pid has ended, or a thread of it is traced or
// stopped.
func AssertUndisturbed(tb TB, pid int) {
	tb.Helper()
	switch found, err := Disturbance(pid, false); {
	case err != nil:
		tb.Fatalf("%v", err)
	case found != "":
		tb.Fatalf("process %d is not left alone: %s", pid, found)
	}
}
