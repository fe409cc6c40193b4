package testbed

import "testing"

func TestPostgresServes(t *testing.T) {
	xml := MustLibraryBuilds(t, "libxml2", "libxml2.so.2")[0]
	lz4, err := InstalledLibrary(t.Context(), "liblz4-1", "liblz4.so.1")
	if err != nil {
		t.Fatal(err)
	}
	libraries := RunLibraries(t, xml, lz4)
	p := RunPostgres(t, PostgresOptions{Env: libraries.Env()})
	load := p.Load(t.Context(), LoadOptions{Fresh: -1})
	if err := load.Await(t.Context(), 20); err != nil {
		t.Fatal(err)
	}
	for _, pid := range append(Children(p.Pid()), p.Pid()) {
		checkMapped(t, pid, libraries, "libxml2.so.2", "liblz4.so.1")
	}
	if total := checkServed(t, load); total.Connections != 4 {
		t.Errorf("%d connections of 4 clients", total.Connections)
	}
}
