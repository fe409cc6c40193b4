package main

import (
	"go/parser"
	"go/token"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/virtualizing-os/vos/internal/api"
)

// TestListIsCurrent holds docs/refusals.md to the source.
func TestListIsCurrent(t *testing.T) {
	want, err := list("..")
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../../docs/refusals.md")
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("docs/refusals.md is out of date: make refusals")
	}
}

func TestCodesOf(t *testing.T) {
	const source = `package p
const (
	codeA api.Code = "a"
	codeB, codeC api.Code = "b", "c"
	other string = "d"
	none = "e"
)
var v api.Code = "f"
const codeG api.Code = "g"`
	file, err := parser.ParseFile(token.NewFileSet(), "p.go", source, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := codesOf(file), []api.Code{"a", "b", "c", "g"}; !slices.Equal(got, want) {
		t.Errorf("codes %q, want %q", got, want)
	}
}

// TestMeaningsFit: a cell of a table is one line without a bar.
func TestMeaningsFit(t *testing.T) {
	for code, m := range meanings {
		if m.when == "" || strings.ContainsAny(m.when+m.helps, "|\n") {
			t.Errorf("%s: %q", code, m)
		}
	}
}
