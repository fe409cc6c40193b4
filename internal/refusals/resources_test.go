package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/virtualizing-os/vos/internal/api"
)

// TestResourcesAreShown holds docs/resources.md to the source: each row names tests and
// codes that there are.
func TestResourcesAreShown(t *testing.T) {
	text, err := os.ReadFile("../../docs/resources.md")
	if err != nil {
		t.Fatal(err)
	}
	tests, codes := testsBelow(t, ".."), make(map[api.Code]bool)
	all, err := findCodes("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, some := range all {
		for _, code := range some {
			codes[code] = true
		}
	}
	test, code := regexp.MustCompile(`^[a-z]+\.Test[A-Za-z]+$`), regexp.MustCompile("^`[a-z_]+`$")
	rows := 0
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(cells[len(cells)-1], " shown by") {
			continue
		}
		rows++
		for name := range strings.SplitSeq(cells[len(cells)-1], ",") {
			if name = strings.TrimSpace(name); !test.MatchString(name) || !tests[name] {
				t.Errorf("%q: there is no test %q", strings.TrimSpace(cells[0]), name)
			}
		}
		if len(cells) != 3 {
			continue
		}
		for is := range strings.SplitSeq(cells[1], ",") {
			if is = strings.TrimSpace(is); is != "kept" && (!code.MatchString(is) || !codes[api.Code(strings.Trim(is, "`"))]) {
				t.Errorf("%q: there is no refusal %q", strings.TrimSpace(cells[0]), is)
			}
		}
	}
	if rows < 50 {
		t.Errorf("only %d rows were found", rows)
	}
}

// testsBelow are the tests of all packages below a folder, as package.TestName.
func testsBelow(t *testing.T, root string) map[string]bool {
	t.Helper()
	all := make(map[string]bool)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, "Test") {
				all[filepath.Base(filepath.Dir(path))+"."+f.Name.Name] = true
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}
