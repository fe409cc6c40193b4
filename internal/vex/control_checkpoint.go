package vex

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/image"
)

// tellCheckpoint writes the program's state to a directory of its user, and lets it go
// on. Where something stands in the way no directory is made.
func tellCheckpoint(ctx context.Context, x Machine, c *api.Control) error {
	possible := false
	err := x.Check(ctx, api.CheckRequest{Target: byPID(c.PID)}, func(check api.Check) error {
		c.Program, possible = check.Program, check.Checkpointable
		if !possible {
			cannotKeep(c, check.Refusals)
		}
		return nil
	})
	if err != nil || !possible {
		return err
	}
	folder, err := imagesFolder()
	if err != nil {
		return err
	}
	request := api.CheckpointRequest{Target: byPID(c.PID), LeaveRunning: true, Compression: image.Zstd,
		Directory: filepath.Join(folder, fmt.Sprintf("%d-%s", c.PID, time.Now().Format("20060102-150405.000")))}
	return x.Checkpoint(ctx, request, func(s api.Snapshot) error {
		c.Outcome, c.Error = s.Outcome, s.Error
		switch s.Outcome {
		case api.Checkpointed:
			c.Lines = append(c.Lines, fmt.Sprintf("The state of %s (%d) is written to %s.", s.Program, s.PID, s.Image),
				fmt.Sprintf("It was held for %v. vos restore -D builds it again, once it has ended.", time.Duration(s.FreezeUS)*time.Microsecond))
		case api.Refused:
			cannotKeep(c, s.Refusals)
		default:
			c.Lines = append(c.Lines, "Failed: "+s.Error)
		}
		return nil
	})
}

// cannotKeep tells what stands in the way of a checkpoint.
func cannotKeep(c *api.Control, refusals []api.Refusal) {
	const few = 4
	c.Outcome, c.Refusals = api.Refused, append(c.Refusals, refusals...)
	c.Lines = append(c.Lines, fmt.Sprintf("The state of %s (%d) can't be written down as a whole:", c.Program, c.PID))
	for i, r := range refusals {
		if i == few {
			c.Lines = append(c.Lines, fmt.Sprintf("and %d more: vos check %d.", len(refusals)-few, c.PID))
			break
		}
		c.Lines = append(c.Lines, fmt.Sprintf("%s: %s; %s.", r.Subject, r.Detail, r.Remedy))
	}
}

// imagesFolder makes the folder in which a user's checkpoints are kept: vos/images in
// the state directory of the XDG base directory specification.
func imagesFolder() (string, error) {
	state := os.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(state) {
		home, err := os.UserHomeDir()
		if err != nil || strings.TrimSpace(home) == "" {
			return "", fmt.Errorf("find a place for the checkpoint: neither XDG_STATE_HOME nor HOME is set: use vos checkpoint -D")
		}
		state = filepath.Join(home, ".local", "state")
	}
	folder := filepath.Join(state, "vos", "images")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return "", fmt.Errorf("make folder of checkpoints: %w", err)
	}
	return folder, nil
}
