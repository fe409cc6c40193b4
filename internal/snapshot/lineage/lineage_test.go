package lineage

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/virtualizing-os/vos/internal/image"
)

// A world is what the kernel knows of processes.
type world map[int]*place

// A place is what it knows of one. One that has ended is there until it was waited for.
type place struct {
	parent, group, session int
	reaper, ended          bool
}

func (w world) fork(by, pid int) {
	p := *w[by]
	w[pid] = &place{parent: by, group: p.group, session: p.session}
}

// taken says that an id is a process's, a group's or a session's.
func (w world) taken(id int) bool {
	for pid, p := range w {
		if pid == id || p.group == id || p.session == id {
			return true
		}
	}
	return false
}

func (w world) setsid(pid int) bool {
	for _, p := range w {
		if p.group == pid {
			return false
		}
	}
	w[pid].group, w[pid].session = pid, pid
	return true
}

func (w world) setpgid(pid, group int) bool {
	p := w[pid]
	if p.session == pid || p.group == group {
		return p.group == group
	}
	for _, q := range w {
		if group == pid || q.group == group && q.session == p.session {
			p.group = group
			return true
		}
	}
	return false
}

// exit ends a process: its children go to the nearest subreaper above.
func (w world) exit(pid int) {
	p := w[pid]
	p.ended = true
	heir := p.parent
	for heir != 0 && !w[heir].reaper {
		heir = w[heir].parent
	}
	for _, c := range w {
		if c.parent == pid {
			c.parent = heir
		}
	}
}

const rootPID = 2

// live lets processes do what processes do, with ids from 3 on. The root is a subreaper,
// so that all stay below it.
func live(r *rand.Rand) world {
	w := world{rootPID: {group: rootPID, session: rootPID, reaper: true}}
	next := rootPID + 1
	for range 5 + r.IntN(40) {
		var pids []int
		for pid, p := range w {
			if !p.ended {
				pids = append(pids, pid)
			}
		}
		slices.Sort(pids)
		pid := pids[r.IntN(len(pids))]
		switch n := r.IntN(10); {
		case n < 5:
			w.fork(pid, next)
			next++
		case n == 5:
			w.setsid(pid)
		case n == 6:
			w.setpgid(pid, pids[r.IntN(len(pids))])
		case n == 7:
			w.setpgid(pid, pid)
		case n == 8 && r.IntN(3) == 0:
			w[pid].reaper = true
		case pid != rootPID:
			w.exit(pid)
			if r.IntN(3) > 0 {
				delete(w, pid)
			}
		}
	}
	return w
}

// imageOf is what an image says of it, parents before their children.
func imageOf(w world) (processes []image.Process, ended []image.Ended) {
	pids := []int{rootPID}
	for i := 0; i < len(pids); i++ {
		var children []int
		for pid, p := range w {
			if p.parent == pids[i] {
				children = append(children, pid)
			}
		}
		slices.Sort(children)
		pids = append(pids, children...)
	}
	for _, pid := range pids {
		if p := w[pid]; p.ended {
			ended = append(ended, image.Ended{PID: pid, Parent: p.parent, Group: p.group, Session: p.session})
		} else {
			processes = append(processes, image.Process{PID: pid, Parent: p.parent, Group: p.group, Session: p.session})
		}
	}
	return processes, ended
}

// follow does what a plan says, by the kernel's rules.
func follow(t *testing.T, plan Plan, ended []image.Ended) world {
	t.Helper()
	const starter, between = 1, 1 << 20
	w := world{starter: {reaper: true}}
	for _, s := range plan.Steps {
		switch {
		case s.Session:
			if !w.setsid(s.PID) {
				t.Fatalf("%+v: it leads a group", s)
			}
			continue
		case w.taken(s.PID):
			t.Fatalf("%+v: its id is taken", s)
		case s.By == 0:
			w.fork(starter, s.PID)
			continue
		case w[s.By] == nil:
			t.Fatalf("%+v: nobody bears it", s)
		case s.Adopter == 0:
			w.fork(s.By, s.PID)
			continue
		}
		w.fork(s.By, between)
		w.fork(between, s.PID)
		w[s.Adopter].reaper = true
		w.exit(between)
		delete(w, between)
		w[s.Adopter].reaper = false
	}
	for _, pid := range plan.Founders {
		if !w.setpgid(pid, pid) {
			t.Fatalf("process %d can't lead a group", pid)
		}
	}
	for _, m := range plan.Members {
		if !w.setpgid(m.PID, m.Of) {
			t.Fatalf("process %d can't join group %d", m.PID, m.Of)
		}
	}
	for _, s := range plan.StandIns {
		w.exit(s.PID)
		if w[s.PID].parent != s.Of {
			t.Fatalf("%d is to wait for %d, whose parent is %d", s.Of, s.PID, w[s.PID].parent)
		}
		delete(w, s.PID)
	}
	for _, e := range ended {
		w.exit(e.PID)
	}
	delete(w, starter)
	return w
}

// TestLives plans the births of processes that have done what processes do, follows the
// plan by the kernel's rules, and compares.
func TestLives(t *testing.T) {
	lives, refused := 20000, 0
	for seed := range uint64(lives) {
		was := live(rand.New(rand.NewPCG(seed, 1)))
		processes, ended := imageOf(was)
		plan := Of(processes, ended)
		if len(plan.Refused) > 0 {
			refused++
			continue
		}
		is := follow(t, plan, ended)
		for pid, p := range was {
			q := is[pid]
			parent := p.parent
			if pid == rootPID {
				parent = 1
			}
			if q == nil || q.parent != parent || q.group != p.group || q.session != p.session || q.ended != p.ended {
				t.Fatalf("seed %d: process %d was %+v and is %+v; all were %v", seed, pid, *p, q, processes)
			}
		}
		if len(is) != len(was) {
			t.Fatalf("seed %d: %d processes were %d", seed, len(is), len(was))
		}
	}
	t.Logf("%d of %d lives were refused", refused, lives)
	if refused > lives/100 {
		t.Errorf("%d of %d lives were refused", refused, lives)
	}
}

// TestDeepest plans births by the longest way: a chain of leaders of sessions, with
// children of each in the last one's.
func TestDeepest(t *testing.T) {
	const last, each = maxDepth + 1, 10
	processes := []image.Process{{PID: 1, Group: 1, Session: 1}}
	for i := 2; i <= last; i++ {
		processes = append(processes, image.Process{PID: i, Parent: i - 1, Group: i, Session: i})
	}
	for i := range each * (last - 1) {
		processes = append(processes, image.Process{PID: last + 1 + i, Parent: 1 + i/each, Group: last, Session: last})
	}
	plan := Of(processes, nil)
	if len(plan.Refused) > 0 || len(plan.Steps) != len(processes)+last {
		t.Errorf("%d steps; refused %v", len(plan.Steps), plan.Refused)
	}
	deeper := append(processes, image.Process{PID: 1 << 20, Parent: last, Group: last, Session: last})
	if plan := Of(deeper, nil); len(plan.Refused) != 1 || plan.Refused[0].What != Place || len(plan.Steps) > 0 {
		t.Errorf("one more: refused %v", plan.Refused)
	}
}

// TestUnbearable asks for many whom nobody can bear where they are to be.
func TestUnbearable(t *testing.T) {
	const many = 1 << 15
	processes := []image.Process{{PID: 1, Group: 1, Session: 1}, {PID: 2, Parent: 1, Group: 2, Session: 2}, {PID: 3, Parent: 1, Group: 3, Session: 3}}
	for i := range many {
		processes = append(processes, image.Process{PID: 4 + i, Parent: 2, Group: 3, Session: 3})
	}
	if plan := Of(processes, nil); len(plan.Refused) != many || len(plan.Steps) > 0 {
		t.Errorf("%d are refused, %d steps", len(plan.Refused), len(plan.Steps))
	}
}
