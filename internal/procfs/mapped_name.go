package procfs

import (
	"strconv"
	"strings"
)

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
