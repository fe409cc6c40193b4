package testbed

import (
	"maps"
	"slices"
	"testing"
)

// How much a text is compressed shows which build of liblz4 did it.
func TestPostgresShowsItsLz4(t *testing.T) {
	xml := MustLibraryBuilds(t, "libxml2", "libxml2.so.2")[0]
	var marks []string
	for _, lz4 := range []LibraryBuild{Lz4.MustOriginal(t), Lz4.MustRebuilt(t, "64")} {
		libraries := RunLibraries(t, xml, lz4)
		p := RunPostgres(t, PostgresOptions{Env: libraries.Env()})
		load := p.Load(t.Context(), LoadOptions{Fresh: -1})
		if err := load.Await(t.Context(), 20); err != nil {
			t.Fatal(err)
		}
		for _, pid := range append(Children(p.Pid()), p.Pid()) {
			checkMapped(t, pid, libraries, xml.Soname, lz4.Soname)
		}
		total := checkServed(t, load)
		if total.Connections != 4 {
			t.Errorf("%d connections of 4 clients", total.Connections)
		}
		marks = slices.AppendSeq(marks, maps.Keys(total.Marks))
	}
	if len(marks) != 2 || marks[0] == marks[1] {
		t.Errorf("marks: %q, want one of each build", marks)
	}
}
