package main

import (
	"fmt"

	"github.com/virtualizing-os/vos/internal/api"
)

// newExecutive returns what carries out commands on this machine. It is a stub
// until the executive of this machine exists.
func newExecutive() (api.Executive, error) {
	return nil, fmt.Errorf("this build has no executive: %w", api.ErrNotSupported)
}
