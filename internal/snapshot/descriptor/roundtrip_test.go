package descriptor

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// keep looks at a process and writes its descriptors down, which must not be refused.
func keep(t *testing.T, h *held, inherit ...int) *image.Image {
	t.Helper()
	found, refusals, err := Look(testContext(t), []*procfs.Process{h.process()}, Options{Inherit: inherit, GoesOn: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(refusals) > 0 {
		t.Fatalf("refused: %v", refusals)
	}
	pages := &pagesInMemory{}
	kept, err := found.Dump(testContext(t), Store{Append: pages.append, Peeking: h.peeking})
	if err != nil {
		t.Fatal(err)
	}
	im := &image.Image{Files: kept.Files, Objects: kept.Objects, Processes: []image.Process{{PID: h.pid, Root: "/", Descriptors: kept.Descriptors[h.pid]}}}
	pagesOf[im] = pages
	return im
}

// again makes the descriptors of an image again in a new process.
func again(t *testing.T, im *image.Image, r Restoring) *held {
	t.Helper()
	r.ReadPages = pagesOf[im].read
	r.Object = func(i int) (*os.File, error) { return object(t, im, i) }
	refusals, err := Plan(im, r)
	if err != nil {
		t.Fatal(err)
	}
	if len(refusals) > 0 {
		t.Fatalf("refused: %v", refusals)
	}
	h := newHeld(t)
	o, err := Open(im, r)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Give(h, &im.Processes[0]); err != nil {
		t.Fatal(err)
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	return h
}

// roundTrip keeps a process, kills it, and makes its descriptors again in another one,
// which must be seen to be the same.
func roundTrip(t *testing.T, h *held) *held {
	t.Helper()
	before := seen(t, h)
	im := keep(t, h)
	if diff := cmp.Diff(before, seen(t, h), ignored); diff != "" {
		t.Errorf("the process that was kept is changed (-before +after):\n%s", diff)
	}
	h.kill()
	other := again(t, im, Restoring{})
	if diff := cmp.Diff(before, seen(t, other), ignored); diff != "" {
		t.Errorf("(-kept +restored):\n%s", diff)
	}
	return other
}

// ignored is what is of one process and of one file without a name.
var ignored = cmp.Options{
	cmpopts.IgnoreFields(handle.Handle{}, "PID"),
	cmpopts.EquateComparable(netip.AddrPort{}),
	cmpopts.IgnoreFields(handle.Lock{}, "PID"),
	cmp.Transformer("anonymous", func(h handle.Handle) handle.Handle {
		if h.Path == "" {
			h.Inode, h.Link = 0, ""
		}
		return h
	}),
	cmpopts.AcyclicTransformer("registration", func(r handle.Registration) handle.Registration {
		r.Inode, r.Device = 0, 0
		return r
	}),
}

func seen(t *testing.T, h *held) []handle.Handle {
	t.Helper()
	handles, restless, err := handle.List(h.process())
	if err != nil || len(restless) > 0 {
		t.Fatalf("look: %v, restless %v", err, restless)
	}
	return handles
}

// sees wants a process's descriptors a and b to be of one description, or not.
func (h *held) shares(a, b int, want bool) {
	h.t.Helper()
	if same, err := handle.SameDescription(h.pid, a, h.pid, b); err != nil || same != want {
		h.t.Errorf("descriptors %d and %d are one description: %v, error %v; want %v", a, b, same, err, want)
	}
}

// refused wants keeping to be refused with exactly these codes.
func refused(t *testing.T, h *held, want ...api.Code) []api.Refusal {
	t.Helper()
	found, refusals, err := Look(testContext(t), []*procfs.Process{h.process()}, Options{GoesOn: true})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, codes(refusals)); diff != "" {
		t.Errorf("look (-want +got):\n%s%v", diff, refusals)
	}
	_, err = found.Dump(testContext(t), Store{Append: new(pagesInMemory).append})
	if diff := cmp.Diff(want, codes(api.Refusals(err))); diff != "" {
		t.Errorf("dump (-want +got):\n%s%v", diff, err)
	}
	for _, r := range refusals {
		if r.Subject == "" || r.Detail == "" || r.Remedy == "" {
			t.Errorf("a refusal lacks words: %+v", r)
		}
	}
	return refusals
}

func codes(refusals []api.Refusal) (all []api.Code) {
	for _, r := range refusals {
		all = append(all, r.Code)
	}
	slices.Sort(all)
	return all
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// refusedNow wants only the dump to be refused, for what shows when the program is held.
func refusedNow(t *testing.T, h *held, want ...api.Code) {
	t.Helper()
	found, refusals, err := Look(testContext(t), []*procfs.Process{h.process()}, Options{GoesOn: true})
	if err != nil || len(refusals) > 0 {
		t.Fatalf("look: %v, error %v", refusals, err)
	}
	_, err = found.Dump(testContext(t), Store{Append: new(pagesInMemory).append})
	if diff := cmp.Diff(want, codes(api.Refusals(err))); diff != "" {
		t.Errorf("dump (-want +got):\n%s%v", diff, err)
	}
}

// peekedNow is refusedNow where the program can let vos look at packets.
func peekedNow(t *testing.T, h *held, want ...api.Code) {
	t.Helper()
	found, refusals, err := Look(testContext(t), []*procfs.Process{h.process()}, Options{})
	if err != nil || len(refusals) > 0 {
		t.Fatalf("look: %v, error %v", refusals, err)
	}
	_, err = found.Dump(testContext(t), Store{Append: new(pagesInMemory).append, Peeking: h.peeking})
	if diff := cmp.Diff(want, codes(api.Refusals(err))); diff != "" {
		t.Errorf("dump (-want +got):\n%s%v", diff, err)
	}
}

// peeking is Store.Peeking.
func (h *held) peeking(_, fd int, f func() error) error {
	h.setOption(fd, levelSocket, soPeekOffset, 0)
	defer h.setOption(fd, levelSocket, soPeekOffset, -1)
	return f()
}

// pagesInMemory stands for the pages of an image.
type pagesInMemory struct{ all []byte }

// pagesOf are those of the images that keep has made.
var pagesOf = map[*image.Image]*pagesInMemory{}

func (p *pagesInMemory) append(pages []byte) (image.Place, error) {
	if len(pages)%image.PageSize != 0 {
		return image.Place{}, fmt.Errorf("%d bytes are no pages", len(pages))
	}
	at := len(p.all)
	p.all = append(p.all, pages...)
	return image.Place{Offset: uint64(at)}, nil
}

func (p *pagesInMemory) read(place image.Place, b []byte) error {
	if copy(b, p.all[place.Offset:]) < len(b) {
		return io.ErrUnexpectedEOF
	}
	return nil
}

// object makes an object of an image, one for each test.
func object(t *testing.T, im *image.Image, i int) (*os.File, error) {
	o := im.Objects[i]
	if o.Kind != "memfd" {
		return nil, fmt.Errorf("object of kind %q", o.Kind)
	}
	key := fmt.Sprintf("%p %d", im, i)
	if file := objects[key]; file != nil {
		return file, nil
	}
	file, err := kernel.MemoryFile(o.Name, int(o.Flags))
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { file.Close() })
	objects[key] = file
	if err := file.Truncate(int64(o.Size)); err != nil {
		return nil, err
	}
	for _, run := range o.Pages {
		b := make([]byte, run.Count*image.PageSize)
		if err := pagesOf[im].read(run.Place, b); err != nil {
			return nil, err
		}
		if _, err := file.WriteAt(b[:min(uint64(len(b)), o.Size-run.Start)], int64(run.Start)); err != nil {
			return nil, err
		}
	}
	if o.Seals != 0 {
		return file, kernel.AddSeals(file, int(o.Seals))
	}
	return file, nil
}

var objects = map[string]*os.File{}
