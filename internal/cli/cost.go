package cli

import (
	"fmt"

	"github.com/virtualizing-os/vos/internal/api"
)

// A cost is what operations cost the programs at worst, in microseconds.
type cost struct{ pause, borrow int64 }

// add counts an operation, also one that failed: it may have stopped the
// program for a while.
func (c *cost) add(op api.Operation) {
	c.pause, c.borrow = max(c.pause, op.PauseUS), max(c.borrow, op.BorrowUS)
}

func (c cost) String() string {
	switch {
	case c.pause > 0 && c.borrow > 0:
		return fmt.Sprintf("all threads stopped for %s (worst), one borrowed for %s (worst)", pause(c.pause), pause(c.borrow))
	case c.pause > 0:
		return fmt.Sprintf("all threads stopped for %s (worst)", pause(c.pause))
	case c.borrow > 0:
		return fmt.Sprintf("nobody stopped, one thread borrowed for %s (worst)", pause(c.borrow))
	}
	return "nobody stopped"
}
