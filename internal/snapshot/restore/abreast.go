package restore

import (
	"slices"

	"github.com/virtualizing-os/vos/internal/image"
)

// abreast is how many threads make their calls at the same time, each in a part of the
// arena: one after the other, most of the time would go by in waiting for each.
const (
	abreast     = 16
	partEntries = 128
)

// part is the i-th of n equal parts of an arena's table and data.
func (g *arena) part(i, n int) arena {
	size := (g.end - g.table) / uint64(n) &^ (entryBytes - 1)
	part := *g
	part.table, part.entries = g.table+uint64(i)*size, partEntries
	part.data = part.table + partEntries*entryBytes
	part.size = part.table + size - part.data
	return part
}

// equipOthers gives all threads but the main one what only themselves can set.
func (p *process) equipOthers(of *image.Process, own capabilitySets) error {
	width := abreast
	if part := p.main.arena.part(0, width); uint64(4*len(of.Credentials.Groups)) > part.size/2 {
		width = 1
	}
	for group := range slices.Chunk(of.Threads[1:], width) {
		batches := make([]*batch, len(group))
		for i := range group {
			k := p.task(group[i].TID)
			k.arena = p.main.arena.part(i, width)
			// Its data is placed in its own part.
			batches[i] = (&process{tracer: p.tracer, pid: p.pid, main: k}).batch()
			if err := batches[i].equipment(&group[i], &of.Credentials, own, nil); err != nil {
				return err
			}
		}
		if err := p.runAbreast(batches); err != nil {
			return err
		}
		for _, b := range batches {
			b.task.arena = p.main.arena
		}
	}
	return nil
}

// runAbreast makes the calls of batches of several threads, of all at the same time.
func (p *process) runAbreast(batches []*batch) error {
	for _, b := range batches {
		if len(b.calls) > b.task.arena.entries {
			if _, err := b.run(); err != nil {
				return err
			}
			continue
		}
		if err := launch(p.pid, b.task, b.calls, b.process.placed); err != nil {
			return err
		}
	}
	for _, b := range batches {
		if len(b.calls) == 0 {
			continue
		}
		results, err := p.land(p.pid, b.task, len(b.calls), nil)
		if err != nil {
			return err
		}
		if err := b.check(b.aims, results); err != nil {
			return err
		}
	}
	return nil
}
