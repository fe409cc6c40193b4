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
// on.
func tellCheckpoint(ctx context.Context, x Machine, c *api.Control) error {
	folder, err := imagesFolder()
	if err != nil {
		return err
	}
	request := api.CheckpointRequest{Target: byPID(c.PID), LeaveRunning: true, Compression: image.Zstd,
		Directory: filepath.Join(folder, fmt.Sprintf("%d-%s", c.PID, time.Now().Format("20060102-150405.000")))}
	return x.Checkpoint(ctx, request, func(s api.Snapshot) error {
		c.Program, c.Outcome, c.Refusals, c.Error = s.Program, s.Outcome, append(c.Refusals, s.Refusals...), s.Error
		switch s.Outcome {
		case api.Checkpointed:
			c.Lines = append(c.Lines, fmt.Sprintf("The state of %s (%d) is written to %s.", s.Program, s.PID, s.Image),
				fmt.Sprintf("It was held for %v. vos restore -D builds it again, once it has ended.", time.Duration(s.FreezeUS)*time.Microsecond))
		case api.Refused:
			c.Lines = append(c.Lines, fmt.Sprintf("The state of %s (%d) can't be written down as a whole:", s.Program, s.PID))
			const few = 4
			for i, r := range s.Refusals {
				if i == few {
					c.Lines = append(c.Lines, fmt.Sprintf("and %d more: vos check %d.", len(s.Refusals)-few, s.PID))
					break
				}
				c.Lines = append(c.Lines, fmt.Sprintf("%s: %s; %s.", r.Subject, r.Detail, r.Remedy))
			}
		default:
			c.Lines = append(c.Lines, "Failed: "+s.Error)
		}
		return nil
	})
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
