package criu

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/image"
)

func TestRefusals(t *testing.T) {
	for name, change := range map[string]func(img *image.Image){
		"descriptor 7 of process 812: it is an eventfd that counts as a semaphore": func(img *image.Image) { img.Files[7].Event = &image.Event{Semaphore: true} },
		"descriptor 2 of process 812: it leads to a description of kind pidfd":     func(img *image.Image) { img.Files[2] = image.File{Kind: "pidfd", PIDFD: 812} },
		"descriptor 12 of process 812: it leads to a description of kind memfd":    func(img *image.Image) { img.Files[12].Object = 7 },
		"descriptor 0 of process 812: a lock of kind lease is held on it":          func(img *image.Image) { img.Files[0].Locks[0].Kind = "lease" },
		"descriptor 14 of process 812: its connection went on with the program": func(img *image.Image) {
			s := *img.Files[14].Socket
			s.State, img.Files[14].Socket = "established", &s
		},
		"descriptor 16 of process 812: it is connected to a socket that is not": func(img *image.Image) {
			s := *img.Files[16].Socket
			s.PeerID, img.Files[16].Socket = 999, &s
		},
		"descriptor 10 of process 812: it waits for a description by number 5": func(img *image.Image) { img.Files[10].Epoll[0].Number = 5 },
		"thread 815: it is scheduled by deadlines":                             func(img *image.Image) { img.Processes[0].Threads[1].Scheduler.Policy = policyDeadline },
		"thread 812: it uses registers (components 0x40000":                    func(img *image.Image) { img.Processes[0].Threads[0].XState[legacySize+2] = 1 << 2 },
		"process 813: it has a root directory of its own, /jail":               func(img *image.Image) { img.Processes[1].Root = "/jail" },
		"mapping 0x90000-0x93000 of process 812: it is of sysv memory":         func(img *image.Image) { img.Objects[0].Kind = "sysv" },
	} {
		t.Run(name, func(t *testing.T) {
			k := example(t)
			change(k.reader.Image())
			dir := filepath.Join(t.TempDir(), "criu")
			_, err := Write(k.reader, dir, Options{})
			refusals := api.Refusals(err)
			if len(refusals) == 0 || refusals[0].Code != codeNotExpressed || !strings.HasPrefix(refusals[0].Subject+": "+refusals[0].Detail, name) || refusals[0].Remedy == "" {
				t.Errorf("refused by %+v, %v", refusals, err)
			}
			if left, err := os.ReadDir(filepath.Dir(dir)); err != nil || len(left) > 0 {
				t.Errorf("left %v, %v", left, err)
			}
		})
	}
}

// failing fails in the middle of the pages.
type failing struct{ Source }

func (f failing) ReadPages(at image.Place, b []byte) error {
	if at.Offset > 0 {
		return syscall.EIO
	}
	return f.Source.ReadPages(at, b)
}

func TestWholeOrNot(t *testing.T) {
	k := example(t)
	folder := t.TempDir()
	dir := filepath.Join(folder, "criu")
	if _, err := Write(failing{k.reader}, dir, Options{}); !errors.Is(err, syscall.EIO) {
		t.Errorf("an image that can't be read: %v", err)
	}
	if left, err := os.ReadDir(folder); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
	notes, err := Write(k.reader, dir, Options{})
	if err != nil || !slices.ContainsFunc(notes, func(n string) bool { return strings.HasPrefix(n, "the code of the vDSO") }) {
		t.Errorf("without the vDSO: %q, %v", notes, err)
	}
	if _, err := Write(k.reader, dir, Options{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("written over another: %v", err)
	}
	err = filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		info, failed := d.Info()
		if path != folder && (failed != nil || info.Mode().Perm()&0o077 != 0) {
			t.Errorf("%s is %v, %v", path, info.Mode(), failed)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
