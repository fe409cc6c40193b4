package api

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseTarget(t *testing.T) {
	tests := []struct {
		text string
		want Target
		err  bool
	}{
		{"nginx", Target{Program: "nginx"}, false},
		{"1234", Target{Program: "1234"}, false},
		{"nginx:libz.so.1", Target{Program: "nginx", Module: "libz.so.1"}, false},
		{"nginx:/usr/lib/libz.so.1", Target{Program: "nginx", Module: "/usr/lib/libz.so.1"}, false},
		{"web2/1234", Target{Node: "web2", Program: "1234"}, false},
		{"web2/nginx:libz.so.1", Target{Node: "web2", Program: "nginx", Module: "libz.so.1"}, false},
		{"/usr/sbin/nginx", Target{Program: "/usr/sbin/nginx"}, false},
		{"/usr/sbin/nginx:nginx", Target{Program: "/usr/sbin/nginx", Module: "nginx"}, false},
		{"nginx.service", Target{Program: "nginx.service"}, false},
		{"", Target{}, true},
		{"nginx:", Target{}, true},
		{":libz.so.1", Target{}, true},
		{"web2/", Target{}, true},
	}
	for _, test := range tests {
		got, err := ParseTarget(test.text)
		if (err != nil) != test.err {
			t.Errorf("%q: error %v, want one: %v", test.text, err, test.err)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%q: %s", test.text, diff)
		}
		if err == nil && got.String() != test.text {
			t.Errorf("%q is written as %q", test.text, got)
		}
	}
}

func TestMatchesModule(t *testing.T) {
	const soname, path = "libz.so.1", "/usr/lib/libz.so.1.2.13"
	for module, want := range map[string]bool{"": true, soname: true, path: true, "libz.so.1.2.13": true, "libz": false, "libz.so": false} {
		if got := (Target{Program: "x", Module: module}).MatchesModule(soname, path); got != want {
			t.Errorf("module %q: %v, want %v", module, got, want)
		}
	}
}

func TestRefusals(t *testing.T) {
	a, b := Refusal{Code: "a"}, Refusal{Code: "b"}
	err := errors.Join(fmt.Errorf("first: %w", a), errors.New("another error"), fmt.Errorf("then: %w", fmt.Errorf("inner: %w", b)))
	if diff := cmp.Diff([]Refusal{a, b}, Refusals(err)); diff != "" {
		t.Error(diff)
	}
	if got := Refusals(errors.New("no refusal")); got != nil {
		t.Errorf("refusals of another error: %v", got)
	}
}
