package testbed

import (
	"fmt"
	"slices"
)

// builds are the fixtures in this package. What each is for, its arguments and
// its counters are told at the top of its source.
var builds = map[string]Build{
	"eintr":   {Files: []string{"eintr.c", "report.h"}, Libs: []string{"-lrt"}},
	"threads": {Files: []string{"threads.c", "report.h"}},
}

// Source returns how the fixture name is built.
func Source(name string) (Build, error) {
	b, ok := builds[name]
	if !ok {
		return Build{}, fmt.Errorf("no fixture is called %q", name)
	}
	b.Name = name
	return b, nil
}

// FixtureNames lists the fixtures, sorted.
func FixtureNames() []string {
	var names []string
	for name := range builds {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
