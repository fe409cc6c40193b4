package match

import (
	"math/rand/v2"
	"testing"
)

// TestAlign compares the alignment with the longest common subsequence.
func TestAlign(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 3000 {
		a, b := tokens(r), tokens(r)
		got := align(a, b)
		before := [2]int32{-1, -1}
		for _, p := range got {
			if p[0] <= before[0] || p[1] <= before[1] || int(p[0]) >= len(a) || int(p[1]) >= len(b) {
				t.Fatalf("%v of %d and %d are out of order: %v", p, len(a), len(b), got)
			}
			if a[p[0]].token != b[p[1]].token {
				t.Fatalf("%v are not the same", p)
			}
			before = p
		}
		if want := longestCommon(a, b); len(got) != want {
			t.Fatalf("aligned %d, the longest common subsequence has %d", len(got), want)
		}
	}
}

func tokens(r *rand.Rand) []instruction {
	all := make([]instruction, r.IntN(30))
	for i := range all {
		all[i].token = uint64(r.IntN(4))
	}
	return all
}

func longestCommon(a, b []instruction) int {
	row := make([]int, len(b)+1)
	for i := range a {
		diagonal := 0
		for j := range b {
			above := row[j+1]
			if a[i].token == b[j].token {
				row[j+1] = diagonal + 1
			} else {
				row[j+1] = max(row[j+1], row[j])
			}
			diagonal = above
		}
	}
	return row[len(b)]
}
