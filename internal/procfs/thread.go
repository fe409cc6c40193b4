package procfs

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
)

// HasThread reports whether a thread of this id belongs to the process, a
// zombie included.
func (p *Process) HasThread(tid int) bool {
	_, err := p.dir.Stat("task/" + strconv.Itoa(tid))
	return err == nil
}

// ThreadCount returns how many threads the process has, those included that
// have ended and are not reaped: the links of its task folder but two, which is
// one system call where Threads takes several.
func (p *Process) ThreadCount() (int, error) {
	st, err := p.dir.Stat("task")
	if err != nil {
		return 0, p.failed("count threads of", err)
	}
	return int(st.Links) - 2, nil
}

// Children returns the ids of the processes that threads of this one have started
// and not reaped yet: /proc/PID/task/TID/children of all of them.
func (p *Process) Children() ([]int, error) {
	tids, err := p.Threads()
	if err != nil {
		return nil, err
	}
	of := make([][]int, len(tids))
	err = Abreast(len(tids), func(i int) (err error) {
		if of[i], err = p.childrenOf(tids[i]); err != nil && !p.HasThread(tids[i]) {
			return nil
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return slices.Concat(of...), nil
}

// childrenOf returns the ids of the processes that one thread has started.
func (p *Process) childrenOf(tid int) (pids []int, err error) {
	err = p.read("task/"+strconv.Itoa(tid)+"/children", func(text []byte) error {
		for field := range bytes.FieldsSeq(text) {
			pid, err := strconv.Atoi(string(field))
			if err != nil {
				return err
			}
			pids = append(pids, pid)
		}
		return nil
	})
	return pids, err
}

// DescriptorLimit returns how many descriptors the process may have open: the soft
// limit of /proc/PID/limits, RLIMIT_NOFILE.
func (p *Process) DescriptorLimit() (limit int, err error) {
	err = p.read("limits", func(text []byte) error {
		for line := range bytes.Lines(text) {
			rest, found := bytes.CutPrefix(line, []byte("Max open files"))
			if !found {
				continue
			}
			fields := bytes.Fields(rest)
			if len(fields) == 0 {
				break
			}
			if limit, err = strconv.Atoi(string(fields[0])); err != nil {
				return err
			}
			return nil
		}
		return fmt.Errorf("no line of open files")
	})
	return limit, err
}

// LivingThread returns a thread that stands for the process: the main thread, or,
// where that has ended before the others, one of these.
func (p *Process) LivingThread() (int, error) {
	stat, err := p.Stat()
	if err != nil {
		return 0, err
	}
	if !stat.Zombie() {
		return p.pid, nil
	}
	tids, err := p.Threads()
	if err != nil {
		return 0, err
	}
	for _, tid := range tids {
		if thread, err := p.ThreadStat(tid); err == nil && !thread.Zombie() {
			return tid, nil
		}
	}
	return 0, p.failed("find a thread of", ErrGone)
}
