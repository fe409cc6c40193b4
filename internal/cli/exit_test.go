package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
)

func TestCodeOf(t *testing.T) {
	for _, c := range []struct {
		err  error
		code int
	}{
		{errGone, exitGone},
		{errNotPermitted, exitNotPermitted},
		{fmt.Errorf("%w: %w", api.ErrNotSupported, errors.New("no PAGEMAP_SCAN")), exitNotSupported},
		{errors.ErrUnsupported, exitNotSupported},
		{&os.PathError{Op: "open", Path: "x", Err: os.ErrPermission}, exitNotPermitted},
		{usagef("no"), exitUsage},
		{fmt.Errorf("nginx: %w", tls), exitRefused},
		{context.DeadlineExceeded, exitFailed},
		{errors.New("no"), exitFailed},
	} {
		if got := codeOf(c.err); got != c.code {
			t.Errorf("codeOf(%v) = %d, want %d", c.err, got, c.code)
		}
	}
}

func TestLeaves(t *testing.T) {
	one, two := errors.New("one"), errors.New("two")
	sentence := fmt.Errorf("open x: %w: %w", one, two)
	for _, c := range []struct {
		err  error
		want []error
	}{
		{nil, nil},
		{one, []error{one}},
		{errors.Join(one, errors.Join(two, one)), []error{one, two, one}},
		{sentence, []error{sentence}},
		{errors.Join(sentence, two), []error{sentence, two}},
	} {
		got := leaves(c.err)
		if len(got) != len(c.want) {
			t.Errorf("leaves(%v) = %v, want %v", c.err, got, c.want)
			continue
		}
		for i := range got {
			if got[i] != c.want[i] {
				t.Errorf("leaves(%v) = %v, want %v", c.err, got, c.want)
			}
		}
	}
}

// TestExitCodesAreDocumented holds the chapter on scripting to the codes.
func TestExitCodesAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/scripting.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[int]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\| (\d+) \|`).FindAllSubmatch(text, -1) {
		code, _ := strconv.Atoi(string(m[1]))
		documented[code] = true
		if exitMeanings[code] == "" {
			t.Errorf("docs/scripting.md has exit code %d, which does not exist", code)
		}
	}
	for code := range exitMeanings {
		if !documented[code] {
			t.Errorf("docs/scripting.md lacks exit code %d", code)
		}
	}
}

func TestProgress(t *testing.T) {
	var b bytes.Buffer
	clock := time.Unix(1000, 0)
	m := newMessages(&b)
	m.terminal = true
	m.progress.width = 12
	m.progress.now = func() time.Time { return clock }
	at := func(d time.Duration, line string) {
		clock = time.Unix(1000, 0).Add(d)
		m.report(func() string { return line })
	}
	m.startProgress()
	at(progressAfter-1, "too early")
	at(progressAfter, "one")
	at(progressAfter+progressEvery-1, "too soon")
	at(progressAfter+progressEvery, "two is too long\x1b")
	m.notef("note")
	at(progressAfter+progressEvery+1, "three")
	m.endProgress()
	at(time.Hour, "too late")
	want := "\rone\x1b[K" + "\rtwo is too…\x1b[K" + "\r\x1b[K" + "note\n" + "\rthree\x1b[K" + "\r\x1b[K"
	if got := b.String(); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}
