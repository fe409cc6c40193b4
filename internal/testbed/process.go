package testbed

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
)

// A processStat is the beginning of /proc/PID/stat (proc(5)).
type processStat struct {
	pid, parent, group int
	state              byte
}

// parseStat reads the text of a stat file. The command in it may contain
// spaces, brackets and newlines: only the last bracket counts.
func parseStat(text []byte) (processStat, error) {
	open, end := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')')
	if open < 1 || end < open {
		return processStat{}, fmt.Errorf("parse stat %.40q: no command", text)
	}
	var s processStat
	var err error
	if s.pid, err = strconv.Atoi(string(bytes.TrimSpace(text[:open]))); err != nil {
		return s, fmt.Errorf("parse stat %.40q: %w", text, err)
	}
	if _, err = fmt.Sscanf(string(text[end+1:]), " %c %d %d", &s.state, &s.parent, &s.group); err != nil {
		return s, fmt.Errorf("parse stat %.40q: %w", text, err)
	}
	return s, nil
}

// allProcesses lists the processes that can be seen. One that ends meanwhile
// is left out.
func allProcesses() []processStat {
	folder, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer folder.Close()
	names, _ := folder.Readdirnames(-1) // what could be read is used
	var all []processStat
	for _, name := range names {
		if name[0] < '0' || name[0] > '9' {
			continue
		}
		text, err := os.ReadFile("/proc/" + name + "/stat")
		if err != nil {
			continue
		}
		if s, err := parseStat(text); err == nil {
			all = append(all, s)
		}
	}
	return all
}

// Children returns the pids of the living children of pid, sorted.
func Children(pid int) []int {
	var children []int
	for _, p := range allProcesses() {
		if p.parent == pid && p.state != 'Z' && p.state != 'X' {
			children = append(children, p.pid)
		}
	}
	slices.Sort(children)
	return children
}
