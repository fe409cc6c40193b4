package testbed

import (
	"testing"
	"time"
)

// A stream goes on in the library for as long as it is to; short answers show
// the library's build.
func TestStreamsShowTheirLibrary(t *testing.T) {
	for _, run := range []struct {
		task, mark string
		source     LibrarySource
		change     string
	}{
		{"zlib", "mark.3", Zlib, ""},
		{"zlib", "mark.7", Zlib, "7"},
		{"expat", "mark.no element found", Expat, ""},
		{"expat", "mark.nothing there", Expat, "nothing there"},
	} {
		build := run.source.MustOriginal(t)
		if run.change != "" {
			build = run.source.MustRebuilt(t, run.change)
		}
		libraries := RunLibraries(t, build)
		f := RunStream(t, run.task, FixtureOptions{Env: libraries.Env()})
		checkMapped(t, f.Pid(), libraries, build.Soname)
		time.Sleep(500 * time.Millisecond)
		r, err := f.Report(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Healthy(Report{}); err != nil {
			t.Error(err)
		}
		if r.Counts[run.mark] == 0 || len(r.Counts) != 1 {
			t.Errorf("%s: %v, not all %s", run.task, r.Counts, run.mark)
		}
	}
}

// Two hundred clients keep their connections.
func TestMemcachedShowsItsLibevent(t *testing.T) {
	for version, build := range map[string]LibraryBuild{"2.1.12-stable": Event.MustOriginal(t), "changed": Event.MustRebuilt(t, "changed")} {
		libraries := RunLibraries(t, build)
		m := RunMemcached(t, MemcachedOptions{Env: libraries.Env()})
		checkMapped(t, m.Pid(), libraries, Event.Soname)
		total := checkServed(t, m.Load(t.Context(), LoadOptions{Conns: 200, Fresh: -1}))
		if total.Connections != 200 {
			t.Errorf("%d connections of 200 clients", total.Connections)
		}
		if got, err := m.LibeventVersion(); err != nil || got != version {
			t.Errorf("libevent is %q, %v, not %q", got, err, version)
		}
	}
}
