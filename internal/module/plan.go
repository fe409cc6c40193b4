package module

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/dso"
	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// A Plan is what refreshing one module of one process takes. It is a value:
// what is printed is what is carried out.
type Plan struct {
	Module   *Module
	BuildID  string
	Drop     []procfs.PageRange // private pages whose file has what should be there
	Bad      []tracee.Range     // the bytes of those pages that differ
	Writes   []Write            // ascending
	Residual []string           // what will still differ, and why
	Refusals []api.Refusal      // if any, nothing else is in the plan
}

// A Write puts bytes back.
type Write struct {
	Address uint64
	Found   []byte // what was there when the plan was made
	Bytes   []byte
	Word    bool // a relocated word, otherwise part of a constant segment
}

// Empty reports whether there is nothing to do.
func (p *Plan) Empty() bool { return len(p.Drop) == 0 && len(p.Writes) == 0 }

// Pages returns how many pages of constant segments the plan heals.
func (p *Plan) Pages() int {
	pages := make(map[uint64]bool)
	for _, w := range p.Writes {
		if !w.Word {
			pages[w.Address/procfs.PageSize] = true
		}
	}
	n := len(pages)
	for _, r := range p.Drop {
		n += r.Pages()
	}
	return n
}

// Words returns how many relocated words the plan heals.
func (p *Plan) Words() int {
	n := 0
	for _, w := range p.Writes {
		if w.Word {
			n++
		}
	}
	return n
}

// Steps tells the plan in words, a step a line.
func (p *Plan) Steps() []string {
	var steps []string
	for _, r := range p.Drop {
		steps = append(steps, fmt.Sprintf("drop the private pages 0x%x-0x%x (%d): the file's take their place", r.Start, r.End, r.Pages()))
	}
	for _, w := range p.Writes {
		what := "beside a breakpoint, or a jump of vos, that stays"
		if w.Word {
			what = "the relocated word"
		}
		steps = append(steps, fmt.Sprintf("write %x over %x at 0x%x: %s", w.Bytes, w.Found, w.Address, what))
	}
	return steps
}

// Plan compares a module with its file and makes the plan that heals it. Nobody
// is stopped and nothing is changed.
func (p *Process) Plan(ctx context.Context, m *Module, full bool) (*Plan, error) {
	plan := &Plan{Module: m, BuildID: m.BuildID(), Refusals: slices.Clone(m.Obstacles)}
	if len(plan.Refusals) > 0 {
		return plan, nil
	}
	c, err := p.Compare(ctx, m, full)
	if err != nil || len(c.Runs) == 0 && len(c.Bad) == 0 {
		return plan, err
	}
	refusal, err := p.checkIdentity(m, c)
	if err != nil {
		return nil, err
	}
	if refusal != nil {
		plan.Refusals = append(plan.Refusals, *refusal)
		return plan, nil
	}
	plan.planText(c, p.entryPages(m))
	plan.planWords(c)
	return plan, nil
}

// CannotRefresh returns why a module could not be healed if it were corrupt,
// beyond its Obstacles.
func (p *Process) CannotRefresh(m *Module) ([]api.Refusal, error) {
	if len(m.Obstacles) > 0 {
		return nil, nil
	}
	if m.Object.TextRel() {
		return []api.Refusal{textrelRefusal(m)}, nil
	}
	refusal, err := p.checkIdentity(m, &Comparison{Module: m})
	if refusal == nil {
		return nil, err
	}
	return []api.Refusal{*refusal}, nil
}

func textrelRefusal(m *Module) api.Refusal {
	return api.Refusal{Code: codeTextrel, Subject: m.Name,
		Detail: "the loader relocated its text (DT_TEXTREL), so its pages are not the file's",
		Remedy: restart}
}

// checkIdentity refuses a module that is not known to be what its file says: a
// refresh would make it another one. An error says that the process is gone.
func (p *Process) checkIdentity(m *Module, c *Comparison) (*api.Refusal, error) {
	if m.Object.TextRel() && c.Corrupt() {
		refusal := textrelRefusal(m)
		return &refusal, nil
	}
	if m.Kind == VDSO || m.Object.BuildID == "" {
		return nil, nil
	}
	var running *dso.Object
	memory, err := p.openMemory()
	if err == nil {
		running, err = dso.ReadMemory(memory, m.mapping.Start)
	}
	switch {
	case errors.Is(err, procfs.ErrGone):
		return nil, err
	case memory == nil:
		return &api.Refusal{Code: codeUnreadable, Subject: m.Name, Detail: err.Error(), Remedy: "run vos as root"}, nil
	case err != nil:
		return &api.Refusal{Code: codeBuildID, Subject: m.Name,
			Detail: fmt.Sprintf("its headers in memory can't be read: %v", err), Remedy: restart}, nil
	case running.BuildID != m.Object.BuildID:
		return &api.Refusal{Code: codeBuildID, Subject: m.Name,
			Detail: fmt.Sprintf("the build-id in memory is %s, that of the mapped file %s", orNone(running.BuildID), m.Object.BuildID),
			Remedy: restart}, nil
	}
	return nil, nil
}

func orNone(s string) string {
	if s == "" {
		return "missing"
	}
	return s
}

// planText decides for each page with corruption how it is healed: it is
// dropped, unless that would take out a breakpoint, or what vOS wrote: pages
// to keep, by number.
func (plan *Plan) planText(c *Comparison, keep map[uint64]bool) {
	for _, r := range c.Runs {
		if r.Kind == api.KindBreakpoint {
			keep[r.Address/procfs.PageSize] = true
			plan.Residual = append(plan.Residual, fmt.Sprintf("a breakpoint at 0x%x stays: a uprobe or a debugger set it", r.Address))
		}
	}
	if len(c.Runs) >= maxRuns {
		plan.Residual = append(plan.Residual, fmt.Sprintf("only the first %d differences are healed; refresh again", maxRuns))
	}
	for _, r := range c.Runs {
		if r.Kind != api.KindCorruption {
			continue
		}
		for page := r.Address / procfs.PageSize; page <= (r.End()-1)/procfs.PageSize; page++ {
			if keep[page] {
				plan.writePart(r, page)
				continue
			}
			start := page * procfs.PageSize
			plan.Bad = append(plan.Bad, tracee.Range{Start: max(r.Address, start), End: min(r.End(), start+procfs.PageSize)})
			if n := len(plan.Drop); n > 0 && plan.Drop[n-1].End >= start {
				plan.Drop[n-1].End = max(plan.Drop[n-1].End, start+procfs.PageSize)
			} else {
				plan.Drop = append(plan.Drop, procfs.PageRange{Start: start, End: start + procfs.PageSize})
			}
		}
	}
}

// writePart plans to write the part of a run that lies in a page.
func (plan *Plan) writePart(r Run, page uint64) {
	from, to := max(r.Address, page*procfs.PageSize), min(r.End(), (page+1)*procfs.PageSize)
	plan.Writes = append(plan.Writes, Write{
		Address: from,
		Found:   r.Found[from-r.Address : to-r.Address],
		Bytes:   r.Expected[from-r.Address : to-r.Address],
	})
}

func (plan *Plan) planWords(c *Comparison) {
	for _, w := range c.Bad {
		if !w.Known {
			plan.Residual = append(plan.Residual, fmt.Sprintf("the import of %s at 0x%x stays as it is: %s", w.Symbol, w.Address, w.Reason))
			continue
		}
		plan.Writes = append(plan.Writes, Write{
			Address: w.Address,
			Found:   binary.LittleEndian.AppendUint64(nil, w.Found),
			Bytes:   binary.LittleEndian.AppendUint64(nil, w.Expected),
			Word:    true,
		})
	}
}

var errChanged = errors.New("it is no longer what was planned for")

// stillFound checks that what a write replaces is still there.
func stillFound(memory *procfs.Memory, w Write) error {
	now := make([]byte, len(w.Found))
	if _, err := memory.ReadAt(now, int64(w.Address)); err != nil {
		return err
	}
	if !bytes.Equal(now, w.Found) {
		return fmt.Errorf("%x at 0x%x: %w", now, w.Address, errChanged)
	}
	return nil
}
