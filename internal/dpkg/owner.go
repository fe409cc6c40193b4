package dpkg

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
)

// Owners returns the packages that paths belong to, with their versions. Paths
// are absolute, as dpkg writes them; one that belongs to no package is missing.
func (d *Database) Owners(paths []string) (map[string]Package, error) {
	diversions, err := d.diversions()
	if err != nil {
		return nil, err
	}
	// What to look for in the lists: the path, or what it was called before it
	// was diverted.
	wanted := make(map[string][]claim)
	for _, p := range paths {
		wanted[merged(diversions.listed(p))] = nil
	}
	if err := d.scan(wanted); err != nil {
		return nil, err
	}
	owners := make(map[string]Package)
	for _, p := range paths {
		listed := diversions.listed(p)
		if c, found := best(wanted[merged(listed)], listed, diversions.rule(p)); found {
			owners[p] = c.Package
		}
	}
	if err := d.versions(owners); err != nil {
		return nil, err
	}
	return owners, nil
}

// A claim is a package's list having a path.
type claim struct {
	Package
	path string // as the list writes it
}

// best returns the claim that counts: of the packages that may own the path, one
// that lists it as it was asked for, or else in its other form.
func best(claims []claim, path string, may func(name string) bool) (found claim, ok bool) {
	for _, c := range claims {
		if may(c.Name) && (!ok || c.path == path && found.path != path) {
			found, ok = c, true
		}
	}
	return found, ok
}

// scan notes, of every wanted path, the lists that have it.
func (d *Database) scan(wanted map[string][]claim) error {
	entries, err := fs.ReadDir(d.root, infoFolder)
	if err != nil {
		return fmt.Errorf("list dpkg's packages: %w", err)
	}
	if len(entries) > 16*mostLists {
		return fmt.Errorf("list dpkg's packages: %d files: %w", len(entries), ErrTooLarge)
	}
	var buf []byte
	lists, total := 0, 0
	for _, entry := range entries {
		name, isList := strings.CutSuffix(entry.Name(), ".list")
		if !isList {
			continue
		}
		name, architecture, _ := strings.Cut(name, ":")
		if !validName(name) || architecture != "" && !validName(architecture) {
			continue
		}
		if buf, err = d.read(infoFolder+"/"+entry.Name(), buf, mostList); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				continue // removed meanwhile
			}
			return err
		}
		lists, total = lists+1, total+len(buf)
		if lists > mostLists || total > mostBytes {
			return fmt.Errorf("read dpkg's lists: %w", ErrTooLarge)
		}
		for rest := buf; len(rest) > 0; {
			var line []byte
			line, rest, _ = bytes.Cut(rest, newline)
			key := line
			if hasAlias(line) {
				key = line[len("/usr"):]
			}
			claims, asked := wanted[string(key)] // the conversion allocates nothing
			if asked && len(claims) < mostClaims {
				wanted[string(key)] = append(claims, claim{Package{Name: name, Architecture: architecture}, string(line)})
			}
		}
	}
	return nil
}

var newline = []byte("\n")

// aliased are the directories that usr-merged systems have as links to those of
// the same names below /usr.
var aliased = [...]string{"/usr/bin/", "/usr/sbin/", "/usr/lib/", "/usr/lib32/", "/usr/lib64/", "/usr/libx32/", "/usr/libo32/"}

func hasAlias[T string | []byte](path T) bool {
	return slices.ContainsFunc(aliased[:], func(prefix string) bool {
		return len(path) >= len(prefix) && string(path[:len(prefix)]) == prefix
	})
}

// merged returns the one form of a path by which both ways to write it are
// found: the shorter.
func merged(path string) string {
	if hasAlias(path) {
		return path[len("/usr"):]
	}
	return path
}

// A diversion says that a path of all packages but one is unpacked elsewhere.
type diversion struct {
	from, to string
	by       string // the package whose own file is at from; "" is a local diversion
}

type diversions []diversion

// listed returns the name by which a file is in its package's list.
func (all diversions) listed(path string) string {
	for _, v := range all {
		if merged(v.to) == merged(path) {
			return v.from
		}
	}
	return path
}

// rule returns which packages, of those that list a file, may own it.
func (all diversions) rule(path string) func(name string) bool {
	for _, v := range all {
		switch merged(path) {
		case merged(v.to):
			return func(name string) bool { return name != v.by }
		case merged(v.from):
			return func(name string) bool { return name == v.by }
		}
	}
	return func(string) bool { return true }
}

// diversions reads dpkg's diversions: three lines each, the path, where it went,
// and the package, ":" for one made by hand.
func (d *Database) diversions() (diversions, error) {
	text, err := d.read("var/lib/dpkg/diversions", nil, mostList)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	lines := strings.Split(string(text), "\n")
	var all diversions
	for ; len(lines) >= 3; lines = lines[3:] {
		v := diversion{from: lines[0], to: lines[1], by: lines[2]}
		if v.by == ":" {
			v.by = ""
		}
		if strings.HasPrefix(v.from, "/") && strings.HasPrefix(v.to, "/") {
			all = append(all, v)
		}
	}
	return all, nil
}
