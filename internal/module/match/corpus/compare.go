package main

import (
	"context"
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/virtualizing-os/vos/internal/dso"
	"github.com/virtualizing-os/vos/internal/module/match"
	"github.com/virtualizing-os/vos/internal/testbed"
)

// row is one pair of libraries.
type row struct {
	name, old, new string // package and versions
	library        string
	report         match.Report
	codes          []string
	err            error
	elapsed        time.Duration
}

// comparePackage compares the libraries of each version with the next.
func comparePackage(ctx context.Context, archive *testbed.Archive, p testbed.Package) ([]row, error) {
	var rows []row
	before := ""
	for i, version := range p.Versions {
		folder, err := archive.Unpacked(ctx, p.Name, version)
		if err != nil {
			return rows, err
		}
		if i > 0 {
			more, err := compareFolders(before, folder)
			if err != nil {
				return rows, err
			}
			for k := range more {
				more[k].name, more[k].old, more[k].new = p.Name, p.Versions[i-1], version
			}
			rows = append(rows, more...)
		}
		before = folder
	}
	return rows, nil
}

// compareFolders compares the libraries of one soname in two trees.
func compareFolders(old, new string) ([]row, error) {
	was, err := libraries(old)
	if err != nil {
		return nil, err
	}
	is, err := libraries(new)
	if err != nil {
		return nil, err
	}
	var rows []row
	for _, soname := range sorted(was) {
		path, ok := is[soname]
		if !ok {
			continue
		}
		r := compareFiles(was[soname], path)
		r.library = soname
		rows = append(rows, r)
	}
	return rows, nil
}

func compareFiles(old, new string) row {
	begin := time.Now()
	a, closeA, err := open(old)
	if err != nil {
		return row{err: err}
	}
	defer closeA()
	b, closeB, err := open(new)
	if err != nil {
		return row{err: err}
	}
	defer closeB()
	m, err := match.Compare(a, b, match.Options{})
	if err != nil {
		return row{err: err}
	}
	r := row{report: m.Report(), elapsed: time.Since(begin)}
	for _, refusal := range m.Refusals {
		if code := string(refusal.Code); !slices.Contains(r.codes, code) {
			r.codes = append(r.codes, code)
		}
	}
	return r
}

func open(path string) (*dso.Object, func() error, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	o, err := dso.ReadFile(f, info.Size())
	if err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	return o, f.Close, nil
}

// libraries finds the shared libraries of a tree by their sonames.
func libraries(folder string) (map[string]string, error) {
	all := map[string]string{}
	err := filepath.WalkDir(folder, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || !strings.Contains(d.Name(), ".so") {
			return err
		}
		o, done, err := open(path)
		if err != nil {
			return nil // no ELF object
		}
		defer done()
		if o.Type == elf.ET_DYN && o.Soname != "" && !o.PIE() {
			all[o.Soname] = path
		}
		return nil
	})
	return all, err
}

func sorted(m map[string]string) []string {
	var all []string
	for k := range m {
		all = append(all, k)
	}
	slices.Sort(all)
	return all
}
