package criu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/image"
)

// A Source is an image with its pages, those of its parents included: an image.Reader.
type Source interface {
	Image() *image.Image
	ReadPages(at image.Place, b []byte) error
}

// Options add what an image does not hold.
type Options struct {
	VDSO []byte // the code that the kernel gives programs; nil if another kernel runs here than did
}

// Write writes an image in CRIU's format to directory dir, which must not be there yet,
// and is there as a whole or not at all. It returns what is not in it. What the format
// can't express at all is an error that wraps api.Refusals; then nothing is left.
func Write(source Source, dir string, options Options) (notes []string, err error) {
	x := newExport(source, options)
	if of := x.img.Apart; of != nil {
		x.refuse("the program", fmt.Sprintf("it was in namespaces of its own (%s)", strings.Join(of.Kinds, ", ")), noRemedy)
	}
	if x.collect(); len(x.refusals) > 0 {
		errs := make([]error, len(x.refusals))
		for i, r := range x.refusals {
			errs[i] = r
		}
		return nil, errors.Join(errs...)
	}
	x.partial, err = image.NewPartial(dir)
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", dir, err)
	}
	if err = x.write(); err == nil {
		err = x.partial.Appear()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("write %s: %w", dir, err), x.partial.Remove())
	}
	return x.notes, nil
}

// An export is one image on its way: all messages are made before the first is written.
type export struct {
	source   Source
	options  Options
	img      *image.Image
	partial  *image.Partial // that is written to
	notes    []string
	refusals []api.Refusal

	images  []part
	content []content       // written behind the others
	files   []any           // entries of files.img
	last    uint32          // number of a file
	named   map[name]uint32 // files that are there by their path
	shared  map[int]bool    // objects that are written
	ghosts  map[name]uint32 // deleted files
	pages   uint32          // number of a file of pages
	seccomp seccomp
	chains  map[filterPlace]int // places in seccomp
}

// A part is one file of the directory: its magic number, and its messages.
type part struct {
	name    string
	magic   uint32
	entries []any
}

// rawBytes stand in a part between messages, as it is.
type rawBytes []byte

func newExport(source Source, options Options) *export {
	img := source.Image()
	return &export{source: source, options: options, img: img, last: uint32(len(img.Files)), named: map[name]uint32{}, shared: map[int]bool{}, ghosts: map[name]uint32{}, chains: map[filterPlace]int{}}
}

// collect makes all messages.
func (x *export) collect() {
	x.inventory()
	for i := range x.img.Processes {
		x.process(i)
	}
	x.descriptions()
	x.add("files.img", magicFiles, x.files...)
	x.add("seccomp.img", magicSeccomp, x.seccomp)
}

func (x *export) add(name string, magic uint32, entries ...any) {
	x.images = append(x.images, part{name, magic, entries})
}

// extend adds entries to a part, which is made by the first.
func (x *export) extend(name string, magic uint32, entries ...any) {
	for i := range x.images {
		if p := &x.images[i]; p.name == name {
			p.entries = append(p.entries, entries...)
			return
		}
	}
	x.add(name, magic, entries...)
}

func (x *export) note(format string, args ...any) {
	x.notes = append(x.notes, fmt.Sprintf(format, args...))
}

// write writes all files.
func (x *export) write() error {
	for _, p := range x.images {
		if err := x.writeFile(p.name, func(file *os.File) error { return p.writeTo(file) }); err != nil {
			return err
		}
	}
	for _, c := range x.content {
		if err := x.writeFile(c.name, func(file *os.File) error { return c.write(x.source, file) }); err != nil {
			return err
		}
	}
	return nil
}

// writeFile makes a file for the owner alone, and sees to it that it is on the disk.
func (x *export) writeFile(name string, write func(*os.File) error) (err error) {
	file, err := os.OpenFile(filepath.Join(x.partial.Path, name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if err := write(file); err != nil {
		return err
	}
	return file.Sync()
}
