package dpkg

import (
	"bytes"
	"errors"
	"io/fs"
)

// versions fills in what status says of packages.
func (d *Database) versions(owners map[string]Package) error {
	if len(owners) == 0 {
		return nil
	}
	text, err := d.read("var/lib/dpkg/status", nil, mostStatus)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	byName := make(map[string][]string) // paths
	for path, p := range owners {
		byName[p.Name] = append(byName[p.Name], path)
	}
	for p := range paragraphs(text) {
		for _, path := range byName[p.Name] {
			known := owners[path]
			if known.Architecture != "" && known.Architecture != p.Architecture && p.Architecture != "all" {
				continue
			}
			owners[path] = p
		}
	}
	return nil
}

// paragraphs yields the packages of a status file that have files on the
// machine: a removed one that left its configuration has a version too.
func paragraphs(text []byte) func(yield func(Package) bool) {
	return func(yield func(Package) bool) {
		var p Package
		installed := false
		for len(text) > 0 {
			var line []byte
			line, text, _ = bytes.Cut(text, newline)
			if len(line) > 0 {
				p.field(line, &installed)
			}
			if len(line) > 0 && len(text) > 0 {
				continue
			}
			if installed && validName(p.Name) && !yield(p) {
				return
			}
			p, installed = Package{}, false
		}
	}
}

// field reads one line of a paragraph. Continuation lines begin with a blank and
// are none of the fields looked for.
func (p *Package) field(line []byte, installed *bool) {
	name, value, found := bytes.Cut(line, []byte(":"))
	if !found {
		return
	}
	value = bytes.TrimSpace(value)
	switch string(name) {
	case "Package":
		p.Name = string(value)
	case "Architecture":
		if validName(string(value)) {
			p.Architecture = string(value)
		}
	case "Version":
		if validVersion(string(value)) {
			p.Version = string(value)
		}
	case "Status": // "install ok installed": wanted, flag, state
		words := bytes.Fields(value)
		*installed = len(words) == 3 && string(words[2]) != "not-installed" && string(words[2]) != "config-files"
	}
}
