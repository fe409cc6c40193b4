package live

import (
	"context"
	le "encoding/binary"
	"maps"
	"math/rand/v2"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/testbed"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// kills is how often vos is killed over one program: 100 of 300 in all.
func kills() int {
	if soak {
		return 1000
	}
	return 100
}

// whole returns how long a run of the binary takes that nobody kills.
func whole(t *testing.T, args ...string) time.Duration {
	t.Helper()
	begin := time.Now()
	vos(t, args...).expect(t, 0)
	return time.Since(begin)
}

// left is what shows in a program of what vOS maps and opens.
type left struct{ own, other, descriptors int }

func leftIn(t *testing.T, pid int) left {
	t.Helper()
	i := inventory(t, pid)
	l := left{descriptors: len(i.Descriptors)}
	for _, m := range i.Mappings {
		if strings.Contains(m, "/memfd:vos-") {
			l.own++
		} else {
			l.other++
		}
	}
	return l
}

// TestReplaceKilledAtAnyInstant kills vos at random instants while it maps builds
// into a program of 64 threads, lets them take over, and rolls back. Each build
// is a new one: its build-id is. The program runs one build as a whole, the next
// run of vos works, and nothing piles up.
func TestReplaceKilledAtAnyInstant(t *testing.T) {
	const perProgram = 20 // a program keeps 32 builds
	seed := uint32(0)
	fresh := func(build int) string {
		seed++
		return altered(t, mixedBuild(t, build), func(b []byte) []byte {
			le.LittleEndian.PutUint32(b[buildIDOffset(t, b):], seed)
			return b
		})
	}
	killed, all := 0, 0
	for all < kills() {
		m := runMixed(t, form{}, "killed", "busy=8", "wait=56")
		empty := leftIn(t, m.pid)
		oneRun := whole(t, "replace", m.module(), "--with", fresh(2))
		one := leftIn(t, m.pid)
		whole(t, "replace", m.module(), "--with", fresh(3))
		two := leftIn(t, m.pid)
		oneBack := whole(t, "rollback", m.module())
		if one.descriptors != empty.descriptors || two.descriptors != empty.descriptors {
			t.Fatalf("descriptors: %+v, %+v, %+v", empty, one, two)
		}
		known := mixedBuild(t, 2)
		for n := range perProgram {
			all++
			var args []string
			limit := oneRun
			switch n % 4 {
			case 0, 1:
				args = []string{"replace", m.module(), "--with", fresh(2 + rand.IntN(2))}
			case 2:
				args = []string{"replace", m.module(), "--with", known}
			case 3:
				args, limit = []string{"rollback", m.module()}, oneBack
			}
			if killAfter(t, instant(limit), args) {
				killed++
			}
			m.unharmed(t)
			report, err := m.Report(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			c := report.Counts
			if c["build"] != c["again"] || c["build"] != c["third"] || c["touched"] != 333 {
				t.Fatalf("after %v: the program runs parts of several builds: %v", args, c)
			}
		}
		// What the kills left is taken out by the next one that maps a build.
		m.replace(t, fresh(3))
		m.runs(t, 3)
		generations := 0
		for _, o := range modules(t, vos(t, "modules", m.target(), "--json").expect(t, 0)) {
			if strings.HasPrefix(o.Path, "/memfd:vos-staged-") {
				generations++
			}
		}
		each := two.own - one.own
		want := left{own: one.own + (generations-1)*each, other: empty.other + (generations)*(one.other-empty.other), descriptors: empty.descriptors}
		if got := leftIn(t, m.pid); got.own != want.own || got.descriptors != want.descriptors || got.other > want.other {
			t.Errorf("left with %d generations: %+v, want %+v; without: %+v, with one: %+v, with two: %+v", generations, got, want, empty, one, two)
		}
		vos(t, "verify", "--full", m.target()).expect(t, 0)
		m.rollback(t)
		m.unharmed(t)
		vos(t, "replace", m.module(), "--with", known).expect(t, 0) // it may run already
		m.runs(t, 2)
		if err := m.Quit(20 * time.Second); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d of %d runs were killed before their end", killed, all)
	if killed < all/2 {
		t.Errorf("only %d of %d runs were killed before their end", killed, all)
	}
}

// TestReplaceKilledOverServers does so with libz of python3 in the middle of one
// stream, and of nginx under load.
func TestReplaceKilledOverServers(t *testing.T) {
	original, rebuilt := testbed.Zlib.MustOriginal(t), testbed.Zlib.MustRebuilt(t, "7")
	other := testbed.Zlib.MustRebuilt(t, "11")
	zlib := testbed.Zlib.Soname
	type server struct {
		pids  []int
		check func(t *testing.T)
		marks func(t *testing.T) map[string]int64 // of answers from now on
	}
	for name, run := range map[string]func(t *testing.T) server{
		"python3": func(t *testing.T) server {
			f := testbed.RunStream(t, "zlib", testbed.FixtureOptions{Env: testbed.RunLibraries(t, original).Env()})
			s := &subject{pid: f.Pid(), ask: f.Report}
			return server{[]int{f.Pid()}, s.unharmed, func(t *testing.T) map[string]int64 {
				t.Helper()
				s.works(t)
				before := s.last.Counts
				s.works(t)
				marks := make(map[string]int64)
				for name, n := range s.last.Counts {
					if mark, ok := strings.CutPrefix(name, "mark."); ok && n > before[name] {
						marks[mark] = n - before[name]
					}
				}
				return marks
			}}
		},
		"nginx": func(t *testing.T) server {
			nginx := testbed.RunNginx(t, testbed.NginxOptions{Env: testbed.RunLibraries(t, original).Env()})
			load := nginx.Load(context.Background(), testbed.LoadOptions{})
			s := underLoad(t, "nginx", nginx.Master(), load)
			pids := nginx.Pids()
			return server{pids, func(t *testing.T) {
				t.Helper()
				for _, pid := range pids {
					checkFree(t, pid)
				}
				s.works(t)
			}, func(t *testing.T) map[string]int64 {
				t.Helper()
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				marks, err := load.NextMarks(ctx, 40)
				if err != nil {
					t.Fatal(err)
				}
				marks["7"], marks["11"] = marks["gzip 7"], marks["gzip 11"]
				delete(marks, "gzip 7")
				delete(marks, "gzip 11")
				return marks
			}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := run(t)
			target := strconv.Itoa(s.pids[0]) // the master's children with it, or by themselves
			each := func(args ...string) [][]string {
				all := make([][]string, len(s.pids))
				for i, pid := range s.pids {
					all[i] = append([]string{args[0], strconv.Itoa(pid) + ":" + zlib}, args[1:]...)
				}
				return all
			}
			commands := append(each("replace", "--with", rebuilt.Path), each("rollback")...)
			commands = append(commands, each("replace", "--with", other.Path)...)
			only := func(mark string, args ...string) {
				t.Helper()
				for _, c := range each(args...) {
					if r := vos(t, c...); r.Code != 0 {
						t.Fatalf("vos %v: %d %s", c, r.Code, r.Stderr)
					}
				}
				s.check(t)
				marks := s.marks(t)
				delete(marks, "")
				maps.DeleteFunc(marks, func(_ string, n int64) bool { return n == 0 })
				if len(marks) != 1 || marks[mark] == 0 {
					t.Fatalf("after %v: answers by %v", args, marks)
				}
			}
			killed := 0
			for n := range kills() {
				c := commands[n%len(commands)]
				if killAfter(t, instant(60*time.Millisecond), c) {
					killed++
				}
				s.check(t)
				if n%25 == 24 {
					only("7", "replace", "--with", rebuilt.Path)
					only("11", "replace", "--with", other.Path)
				}
			}
			only("7", "replace", "--with", rebuilt.Path)
			only("11", "replace", "--with", other.Path)
			before := make(map[int]left)
			for _, pid := range s.pids {
				before[pid] = leftIn(t, pid)
			}
			for n := range kills() / 2 {
				if killAfter(t, instant(60*time.Millisecond), commands[n%len(commands)]) {
					killed++
				}
				s.check(t)
			}
			only("7", "replace", "--with", rebuilt.Path)
			only("11", "replace", "--with", other.Path)
			for _, pid := range s.pids {
				if b, a := before[pid], leftIn(t, pid); a.own != b.own || a.other > b.other+2 || a.descriptors > b.descriptors+8 {
					t.Errorf("process %d has %+v and had %+v", pid, a, b)
				}
			}
			vos(t, "verify", "--full", target).expect(t, 0)
			t.Logf("%d of %d runs were killed before their end", killed, kills()*3/2)
			if killed < kills()*3/4 {
				t.Errorf("only %d runs were killed before their end", killed)
			}
		})
	}
}

// TestReplaceTakesOutWhatWasReserved lets a build take over in a program in which
// vos was killed when it had only just reserved addresses for another.
func TestReplaceTakesOutWhatWasReserved(t *testing.T) {
	m := runMixed(t, form{})
	undisturbed := runMixed(t, form{})
	p, err := procfs.Open(m.pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	_, err = tracee.Do(t.Context(), p, tracee.Options{}, func(s *tracee.Session) error {
		if err := s.Borrow(); err != nil {
			return err
		}
		for _, name := range []string{"vos-staged-" + mixedLibrary, "vos-vin"} {
			at, err := s.Data([]byte(name + "\x00"))
			if err != nil {
				return err
			}
			const memfdCreate = 319
			fd, err := s.Call(memfdCreate, at, 0)
			if err != nil {
				return err
			}
			if _, err := s.Call(syscall.SYS_MMAP, 0, 1<<20, syscall.PROT_NONE, syscall.MAP_PRIVATE|syscall.MAP_NORESERVE, fd, 0); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	m.runs(t, 1)
	for _, s := range []*mixed{m, undisturbed} {
		s.replace(t, mixedBuild(t, 2))
		s.runs(t, 2)
	}
	if got, want := leftIn(t, m.pid), leftIn(t, undisturbed.pid); got != want {
		t.Errorf("left: %+v, in an undisturbed program: %+v", got, want)
	}
}
