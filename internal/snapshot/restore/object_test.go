package restore

import (
	"strings"
	"testing"

	"github.com/virtualizing-os/vos/internal/image"
)

// samePages gives every page the same content.
type samePages struct{ image *image.Image }

func (s samePages) Image() *image.Image { return s.image }

func (samePages) ReadPages(_ image.Place, b []byte) error {
	copy(b, strings.Repeat("m", len(b)))
	return nil
}

// TestObjectsHaveTheirSize: a memfd may end within a page.
func TestObjectsHaveTheirSize(t *testing.T) {
	for _, size := range []uint64{6, pageSize, pageSize + 1, 3*pageSize - 1} {
		pages := (size + pageSize - 1) / pageSize
		o := image.Object{Kind: objectMemfd, Name: "memory", Size: size, Pages: []image.Run{{Count: pages}}}
		file, _, err := new(process).makeObject(samePages{}, &o)
		if err != nil {
			t.Fatal(err)
		}
		info, err := file.Stat()
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, size)
		if _, err := file.ReadAt(b, 0); err != nil || info.Size() != int64(size) || strings.Trim(string(b), "m") != "" {
			t.Errorf("%d bytes, want %d; error %v", info.Size(), size, err)
		}
		file.Close()
	}
}
