package dump

import (
	"slices"
	"testing"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/image"
)

// TestRelations refuses a tree whose sessions and groups nobody could make again, before
// it is ended.
func TestRelations(t *testing.T) {
	of := func(pid, parent, group, session int) image.Process {
		return image.Process{PID: pid, Parent: parent, Group: group, Session: session}
	}
	for name, c := range map[string]struct {
		tree []image.Process
		want []api.Code
	}{
		"one session":           {[]image.Process{of(10, 0, 10, 10), of(11, 10, 10, 10), of(12, 11, 10, 10)}, nil},
		"a root that led none":  {[]image.Process{of(10, 0, 5, 4), of(11, 10, 5, 4), of(12, 10, 12, 4)}, nil},
		"sessions of their own": {[]image.Process{of(10, 0, 10, 10), of(11, 10, 11, 11), of(12, 11, 11, 11), of(13, 10, 13, 13)}, nil},
		"a group of two":        {[]image.Process{of(10, 0, 10, 10), of(11, 10, 11, 10), of(12, 10, 11, 10)}, nil},
		"its leader has ended":  {[]image.Process{of(10, 0, 10, 10), of(12, 10, 11, 10)}, []api.Code{codeGroup}},
		"left by its parent":    {[]image.Process{of(10, 0, 10, 10), of(11, 10, 11, 11), of(12, 11, 10, 10)}, []api.Code{codeSession}},
		"its session has ended": {[]image.Process{of(10, 0, 10, 10), of(12, 10, 11, 11)}, []api.Code{codeSession}},
		"its parent has ended":  {[]image.Process{of(10, 0, 10, 10), of(12, 11, 10, 10)}, []api.Code{codeSession}},
		"led from elsewhere":    {[]image.Process{of(10, 0, 10, 10), of(11, 10, 11, 11), of(12, 10, 11, 10)}, []api.Code{codeGroup}},
	} {
		var got []api.Code
		for _, r := range refuseRelations(c.tree) {
			got = append(got, r.Code)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: refused %v, want %v", name, got, c.want)
		}
	}
}
