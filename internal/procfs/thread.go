package procfs

import "strconv"

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
