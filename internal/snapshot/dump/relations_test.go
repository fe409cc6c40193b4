package dump

import (
	"os/exec"
	"slices"
	"syscall"
	"testing"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/image"
)

// TestRelations refuses a tree whose sessions and groups nobody could make again, before
// it is ended.
func TestRelations(t *testing.T) {
	const absent = 1<<22 - 2 // no process of a test
	leader := exec.Command("sleep", "1000")
	leader.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := leader.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = leader.Process.Kill()
		_ = leader.Wait() // it was killed
	})
	there := leader.Process.Pid
	of := func(pid, parent, group, session int) image.Process {
		return image.Process{PID: pid, Parent: parent, Group: group, Session: session}
	}
	gone := func(pid, parent, group, session int) image.Ended {
		return image.Ended{PID: pid, Parent: parent, Group: group, Session: session}
	}
	for name, c := range map[string]struct {
		tree  []image.Process
		ended []image.Ended
		want  []api.Code
	}{
		"one session":             {[]image.Process{of(10, 0, 10, 10), of(11, 10, 10, 10), of(12, 11, 10, 10)}, nil, nil},
		"a root that led none":    {[]image.Process{of(10, 0, 5, 4), of(11, 10, 5, 4), of(12, 10, 12, 4)}, nil, nil},
		"sessions of their own":   {[]image.Process{of(10, 0, 10, 10), of(11, 10, 11, 11), of(12, 11, 11, 11), of(13, 10, 13, 13)}, nil, nil},
		"a group of two":          {[]image.Process{of(10, 0, 10, 10), of(11, 10, 11, 10), of(12, 10, 11, 10)}, nil, nil},
		"its leader has ended":    {[]image.Process{of(10, 0, 10, 10), of(12, 10, absent, 10)}, nil, nil},
		"its leader is there":     {[]image.Process{of(10, 0, 10, 10), of(12, 10, there, 10)}, nil, []api.Code{codeGroup}},
		"left by its parent":      {[]image.Process{of(10, 0, 10, 10), of(11, 10, 11, 11), of(12, 11, 10, 10)}, nil, nil},
		"its session has ended":   {[]image.Process{of(10, 0, 10, 10), of(12, 10, absent, absent)}, nil, nil},
		"its session is there":    {[]image.Process{of(10, 0, 10, 10), of(12, 10, there, there)}, nil, []api.Code{codeSession}},
		"one that has ended":      {[]image.Process{of(10, 0, 10, 10)}, []image.Ended{gone(11, 10, 10, 10)}, nil},
		"it leads a session":      {[]image.Process{of(10, 0, 10, 10), of(12, 10, 11, 11)}, []image.Ended{gone(11, 10, 11, 11)}, nil},
		"its parent is another's": {[]image.Process{of(10, 0, 10, 10), of(12, 11, 10, 10)}, nil, []api.Code{codeSession}},
		"led from elsewhere":      {[]image.Process{of(10, 0, 10, 10), of(11, 10, 11, 11), of(12, 10, 11, 10)}, nil, []api.Code{codeGroup}},
		"beside who is to adopt":  {[]image.Process{of(10, 0, 10, 10), of(11, 10, 11, 11), of(12, 10, 12, 12), of(13, 12, 11, 11)}, nil, []api.Code{codeSession}},
	} {
		refusals, err := refuseRelations(c.tree, c.ended)
		if err != nil {
			t.Fatal(err)
		}
		var got []api.Code
		for _, r := range refusals {
			if !slices.Contains(got, r.Code) {
				got = append(got, r.Code)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: refused %v, want %v", name, got, c.want)
		}
	}
}
