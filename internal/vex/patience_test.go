package vex

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/snapshot/descriptor"
)

func TestPatiently(t *testing.T) {
	waiting := api.Refusal{Code: "not_received", Detail: "it has a connection that was not accepted", Remedy: descriptor.TryAgain}
	ever := api.Refusal{Code: "io_uring", Detail: "it has a ring", Remedy: "close it"}
	for name, test := range map[string]struct {
		until    int // the try that is not refused; 0 is none
		refusals []api.Refusal
		again    bool
	}{
		"at once":         {1, nil, false},
		"at the third":    {3, []api.Refusal{waiting}, true},
		"never":           {0, []api.Refusal{waiting, waiting}, true},
		"another refusal": {0, []api.Refusal{waiting, ever}, false},
	} {
		n := 0
		s, err := patiently(t.Context(), func() (api.Snapshot, error) {
			if n++; n == test.until {
				return api.Snapshot{Outcome: api.Checkpointed, FreezeUS: 5}, nil
			}
			return api.Snapshot{Outcome: api.Refused, FreezeUS: 3, Refusals: append([]api.Refusal(nil), test.refusals...)}, nil
		})
		switch {
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case test.again != (n > 1):
			t.Errorf("%s: %d tries", name, n)
		case test.until > 0 && (n != test.until || s.Outcome != api.Checkpointed || s.FreezeUS != int64(3*(n-1)+5)):
			t.Errorf("%s: %d tries, %+v", name, n, s)
		case test.until == 0 && (s.Outcome != api.Refused || s.FreezeUS != int64(3*n)):
			t.Errorf("%s: %d tries, %+v", name, n, s)
		case test.until == 0 && strings.Contains(s.Refusals[0].Detail, "tries") != test.again:
			t.Errorf("%s: it is refused by %v", name, s.Refusals)
		}
	}
	// What fails is not tried again, nor what nobody waits for any more.
	failed, n := errors.New("gone"), 0
	if _, err := patiently(t.Context(), func() (api.Snapshot, error) { n++; return api.Snapshot{}, failed }); !errors.Is(err, failed) || n != 1 {
		t.Errorf("%d tries of what fails by %v", n, err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	n = 0
	if s, err := patiently(ended, func() (api.Snapshot, error) {
		n++
		return api.Snapshot{Outcome: api.Refused, Refusals: []api.Refusal{waiting}}, nil
	}); err != nil || n != 1 || s.Outcome != api.Refused {
		t.Errorf("%d tries: %+v %v", n, s, err)
	}
}
