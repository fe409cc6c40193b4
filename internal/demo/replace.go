package demo

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// turns is how often the two builds of libz take turns after the first time, a
// second apart.
const turns = 10

// What shows which build compressed an answer: the number for the operating
// system in the gzip header, as the load counts it.
const (
	usual   = "gzip 3"
	other   = "gzip 7"
	rebuilt = "7"
)

// chooseBuilds returns the build that nginx is to begin with and the one that is
// to take over; why says why there is none.
func chooseBuilds(ctx context.Context) (first testbed.LibraryBuild, second *testbed.LibraryBuild, why error) {
	built, err := testbed.Zlib.Rebuilt(ctx, rebuilt)
	if err == nil {
		first, err = testbed.Zlib.Original(ctx)
	}
	if err == nil {
		return first, &built, nil
	}
	if first, installedErr := testbed.InstalledLibrary(ctx, testbed.Zlib.Package, testbed.Zlib.Soname); installedErr == nil {
		return first, nil, err
	}
	return testbed.LibraryBuild{}, nil, err
}

// playReplacement upgrades libz on disk, and lets it take over and go again.
func (s *stage) playReplacement(ctx context.Context, second testbed.LibraryBuild) error {
	s.say("Now libz is upgraded on disk, by a build that writes another number for the operating system into the gzip header:\n3 (Unix) becomes 7 (Macintosh), so each answer tells which build compressed it. nginx runs on with the old one.")
	if err := s.libraries.Install(second); err != nil {
		return err
	}
	target := program + ":" + second.Soname
	for _, step := range []struct {
		code    int
		args    []string
		mark    string // of answers from now on
		changes bool
	}{
		{10, []string{"outdated", program}, usual, false},
		{10, []string{"replace", target, "--dry-run"}, usual, false},
		{0, []string{"replace", target}, other, true},
		{0, []string{"modules", target}, other, false},
		{0, []string{"rollback", target}, usual, true},
	} {
		if err := s.show(ctx, step.code, step.args...); err != nil {
			return err
		}
		if err := s.answers(ctx, step.mark, step.changes); err != nil {
			return err
		}
	}
	s.say("They take turns once a second, %d times.", turns)
	for n := range turns {
		args, mark := []string{"replace", target}, other
		if n%2 == 1 {
			args, mark = []string{"rollback", target}, usual
		}
		done, err := operations(ctx, args...)
		if err != nil {
			return err
		}
		s.switches = append(s.switches, done...)
		if err := s.answers(ctx, mark, false); err != nil {
			return err
		}
		if totals := s.load.Totals(); (n+1)%5 == 0 {
			fmt.Fprintf(s.out, "turn %2d of %d: %d requests served, %d failed\n", n+1, turns, totals.Served, totals.Failed)
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
	return s.show(ctx, 0, "verify", "--full", program)
}

// answers checks that one build gives all answers that begin from now on.
func (s *stage) answers(ctx context.Context, mark string, say bool) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	marks, err := s.load.NextMarks(ctx, 20)
	if err != nil {
		return err
	}
	for found, n := range marks {
		if found != mark && found != "" {
			return fmt.Errorf("%d answers are marked %q, want %q", n, found, mark)
		}
	}
	if say {
		fmt.Fprintf(s.out, "the next %d compressed answers: all marked %q\n", marks[mark], mark)
	}
	return nil
}

// sumReplacement returns what the replacements cost, "" if there were none.
func (s *stage) sumReplacement(totals testbed.Totals) string {
	if len(s.switches) == 0 {
		return ""
	}
	var stopped []int64
	for _, o := range s.switches {
		stopped = append(stopped, o.PauseUS)
	}
	var t strings.Builder
	fmt.Fprintf(&t, "\nanswers by build     %d by the first, %d by the other\n", totals.Marks[usual], totals.Marks[other])
	fmt.Fprintf(&t, "builds took over     %d times, in %d processes\n", turns+2, len(s.nginx.Pids()))
	fmt.Fprintf(&t, "all threads stopped  %s\n", spread(stopped))
	fmt.Fprint(&t, "one thread borrowed  the first time only, see above")
	return t.String()
}
