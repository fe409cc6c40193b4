package restore

import (
	"fmt"
	"slices"

	"github.com/virtualizing-os/vos/internal/image"
)

// A fitted source is an image with what this machine needs otherwise. The image that it
// stands on does not change.
type fitted struct {
	Source
	image *image.Image // nil if nothing is otherwise
	pages []byte       // at places with up ownPages
}

// ownPages is the up of places in fitted.pages; images have none below zero.
const ownPages = -1

// Image implements Source.
func (f *fitted) Image() *image.Image {
	if f.image != nil {
		return f.image
	}
	return f.Source.Image()
}

// ReadPages implements Source.
func (f *fitted) ReadPages(at image.Place, b []byte) error {
	if at.Up != ownPages {
		return f.Source.ReadPages(at, b)
	}
	if at.Offset > uint64(len(f.pages)) || uint64(len(b)) > uint64(len(f.pages))-at.Offset {
		return fmt.Errorf("%d bytes of pages at %d are not there", len(b), at.Offset)
	}
	copy(b, f.pages[at.Offset:])
	return nil
}

// setMappings gives a process other mappings.
func (f *fitted) setMappings(i int, mappings []image.Mapping) {
	if f.image == nil {
		copied := *f.Source.Image()
		copied.Processes = slices.Clone(copied.Processes)
		f.image = &copied
	}
	f.image.Processes[i].Mappings = mappings
}

// add adds whole pages, and returns their place.
func (f *fitted) add(pages []byte) image.Place {
	place := image.Place{Up: ownPages, Offset: uint64(len(f.pages))}
	f.pages = append(f.pages, pages...)
	return place
}
