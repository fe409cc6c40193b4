package testbed

import (
	"testing"
	"time"
)

// Every fixture is ready soon, works, finds nothing wrong when it is left
// alone, and quits.
func TestFixturesAloneAreHealthy(t *testing.T) {
	for _, name := range FixtureNames() {
		t.Run(name, func(t *testing.T) {
			f := RunFixture(t, name)
			time.Sleep(300 * time.Millisecond)
			r, err := f.Report(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if r.Fixture != name {
				t.Errorf("the fixture calls itself %q", r.Fixture)
			}
			if err := r.Healthy(Report{}); err != nil {
				t.Error(err)
			}
		})
	}
}
