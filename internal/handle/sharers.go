package handle

import (
	"errors"
	"slices"
	"sort"
	"syscall"

	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// findSharers fills in who else has the descriptions of a process's handles. Only
// descriptors with the same link come into question. They are compared by kcmp,
// whose order makes that n log n calls where many have one link, as all eventfds of
// a machine do.
func (s *Survey) findSharers(handles []Handle) error {
	groups := map[string][]*Handle{}
	for i := range handles {
		h := &handles[i]
		groups[h.Link] = append(groups[h.Link], h)
	}
	for link, own := range groups {
		others := s.holders[link]
		if len(others) == 0 || len(others) == 1 && others[0].PID == own[0].PID && others[0].FD == own[0].FD {
			continue
		}
		if err := s.share(own, others); err != nil {
			return err
		}
	}
	return nil
}

// share gives each of own, which have one link, those of others that have its
// description. Descriptors that are closed meanwhile have no order: they are left
// out.
func (s *Survey) share(own []*Handle, others []Holder) error {
	var sorted []*Handle
	for _, h := range own {
		at, _, err := s.place(&sorted, h.PID, h.FD)
		if leftOut(err) {
			continue
		}
		if err != nil {
			return err
		}
		sorted = slices.Insert(sorted, at, h)
	}
	for _, o := range others {
		at, same, err := s.place(&sorted, o.PID, o.FD)
		if err != nil && !leftOut(err) {
			return err
		}
		if err != nil || !same {
			continue
		}
		for _, h := range sorted[at:] {
			if h.PID == o.PID && h.FD == o.FD {
				continue
			}
			if order, err := s.compare(h.PID, h.FD, o.PID, o.FD); err != nil || order != 0 {
				break
			}
			// What a number led to when it was listed may have been another.
			if leadsTo(o.PID, o.FD, h.Link) && leadsTo(h.PID, h.FD, h.Link) {
				h.Sharers = append(h.Sharers, s.named(o))
			}
		}
	}
	return nil
}

func leadsTo(pid, fd int, link string) bool {
	p, err := procfs.Open(pid)
	if err != nil {
		return false
	}
	defer p.Close()
	now, err := p.Descriptor(fd)
	return err == nil && now == link
}

// place returns where a descriptor belongs among handles in the order of kcmp, and
// whether one of the same description is there. Handles that are found to be closed
// are taken out.
func (s *Survey) place(sorted *[]*Handle, pid, fd int) (at int, same bool, err error) {
	for {
		var failed *Handle
		at = sort.Search(len(*sorted), func(i int) bool {
			if failed != nil {
				return true
			}
			h := (*sorted)[i]
			var order int
			if order, err = s.compare(h.PID, h.FD, pid, fd); err != nil {
				failed = h
				return true
			}
			same = same || order == 0
			return order >= 0
		})
		if failed == nil {
			return at, same, nil
		}
		if _, closed := s.compare(failed.PID, failed.FD, failed.PID, failed.FD); closed == nil {
			return at, false, err
		}
		*sorted = slices.DeleteFunc(*sorted, func(h *Handle) bool { return h == failed })
		same = false
	}
}

// compare compares descriptors of two processes, see kernel.CompareFiles.
func (s *Survey) compare(p, a, q, b int) (int, error) {
	return kernel.CompareFiles(s.thread(p), a, s.thread(q), b)
}

func (s *Survey) thread(pid int) int {
	tid, known := s.threads[pid]
	if !known {
		tid = pid
		if p, err := procfs.Open(pid); err == nil {
			if living, err := p.LivingThread(); err == nil {
				tid = living
			}
			p.Close()
		}
		s.threads[pid] = tid
	}
	return tid
}

// leftOut reports whether two descriptors could not be compared because one is
// closed, or its process has ended, or may not be looked at.
func leftOut(err error) bool {
	return errors.Is(err, syscall.EBADF) || errors.Is(err, syscall.ESRCH) || errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES)
}
