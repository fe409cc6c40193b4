package restore

import (
	"slices"

	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// abreast is how many threads make their calls at the same time, each in a part of the
// arena: one after the other, most of the time would go by in waiting for each.
const (
	abreast     = 64
	partEntries = 32
	// Where they take on other ids and rights, each has more calls to make.
	abreastChanging     = 16
	partEntriesChanging = 128
)

// part is the i-th of n equal parts of an arena's table and data, for so many calls.
func (g *arena) part(i, n, entries int) arena {
	size := (g.end - g.table) / uint64(n) &^ (entryBytes - 1)
	part := *g
	part.table, part.entries = g.table+uint64(i)*size, entries
	part.data = part.table + uint64(entries)*entryBytes
	part.size = part.table + size - part.data
	return part
}

// equipOthers gives all threads but the main one what only themselves can set.
func (p *process) equipOthers(of *image.Process, has *inherited) error {
	width, entries := abreast, partEntries
	if !sameCredentials(of.Credentials, has.credentials) {
		width, entries = abreastChanging, partEntriesChanging
		if part := p.main.arena.part(0, width, entries); uint64(4*len(of.Credentials.Groups)) > part.size/2 {
			width = 1
		}
	}
	for group := range slices.Chunk(of.Threads[1:], width) {
		batches := make([]*batch, len(group))
		for i := range group {
			k := p.task(group[i].TID)
			k.arena = p.main.arena.part(i, width, entries)
			// Its data is placed in its own part.
			batches[i] = (&process{tracer: p.tracer, pid: p.pid, main: k}).batch()
			if err := batches[i].equipment(&group[i], &of.Credentials, has, nil); err != nil {
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
	var text []byte
	var ranges []kernel.RemoteRange
	var together []*batch
	for _, b := range batches {
		switch {
		case len(b.calls) > b.task.arena.entries:
			if _, err := b.run(); err != nil {
				return err
			}
		case len(b.calls) > 0:
			text, ranges = b.task.arena.load(text, ranges, b.calls, b.process.placed)
			together = append(together, b)
		}
	}
	if err := kernel.WriteMemory(p.pid, text, ranges); err != nil {
		return err
	}
	for _, b := range together {
		if err := b.task.begin(len(b.calls)); err != nil {
			return err
		}
	}
	ranges, size := ranges[:0], 0
	for _, b := range together {
		if err := p.arrive(b.task, kernel.Continue, trapped); err != nil {
			return err
		}
		table := kernel.RemoteRange{Address: b.task.arena.table, Length: uint64(len(b.calls) * entryBytes)}
		ranges, size = append(ranges, table), size+int(table.Length)
	}
	text = slices.Grow(text[:0], size)[:size]
	if err := kernel.ReadMemory(p.pid, text, ranges); err != nil {
		return err
	}
	for i, b := range together {
		table := text[:ranges[i].Length]
		text = text[len(table):]
		if err := b.check(b.aims, appendResults(nil, table)); err != nil {
			return err
		}
	}
	return nil
}
