package module

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/dso"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/vin"
)

// The last page of a staged build is not the build's: the program's unwinder
// keeps there what it knows of the build's unwind table (struct object of libgcc,
// 48 bytes and more), and a word behind that tells how far telling it has come.
const (
	unwindObject = 0
	unwindState  = 1024
)

// The states of that word.
const (
	unwindUntold = iota
	unwindTelling
	unwindTold
)

// letUnwind tells the program's unwinder of a generation's code, so that
// exceptions pass through it: the loader, which it asks of all other modules,
// does not know it. A program without an unwinder needs nothing of it.
func (p *Process) letUnwind(ctx context.Context, r *Replacement) error {
	if r.Generation == 0 {
		return nil
	}
	if _, ok := p.Function("__register_frame_info"); !ok {
		return nil
	}
	generation := r.vin.Generations()[r.Generation]
	page := generation.End - procfs.PageSize
	state, err := p.readWord(page + unwindState)
	switch {
	case err != nil:
		return err
	case state == unwindTold:
		return nil
	case state == unwindTelling:
		// A vos was killed meanwhile. The unwinder's first act is to set pc_begin to
		// the highest address; who has come that far comes to the end. When it has
		// looked for a frame since then, pc_begin is the lowest of the code. To be told
		// of it twice would make a ring of its list.
		begin, err := p.readWord(page + unwindObject)
		if err != nil {
			return err
		}
		if begin != 0 {
			return p.writeWord(page+unwindState, unwindTold)
		}
	}
	table, err := p.unwindTable(r, generation)
	if err != nil || table == 0 {
		return err
	}
	if err := p.writeWord(page+unwindState, unwindTelling); err != nil {
		return err
	}
	if err := p.RegisterFrames(ctx, table, page+unwindObject); err != nil && !errors.Is(err, ErrNotNeeded) {
		if len(api.Refusals(err)) > 0 { // nothing was called
			err = errors.Join(err, p.writeWord(page+unwindState, unwindUntold))
		}
		return fmt.Errorf("tell the unwinder of process %d about %s: %w", p.PID(), r.Module.Name, err)
	}
	return p.writeWord(page+unwindState, unwindTold)
}

// unwindTable returns the process address of a staged build's .eh_frame, 0 where
// it has none.
func (p *Process) unwindTable(r *Replacement, g vin.Generation) (uint64, error) {
	var object *dso.Object
	if r.Match != nil {
		object = r.Match.New.Object
	} else if staged := p.moduleAt(g.Start); staged != nil {
		object = staged.Object
	}
	if object == nil {
		return 0, fmt.Errorf("find generation %d of %s: %w", r.Generation, r.Module.Name, procfs.ErrUnmapped)
	}
	start, terminated, ok, err := object.UnwindTable()
	switch {
	case err != nil:
		return 0, fmt.Errorf("read the unwind table of %s: %w", r.Module.Name, err)
	case !ok:
		return 0, nil
	case !terminated:
		return 0, api.Refusal{Code: codeUnwinding, Subject: r.Module.Name,
			Detail: "its unwind table has no end, so the program's unwinder can't be told of it", Remedy: askRestart}
	}
	return start + g.Bias, nil
}

func (p *Process) readWord(address uint64) (uint64, error) {
	memory, err := p.openMemory()
	if err != nil {
		return 0, err
	}
	var b [8]byte
	if _, err := memory.ReadAt(b[:], int64(address)); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b[:]), nil
}

// writeWord writes a word of the memory that vOS mapped: no thread of the program
// looks at it.
func (p *Process) writeWord(address, value uint64) error {
	memory, err := p.OpenMemoryForWriting()
	if err != nil {
		return err
	}
	_, err = memory.WriteAt(word(value), int64(address))
	return errors.Join(err, memory.Close())
}
