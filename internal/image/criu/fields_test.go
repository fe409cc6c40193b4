package criu

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/virtualizing-os/vos/internal/image"
)

// leftOut are fields of an image that have no place in CRIU's format, and that a program
// does not miss (docs/limits.md names what it may), or that only vos needs.
var leftOut = []string{
	"Image.ID", "Image.Parent", "Image.Taken", "Image.Model", "Image.Held", "Apart.Pinned",
	"Machine.Hostname", "Machine.BootID", "Machine.SinceBoot", "Machine.Monotonic", "Machine.CPU", "Machine.Features", "Machine.XStateSize",
	"Process.Program", "Process.Command", "Process.ExitSignal", "Process.Terminal", "Process.ControlGroups", "ControlGroup.Controllers", "ControlGroup.Path",
	"Ended.ExitSignal", "Ended.UID", "Ended.GID",
	"Thread.Affinity", "Thread.Slack",
	"Rseq.Flags",
	"Scheduler.Runtime", "Scheduler.Deadline", "Scheduler.Period", // of a policy that is refused
	"Object.Key", "Object.ID", "Object.Outside", // of System V memory, which is refused
	"FileRef.Modified",
	"File.PIDFD", "File.Terminal", // whose kinds are refused
	"Pipe.Packet",                    // a flag, too
	"TimerFD.Now",                    // the time that is left is written
	"File.Was",                       // for people
	"Restart.Number", "Restart.Args", // the call is made again, which a note says
}

// TestFieldsAreKnown fails where an image holds something that is neither written in
// CRIU's format nor left out on purpose.
func TestFieldsAreKnown(t *testing.T) {
	var source strings.Builder
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if text, err := os.ReadFile(name); err != nil {
			t.Fatal(err)
		} else if !strings.HasSuffix(name, "_test.go") {
			source.Write(text)
		}
	}
	seen := map[reflect.Type]bool{}
	var look func(reflect.Type)
	look = func(s reflect.Type) {
		for s.Kind() == reflect.Pointer || s.Kind() == reflect.Slice || s.Kind() == reflect.Array {
			s = s.Elem()
		}
		if s.Kind() != reflect.Struct || s.PkgPath() != reflect.TypeFor[image.Image]().PkgPath() || seen[s] {
			return
		}
		seen[s] = true
		for i := range s.NumField() {
			f := s.Field(i)
			name := s.Name() + "." + f.Name
			used := regexp.MustCompile(`\.` + f.Name + `\b`).MatchString(source.String())
			if !f.IsExported() || s.Name() == "Terminal" || wholesale[s.Name()] {
				continue
			}
			if out := slices.Contains(leftOut, name); !used && !out {
				t.Errorf("image.%s is not written in CRIU's format: write it, refuse it, or name it in leftOut", name)
			}
			look(f.Type)
		}
	}
	look(reflect.TypeFor[image.Image]())
	if len(seen) < 20 {
		t.Errorf("only %d types were found", len(seen))
	}
}

// wholesale are types that are converted as a whole, which ends to compile when they
// become others.
var wholesale = map[string]bool{"AltStack": true, "Limit": true}
