package vex

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// vdsoOf returns the code that a kernel gives all programs (the vDSO), if it is the one
// that runs here; nil if it isn't, or gives none.
func vdsoOf(release string) (code []byte, err error) {
	running, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil || strings.TrimSpace(string(running)) != release {
		return nil, err
	}
	self, err := procfs.Open(os.Getpid())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, self.Close()) }()
	maps, err := self.Maps()
	if err != nil {
		return nil, err
	}
	for i := range maps {
		if m := &maps[i]; m.Kind == procfs.KindVDSO {
			code = make([]byte, m.Size())
			if err := kernel.ReadMemory(os.Getpid(), code, []kernel.RemoteRange{{Address: m.Start, Length: m.Size()}}); err != nil {
				return nil, fmt.Errorf("read the vDSO: %w", err)
			}
			return code, nil
		}
	}
	return nil, nil
}
