package vex

import (
	"slices"
	"testing"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/handle"
)

// What can be asked for is what there is.
func TestHandleKinds(t *testing.T) {
	var kinds []string
	for _, k := range handle.Kinds() {
		kinds = append(kinds, string(k))
	}
	if !slices.Equal(kinds, api.HandleKinds) {
		t.Errorf("handle has %v, api %v", kinds, api.HandleKinds)
	}
}
