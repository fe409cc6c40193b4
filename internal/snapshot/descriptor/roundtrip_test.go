package descriptor

import (
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/handle"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// keep looks at a process and writes its descriptors down, which must not be refused.
func keep(t *testing.T, h *held, inherit ...int) *image.Image {
	t.Helper()
	found, refusals, err := Look(testContext(t), []*procfs.Process{h.process()}, Options{Inherit: inherit})
	if err != nil {
		t.Fatal(err)
	}
	if len(refusals) > 0 {
		t.Fatalf("refused: %v", refusals)
	}
	kept, err := found.Dump(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	return &image.Image{Files: kept.Files, Processes: []image.Process{{PID: h.pid, Root: "/", Descriptors: kept.Descriptors[h.pid]}}}
}

// again makes the descriptors of an image again in a new process.
func again(t *testing.T, im *image.Image, r Restoring) *held {
	t.Helper()
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
	found, refusals, err := Look(testContext(t), []*procfs.Process{h.process()}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, codes(refusals)); diff != "" {
		t.Errorf("look (-want +got):\n%s%v", diff, refusals)
	}
	_, err = found.Dump(testContext(t))
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
	found, refusals, err := Look(testContext(t), []*procfs.Process{h.process()}, Options{})
	if err != nil || len(refusals) > 0 {
		t.Fatalf("look: %v, error %v", refusals, err)
	}
	_, err = found.Dump(testContext(t))
	if diff := cmp.Diff(want, codes(api.Refusals(err))); diff != "" {
		t.Errorf("dump (-want +got):\n%s%v", diff, err)
	}
}
