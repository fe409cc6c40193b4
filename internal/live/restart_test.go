package live

import (
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// renewed runs the fixture whose memory is given fresh pages.
func renewed(t *testing.T, args ...string) *subject {
	t.Helper()
	s, _ := start(t, testbed.FixtureOptions{}, testProgram(t, "renewed"), append([]string{"16"}, args...)...)
	return s
}

// restarts returns what vos restart tells.
func restarts(t *testing.T, r result) []api.Restart {
	t.Helper()
	return lines[api.Restart](t, r)
}

// TestRestart gives programs fresh memory, again and again: they answer right, and are
// the processes that they were.
func TestRestart(t *testing.T) {
	cycles := 8
	if soak {
		cycles = 200
	}
	victims := map[string]func(*testing.T) victim{
		"nginx": nginxVictim, "64 threads": threadsVictim, "redis": redisVictim,
		"hostile": func(t *testing.T) victim {
			s := renewed(t)
			return victim{s.target(), "", []int{s.pid}, s.unharmed}
		},
	}
	for name, start := range victims {
		t.Run(name, func(t *testing.T) {
			v := start(t)
			before := make(map[int]testbed.Inventory)
			for _, pid := range v.pids {
				before[pid] = inventory(t, pid)
			}
			for range cycles {
				all := restarts(t, vos(t, "restart", v.target, "--json").expect(t, 0))
				if len(all) != len(v.pids) {
					t.Fatalf("%d results for the processes %v", len(all), v.pids)
				}
				for _, one := range all {
					if one.Outcome != api.Restarted || one.Bytes == 0 || one.Rounds == 0 || one.FreezeUS == 0 {
						t.Fatalf("%+v", one)
					}
				}
				v.check(t)
			}
			for _, pid := range v.pids {
				checkFree(t, pid)
				after := inventory(t, pid)
				// Servers have clients, and the hostile one maps and unmaps all the time.
				if name == "64 threads" && len(after.Descriptors) != len(before[pid].Descriptors) {
					t.Errorf("descriptors were %v and are %v", before[pid].Descriptors, after.Descriptors)
				}
				// What the heap has grown by since is a mapping of its own.
				if more := len(after.Mappings) - len(before[pid].Mappings); name != "hostile" && more > 1 || more > 10 {
					t.Errorf("mappings were %q and are %q", before[pid].Mappings, after.Mappings)
				}
			}
		})
	}
}

// TestRestartKilled kills vos at random instants of a restart. The program lives on with
// all its memory, and exists once.
func TestRestartKilled(t *testing.T) {
	kills := 100
	if soak {
		kills = 1000
	}
	for name, start := range map[string]func(*testing.T) victim{
		"64 threads": threadsVictim, "redis": redisVictim,
		"hostile": func(t *testing.T) victim {
			s := renewed(t, "killed")
			return victim{s.target(), "", []int{s.pid}, func(t *testing.T) {
				s.unharmed(t)
				if n := s.last.Counts["interrupted"]; n > int64(max(2, kills/50)) {
					t.Fatalf("%d of %d calls were interrupted for good", n, kills)
				}
			}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			v := start(t)
			command := []string{"restart", v.target}
			begin := time.Now()
			vos(t, command...).expect(t, 0)
			whole, killed := time.Since(begin), 0
			for n := range kills {
				// Half of them are spread evenly: most of it is copying.
				at := instant(whole)
				if n%2 == 0 {
					at = time.Duration(n) * whole / time.Duration(kills)
				}
				if killAfter(t, at, command) {
					killed++
				}
				for _, pid := range v.pids {
					checkFree(t, pid)
				}
				if n%5 == 4 {
					v.check(t)
				}
			}
			if killed < kills/2 {
				t.Errorf("only %d of %d runs were killed before their end", killed, kills)
			}
			v.check(t)
			vos(t, command...).expect(t, 0)
			v.check(t)
		})
	}
}
