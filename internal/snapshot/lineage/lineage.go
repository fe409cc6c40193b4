// Package lineage plans how the processes of an image are born, so that each has the
// parent, the session and the process group that it had. It is a matter of values: the
// side that looks at a program asks it what can be had, the side that builds one does it.
//
// The kernel gives a session to whoever asks for one (setsid), and otherwise a child is
// in that of the one that bears it; a group must be of the same session. A parent is who
// bears a process, or, once that has ended, the nearest subreaper among its ancestors. So
// what can't be had by births alone is had as it came to be: by processes that end.
//
//   - A child in the session that its parent has left by setsid is born before that.
//   - A child whose parent is in another session is born in its own by somebody who is,
//     through a process between the two which ends: the parent to be adopts it.
//   - The leader of a session or group that has ended has a stand-in with its id, which
//     ends when all are there.
package lineage

import (
	"fmt"
	"slices"

	"github.com/virtualizing-os/vos/internal/image"
)

// A Plan is how all processes come to be. The root makes a session of its own and leads
// its group, in the place of those that it was in.
type Plan struct {
	Steps    []Step
	Founders []int    // they then lead process groups, within the sessions that they are in
	Members  []Member // and these join theirs
	StandIns []Member // with who reaps it: they end then

	Refused []Refused // what can't be made; the rest is void then
}

// A Step is a birth, or that one makes a session of its own.
type Step struct {
	PID     int
	Session bool // it makes a session; else it is born
	By      int  // who bears it; 0 of the root
	Adopter int  // an ancestor of By that is to be its parent; 0 if By is
}

// A Member is a process with the id of another one, or of a group.
type Member struct{ PID, Of int }

// A Refused is what can't be made again of one process.
type Refused struct {
	PID    int
	What   What
	Detail string
}

// A What is what one has lost.
type What int

// What one may have lost.
const (
	Place   What = iota // among the others: no tree has it
	Session             //
	Group               //
)

// A node is one process of the plan.
type node struct {
	pid, group, session int
	parent              *node // nil of the root
	depth               int   // below the root
	standIn             bool  // ends when all are there
	ended               bool  // has no children

	before int // the session that it is to be born in, if that matters, of one that makes its own
	orphan bool
	born   bool
	now    int // the session that it is in, once born
}

func (n *node) leads() bool { return n.session == n.pid }

// settled says that it is in the session in which it is to be.
func (n *node) settled() bool { return n.born && n.now == n.session }

// A planner has all processes, by id.
type planner struct {
	plan  Plan
	tried int     // how many were asked whether they can bear another one
	nodes []*node // parents before their children, the ended and stand-ins last
	by    map[int]*node
}

// What a hostile image can ask for is bounded: how far below the root a process may be, and
// how often somebody is asked whether he can bear another one.
const (
	maxDepth = 1 << 10
	maxTried = 1 << 24
)

// Of plans the births of an image's processes. There is at least one.
func Of(processes []image.Process, ended []image.Ended) Plan {
	p := &planner{by: map[int]*node{}}
	root := &processes[0]
	add := func(pid, parent, group, session int, ended bool) {
		if session == root.Session {
			session = root.PID
		}
		if group == root.Group {
			group = root.PID
		}
		n := &node{pid: pid, group: group, session: session, ended: ended}
		if p.by[pid] != nil {
			p.refuse(n, Place, "it is there twice")
			return
		}
		if len(p.nodes) > 0 {
			above := p.by[parent]
			if above == nil || above.ended {
				p.refuse(n, Place, "its parent %d does not stand before it", parent)
				return
			}
			if n.parent, n.depth = above, above.depth+1; n.depth > maxDepth {
				p.refuse(n, Place, "it descends from the root by more than %d others", maxDepth)
				return
			}
		}
		p.by[pid], p.nodes = n, append(p.nodes, n)
	}
	add(root.PID, 0, root.Group, root.Session, false)
	for i := range processes[1:] {
		q := &processes[1+i]
		add(q.PID, q.Parent, q.Group, q.Session, false)
	}
	for i := range ended {
		e := &ended[i]
		add(e.PID, e.Parent, e.Group, e.Session, true)
	}
	if len(p.plan.Refused) > 0 {
		return p.plan
	}
	p.sessions()
	p.births()
	p.groups()
	if len(p.plan.Refused) > 0 {
		return Plan{Refused: p.plan.Refused}
	}
	return p.plan
}

func (p *planner) refuse(n *node, what What, format string, args ...any) {
	p.plan.Refused = append(p.plan.Refused, Refused{n.pid, what, fmt.Sprintf(format, args...)})
}

// sessions finds out by whom each process is born into its session, and adds stand-ins
// for the leaders that are gone.
func (p *planner) sessions() {
	for _, n := range slices.Clone(p.nodes[1:]) {
		leader := p.by[n.session]
		if leader != nil && !leader.leads() {
			p.refuse(n, Session, "process %d does not lead its session", n.session)
			continue
		}
		if n.leads() {
			continue
		}
		parent := n.parent
		if parent.session == n.session {
			continue
		}
		if parent.passesOn(n.session) {
			for q := parent; q.session != n.session; q = q.parent {
				if q.before != 0 && q.before != n.session {
					p.refuse(n, Session, "it is in session %d, and a process with the same parent in %d", n.session, q.before)
				}
				q.before = n.session
			}
			continue
		}
		n.orphan = true
		switch {
		case leader == nil:
			leader = &node{pid: n.session, parent: parent, group: n.session, session: n.session, depth: parent.depth + 1, standIn: true}
			p.by[n.session], p.nodes = leader, append(p.nodes, leader)
		case leader.standIn && leader.depth <= parent.depth:
			leader.parent, leader.depth = parent, parent.depth+1 // below all who are to adopt
		}
	}
}

// passesOn says that it can bear into a session: it has left it by making its own.
func (n *node) passesOn(session int) bool {
	for ; n.leads() && n.parent != nil; n = n.parent {
		if n.parent.session == session {
			return true
		}
	}
	return false
}

// births puts the births in order: each as soon as somebody can bear it.
func (p *planner) births() {
	waiting := slices.Clone(p.nodes)
	for progress := true; progress; {
		progress = false
		waiting = slices.DeleteFunc(waiting, func(n *node) bool {
			if !n.born {
				if !p.bear(n) {
					return false
				}
				progress = true
			}
			return n.settled() || p.settle(n)
		})
	}
	for _, n := range waiting {
		if n.standIn {
			continue // those for whom it stands are refused
		}
		p.refuse(n, Session, "it is in session %d, which its parent %d is not in, and nobody can bear it there", n.session, n.parent.pid)
	}
}

// bear adds the birth of a process if somebody can bear it by now.
func (p *planner) bear(n *node) bool {
	s, parent := Step{PID: n.pid}, n.parent
	if parent != nil {
		s.By = parent.pid
	}
	switch {
	case parent == nil:
	case n.orphan:
		host := p.host(n)
		if host == nil || !parent.settled() {
			return false
		}
		s.By, s.Adopter = host.pid, parent.pid
		n.now = host.now
	case !parent.born:
		return false
	case n.leads() && n.before == 0:
		if !parent.settled() {
			return false
		}
		n.now = parent.now
	case n.leads():
		if parent.now != n.before {
			return false
		}
		n.now = n.before
	default:
		if parent.now != n.session {
			return false
		}
		n.now = n.session
	}
	n.born = true
	p.plan.Steps = append(p.plan.Steps, s)
	return true
}

// settle lets a process that leads one make its session, if all are born that are to be
// in the one before.
func (p *planner) settle(n *node) bool {
	if n.before != 0 && slices.ContainsFunc(p.nodes, func(c *node) bool {
		return !c.born && !c.orphan && c.parent == n && (c.before == n.before || !c.leads() && c.session == n.before)
	}) {
		return false
	}
	n.now = n.session
	p.plan.Steps = append(p.plan.Steps, Step{PID: n.pid, Session: true})
	return true
}

// host is one in the session of a process, below the one that is to be its parent.
func (p *planner) host(n *node) *node {
	fits := func(h *node) bool {
		p.tried++
		if h == nil || h == n || p.tried > maxTried || !h.settled() || h.session != n.session {
			return false
		}
		for a := h; a.parent != nil; a = a.parent {
			if a.parent == n.parent {
				return true
			}
		}
		return false
	}
	if leader := p.by[n.session]; fits(leader) {
		return leader
	}
	if i := slices.IndexFunc(p.nodes, fits); i >= 0 {
		return p.nodes[i]
	}
	return nil
}

// groups says who leads a group, who joins it, and adds stand-ins for the leaders that
// are gone.
func (p *planner) groups() {
	founders := map[int]bool{}
	for _, n := range slices.Clone(p.nodes) {
		if n.leads() {
			if n.group != n.pid {
				p.refuse(n, Group, "it leads a session, and is in the process group of %d", n.group)
			}
			continue
		}
		leader := p.by[n.group]
		if leader == nil {
			leader = &node{pid: n.group, parent: n, group: n.group, session: n.session, standIn: true}
			p.by[n.group], p.nodes = leader, append(p.nodes, leader)
			p.plan.Steps = append(p.plan.Steps, Step{PID: n.group, By: n.pid})
		}
		if leader.session != n.session {
			p.refuse(n, Group, "process %d, which would lead its process group, is in another session", n.group)
			continue
		}
		if !leader.leads() && !founders[leader.pid] {
			founders[leader.pid] = true
			p.plan.Founders = append(p.plan.Founders, leader.pid)
		}
		if n.group != n.pid {
			p.plan.Members = append(p.plan.Members, Member{n.pid, n.group})
		}
	}
	// Who led a group and has gone to another one goes when the others are there.
	slices.SortStableFunc(p.plan.Members, func(a, b Member) int { return after(founders[a.PID], founders[b.PID]) })
	for _, n := range p.nodes {
		if n.standIn {
			p.plan.StandIns = append(p.plan.StandIns, Member{n.pid, n.parent.pid})
		}
	}
}

// after orders what is so behind what is not.
func after(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}
