package testbed

import (
	"fmt"
	"slices"
)

func c(file string, flags ...string) Build {
	return Build{Files: []string{file, "report.h"}, Flags: flags}
}

// builds are the fixtures in this package. What each is for, its arguments and
// its counters are told at the top of its source.
var builds = map[string]Build{
	"eintr":      {Files: []string{"eintr.c", "eintr.h", "eintr_timed.h", "eintr_token.h", "eintr_genuine.h", "report.h"}},
	"threads":    c("threads.c"),
	"signals":    c("signals.c"),
	"churn":      c("churn.c"),
	"exec":       c("exec.c"),
	"stopped":    c("stopped.c"),
	"vforker":    c("vforker.c"),
	"seccomp":    c("seccomp.c"),
	"rseq":       c("rseq.c"),
	"coroutine":  c("coroutine.c"),
	"redirect":   c("redirect.c"),
	"sleepers":   c("sleepers.c"),
	"plain":      c("plain.c", "-fPIE", "-pie"),
	"nopie":      c("plain.c", "-fno-pie", "-no-pie"),
	"static":     c("plain.c", "-static", "-fno-pie", "-no-pie"),
	"static-pie": c("plain.c", "-static-pie", "-fPIE"),
	"m32":        c("plain.c", "-m32"),
	"goprog":     {Files: []string{"testdata/goprog.go"}, Language: "go"},
	"textrel": {
		Files: []string{"textrel.c", "report.h"},
		Parts: []Build{{
			Name:  "libtextrel.so",
			Files: []string{"textrel_lib.c"},
			Flags: []string{"-shared", "-fPIC", "-Wl,-z,notext", "-Wl,-soname,libtextrel.so"},
		}},
	},
	"cxx": {
		Files:    []string{"cxx.cc", "cxx_lib.h", "report.h"},
		Language: "c++",
		Parts: []Build{{
			Name:     "libthrower.so",
			Files:    []string{"cxx_lib.cc", "cxx_lib.h"},
			Language: "c++",
			Flags:    []string{"-shared", "-fPIC", "-Wl,-soname,libthrower.so"},
		}},
	},
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
