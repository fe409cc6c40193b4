package floors

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

const root = "github.com/virtualizing-os/vos/"

// floor tells on which floor each package stands. A package that is not here
// fails the test: a new one says where it belongs.
var floor = map[string]int{
	"cmd/vos":                      10,
	"internal/cli":                 9,
	"internal/vex":                 8,
	"internal/menu":                5,
	"internal/restart":             3,
	"internal/module":              4,
	"internal/snapshot/dump":       5,
	"internal/snapshot/restore":    5,
	"internal/snapshot/descriptor": 4,
	"internal/snapshot/remote":     3,
	"internal/snapshot/lineage":    2,
	"internal/image":               1,
	"internal/image/criu":          2,
	"internal/module/match":        2,
	"internal/module/stage":        3,
	"internal/vin":                 3,
	"internal/handle":              3,
	"internal/intercept":           3,
	"internal/tracee":              2,
	"internal/launch":              2,
	"internal/dso":                 1,
	"internal/dpkg":                1,
	"internal/rpm":                 1,
	"internal/x86":                 1,
	"internal/procfs":              1,
	"internal/kernel":              0,
}

// beside are the packages that stand beside the floors: all may import api,
// and the programs of tests, demo and benchmarks import what they exercise.
var beside = map[string]struct{ below int }{
	"internal/api":                 {below: 0},
	"internal/floors":              {below: 0},
	"internal/testbed":             {below: 1},
	"internal/live":                {below: 10},
	"internal/demo":                {below: 10},
	"internal/demo/cmd":            {below: 10},
	"internal/bench":               {below: 10},
	"internal/bench/cmd":           {below: 10},
	"internal/module/match/corpus": {below: 10},
	"internal/refusals":            {below: 10},
}

// rawCalls may be imported by kernel alone.
var rawCalls = []string{"unsafe", "golang.org/x/sys/unix", "golang.org/x/sys/cpu"}

type goPackage struct {
	ImportPath string
	Imports    []string
}

func TestImportsGoDownwards(t *testing.T) {
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, root)
		own, onFloor := floor[name]
		aside, isBeside := beside[name]
		if !onFloor && !isBeside {
			t.Errorf("package %s stands on no floor: add it to floors_test.go and docs/ARCHITECTURE.md", name)
			continue
		}
		for _, imported := range p.Imports {
			for _, raw := range rawCalls {
				if imported == raw && name != "internal/kernel" {
					t.Errorf("%s imports %s, which only internal/kernel may", name, raw)
				}
			}
			below, local := strings.CutPrefix(imported, root)
			if !local || below == "internal/api" {
				continue
			}
			target, ok := floor[below]
			switch {
			case isBeside && ok && target >= aside.below && aside.below < 10:
				t.Errorf("%s imports %s, but it serves all floors from %d on", name, below, aside.below)
			case !isBeside && !ok:
				t.Errorf("%s imports %s, which stands beside the floors", name, below)
			case !isBeside && target >= own:
				t.Errorf("%s (floor %d) imports %s (floor %d)", name, own, below, target)
			}
		}
	}
}

func packages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", root+"...")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatalf("go list: %v", err)
	}
	var all []goPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("read go list: %v", err)
		}
		all = append(all, p)
	}
	if len(all) < 5 {
		t.Fatalf("go list found only %d packages", len(all))
	}
	return all
}
