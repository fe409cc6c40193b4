package restart

import (
	"math/rand/v2"
	"testing"

	"github.com/virtualizing-os/vos/internal/procfs"
)

// TestRounds cuts areas into rounds: each address is in one piece, in order, and no round
// has more pages than it may, but for the rest of a page table.
func TestRounds(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		p := &Plan{options: Options{Round: uint64(1+rng.IntN(64)) << 20}}
		at := uint64(1 << 40)
		for range 1 + rng.IntN(300) {
			at += uint64(rng.IntN(1<<10)) * pageSize
			a := &area{Mapping: procfs.Mapping{Start: at, End: at + uint64(1+rng.IntN(1<<15))*pageSize}}
			a.cut, a.done = a.Start, a.Start
			for from := a.Start; from < a.End; {
				from += uint64(rng.IntN(64)) * pageSize
				to := min(from+uint64(1+rng.IntN(4096))*pageSize, a.End)
				if from < to {
					a.pages = append(a.pages, procfs.PageRange{Start: from, End: to})
				}
				from = to + pageSize
			}
			p.areas, at = append(p.areas, a), a.End
		}
		reached := make(map[*area]uint64)
		for pieces := p.nextRound(); len(pieces) > 0; pieces = p.nextRound() {
			var copied uint64
			if len(pieces) > maxPieces {
				t.Fatalf("%d pieces in one round", len(pieces))
			}
			for _, q := range pieces {
				if want := max(reached[q.area], q.Start); q.start != want || q.end <= q.start || q.end > q.End {
					t.Fatalf("a piece %#x-%#x of %#x-%#x, and %#x was reached", q.start, q.end, q.Start, q.End, want)
				}
				reached[q.area] = q.end
				for _, r := range q.pages {
					if from, to := max(r.Start, q.start), min(r.End, q.end); from < to {
						copied += to - from
					}
				}
			}
			if copied > p.options.Round+hugePage {
				t.Fatalf("%d bytes in a round of %d", copied, p.options.Round)
			}
		}
		for _, a := range p.areas {
			if reached[a] != a.End {
				t.Fatalf("%#x-%#x ends at %#x", a.Start, a.End, reached[a])
			}
		}
	}
}

// TestGaps takes places from an address space: they lie in gaps, apart from each other,
// and as far from a huge page's begin as is asked for. What does not fit is not given.
func TestGaps(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	var maps []procfs.Mapping
	for at := uint64(1 << 33); at < addressLimit-1<<40; at += uint64(rng.IntN(1<<30)) * pageSize {
		end := at + uint64(1+rng.IntN(1<<16))*pageSize
		maps = append(maps, procfs.Mapping{Start: at, End: end})
		at = end
	}
	g := newGaps(maps)
	taken := maps
	for range 500 {
		size, offset := uint64(1+rng.IntN(1<<18))*pageSize, uint64(rng.IntN(512))*pageSize
		at, ok := g.take(size, offset)
		if !ok {
			t.Fatalf("no place for %d bytes", size)
		}
		if at%hugePage != offset || at+size > addressLimit {
			t.Fatalf("%#x, %d bytes from a huge page, want %d", at, at%hugePage, offset)
		}
		for _, m := range taken {
			if at < m.End && m.Start < at+size {
				t.Fatalf("%#x-%#x is taken: %#x-%#x", at, at+size, m.Start, m.End)
			}
		}
		taken = append(taken, procfs.Mapping{Start: at, End: at + size})
	}
	if at, ok := g.take(addressLimit, 0); ok {
		t.Errorf("the whole address space is free, at %#x", at)
	}
	if at, ok := newGaps([]procfs.Mapping{{Start: 0, End: addressLimit}}).take(pageSize, 0); ok {
		t.Errorf("a full address space has room at %#x", at)
	}
}

// TestStays tells what a fresh mapping can't stand for.
func TestStays(t *testing.T) {
	private := procfs.Mapping{Kind: procfs.KindAnonymous, Perms: procfs.Read | procfs.Write}
	shared := private
	shared.Perms |= procfs.Shared
	for _, test := range []struct {
		name   string
		m      procfs.Mapping
		flags  []string
		policy string
		stays  bool
	}{
		{"plain", private, []string{"rd", "wr", "mr", "mw", "me", "ac", "sd"}, "", false},
		{"huge pages", private, []string{"rd", "wr", "hg"}, "", false},
		{"locked", private, []string{"rd", "wr", "lo"}, "", true},
		{"with a key", private, []string{"rd", "pk"}, "", true},
		{"a flag of tomorrow", private, []string{"rd", "zz"}, "", true},
		{"unknown", private, nil, "", true},
		{"bound to a node", private, []string{"rd"}, "bind:0", true},
		{"shared", shared, []string{"rd"}, "", true},
		{"file", procfs.Mapping{Kind: procfs.KindFile}, []string{"rd"}, "", true},
		{"stack", procfs.Mapping{Kind: procfs.KindStack}, []string{"rd", "gd"}, "", true},
		{"vdso", procfs.Mapping{Kind: procfs.KindVDSO}, []string{"rd"}, "", true},
		{"heap", procfs.Mapping{Kind: procfs.KindHeap}, []string{"rd", "wr"}, "", false},
	} {
		if reason := stays(&test.m, test.flags, test.policy); (reason != "") != test.stays {
			t.Errorf("%s: %q", test.name, reason)
		}
	}
}
