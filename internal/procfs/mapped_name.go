package procfs

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"
)

var errEmptyMaps = errors.New("nothing is mapped")

// settleNames decides what the text of maps leaves open: whether \012 was a
// newline or four characters of the name, and whether " (deleted)" belongs to
// the name. Where nothing can be found out any more (the mapping is gone
// again, a right is missing) the likeliest reading stays.
func (p *Process) settleNames(maps []Mapping) {
	type question struct {
		device [2]uint32
		inode  uint64
		path   string
	}
	var answers map[question]Mapping
	for i := range maps {
		m := &maps[i]
		if m.Inode == 0 || !m.Deleted && !strings.Contains(m.Path, "\n") {
			continue
		}
		q := question{[2]uint32{m.DevMajor, m.DevMinor}, m.Inode, m.Path}
		answer, found := answers[q]
		if !found {
			answer = *m
			p.settleName(&answer)
			if answers == nil {
				answers = make(map[question]Mapping)
			}
			answers[q] = answer
		}
		m.Path, m.Kind, m.Deleted = answer.Path, answer.Kind, answer.Deleted
	}
}

func (p *Process) settleName(m *Mapping) {
	if strings.Contains(m.Path, "\n") {
		// The link's text has no escapes, but the same mark.
		if link, err := p.dir.ReadLink(mapFile(m)); err == nil {
			m.Path, m.Deleted = strings.CutSuffix(link, deletedMark)
		}
	}
	if !m.Deleted {
		return
	}
	literal := *m
	literal.Path += deletedMark
	if same, err := p.isAtPath(&literal); err == nil && same {
		m.Path, m.Deleted, m.Kind = literal.Path, false, KindFile
	}
}

// mapFile names the magic link to a mapping's file, proc_pid_map_files(5).
func mapFile(m *Mapping) string {
	return "map_files/" + strconv.FormatUint(m.Start, 16) + "-" + strconv.FormatUint(m.End, 16)
}

// livingThread returns the maps file of a thread that still has memory, after
// reading another's said that there is none: of a process whose main thread
// has called pthread_exit only the other threads have maps. Without such a
// thread it returns what the failure means.
func (p *Process) livingThread(tried string, failure error) (string, error) {
	empty := errors.Is(failure, errEmptyMaps)
	if tried != "maps" || !empty && !errors.Is(failure, ErrGone) && !errors.Is(failure, syscall.ESRCH) {
		return "", failure
	}
	stat, err := p.Stat()
	if err != nil {
		return "", fmt.Errorf("read maps of process %d: %w", p.pid, ErrGone)
	}
	if stat.KernelThread() {
		return "", fmt.Errorf("read maps of process %d: %w", p.pid, ErrNoMemory)
	}
	if !stat.Zombie() {
		if empty { // between the two looks it exited, or is about to
			failure = fmt.Errorf("read maps of process %d: %w", p.pid, ErrGone)
		}
		return "", failure
	}
	tids, err := p.Threads()
	if err != nil {
		return "", err
	}
	for _, tid := range tids {
		thread, err := p.ThreadStat(tid)
		if err == nil && !thread.Zombie() {
			return "task/" + strconv.Itoa(tid) + "/maps", nil
		}
	}
	return "", fmt.Errorf("read maps of process %d: it is a zombie: %w", p.pid, ErrGone)
}
