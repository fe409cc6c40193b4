package handle

import (
	"errors"
	"sync"
)

// A meeting is where the sessions of several processes wait for each other: all go
// on, or none.
type meeting struct {
	mu      sync.Mutex
	all     *sync.Cond
	members int // that still come
	arrived int
	round   int
	errs    []error
}

func newMeeting(members int) *meeting {
	m := &meeting{members: members}
	m.all = sync.NewCond(&m.mu)
	return m
}

// errOthers is that another process can't be done.
var errOthers = errors.New("another process can't be done")

// meet waits for the others. The last to come runs last, where nobody has failed.
// It returns err, or that somebody else failed, in this round or an earlier one.
func (m *meeting) meet(err error, last func() error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		m.errs = append(m.errs, err)
	}
	m.arrived++
	round := m.round
	m.turn(last)
	for m.round == round {
		m.all.Wait()
	}
	switch {
	case err != nil:
		return err
	case len(m.errs) > 0:
		return errors.Join(errOthers, errors.Join(m.errs...))
	}
	return nil
}

// leave is for a member that will not come again.
func (m *meeting) leave(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		m.errs = append(m.errs, err)
	}
	m.members--
	m.turn(nil)
}

// turn ends the round if all have come.
func (m *meeting) turn(last func() error) {
	if m.arrived < m.members || m.arrived == 0 {
		return
	}
	if len(m.errs) == 0 && last != nil {
		if err := last(); err != nil {
			m.errs = append(m.errs, err)
		}
	}
	m.arrived = 0
	m.round++
	m.all.Broadcast()
}
