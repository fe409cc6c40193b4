package descriptor

import (
	"os"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/image"
	"github.com/virtualizing-os/vos/internal/kernel"
)

// taken is a copy of a descriptor of the process.
func (h *held) taken(fd int) kernel.Raw {
	h.t.Helper()
	pidfd, err := kernel.OpenPidfd(h.pid)
	if err != nil {
		h.t.Fatal(err)
	}
	defer pidfd.Close()
	raw, err := kernel.TakeRaw(pidfd, fd)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { raw.Close() })
	return raw
}

// TestTerminalsAreKept makes both ends of a pseudo terminal again, with its number,
// settings, size and modes, and refuses what waits in it.
func TestTerminalsAreKept(t *testing.T) {
	h := newHeld(t)
	h.at(5, "/dev/ptmx", os.O_RDWR)
	master := h.taken(5)
	number, err := master.TerminalNumber()
	if err != nil {
		t.Fatal(err)
	}
	if err := master.SetLocked(false); err != nil {
		t.Fatal(err)
	}
	h.at(6, kernel.SlavePath(number), os.O_RDWR|syscall.O_NOCTTY)
	settings, err := master.Settings()
	if err != nil {
		t.Fatal(err)
	}
	settings[12] &^= 0xa // ICANON, ECHO of c_lflag
	for _, err := range []error{master.SetSettings(settings), master.SetTerminalSize(kernel.TerminalSize{41, 42, 43, 44}), master.SetPacketMode(true),
		syscall.Chmod(kernel.SlavePath(number), 0o640)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	h.write(5, "typed")
	refusedNow(t, h, codeWaiting)
	if got, err := h.read(6, 100); err != nil || got != "typed" {
		t.Fatalf("%q, %v", got, err)
	}
	im := keep(t, h)
	if refusals, err := Plan(im, Restoring{}); err != nil || !cmp.Equal(codes(refusals), []api.Code{codeTerminalTaken}) {
		t.Errorf("while it is there: %v, %v", refusals, err)
	}
	if _, err := OpenTerminals(im); len(api.Refusals(err)) != 1 {
		t.Errorf("while it is there: %v", err)
	}
	if err := master.Close(); err != nil {
		t.Fatal(err)
	}
	h.kill()
	terminals, err := OpenTerminals(im)
	if err != nil {
		t.Fatal(err)
	}
	defer terminals.Close()
	h = again(t, im, Restoring{Terminals: terminals})
	if err := terminals.Close(); err != nil {
		t.Fatal(err)
	}
	master = h.taken(5)
	after, err := master.Settings()
	size, sizeErr := master.TerminalSize()
	packet, packetErr := master.PacketMode()
	if err != nil || sizeErr != nil || packetErr != nil || after != settings || size != (kernel.TerminalSize{41, 42, 43, 44}) || !packet {
		t.Errorf("settings %v, %v; size %v, %v; packet mode %v, %v", after, err, size, sizeErr, packet, packetErr)
	}
	if got, err := master.TerminalNumber(); err != nil || got != number {
		t.Errorf("it has number %d, not %d: %v", got, number, err)
	}
	if info, err := os.Stat(kernel.SlavePath(number)); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("its node is %v, %v", info, err)
	}
	h.write(6, "shown")
	if got, err := h.read(5, 100); err != nil || got != "\x00shown" { // of packet mode
		t.Errorf("%q, %v", got, err)
	}
	h.kill()
}

// TestTerminalsOfOthersAreRefused refuses an end whose other one is outside, and images
// of which the other one is missing.
func TestTerminalsOfOthersAreRefused(t *testing.T) {
	outside, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer outside.Close()
	master, err := kernel.CopyRaw(outside)
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	number, err := master.TerminalNumber()
	if err != nil {
		t.Fatal(err)
	}
	if err := master.SetLocked(false); err != nil {
		t.Fatal(err)
	}
	h := newHeld(t)
	h.at(5, kernel.SlavePath(number), os.O_RDWR|syscall.O_NOCTTY)
	refused(t, h, codeTerminal)
	h.kill()
	im := &image.Image{Files: []image.File{{Kind: "terminal", Terminal: &image.Terminal{Index: number}}}}
	if _, err := Plan(im, Restoring{}); err == nil {
		t.Error("an image without a master is no error")
	}
	for _, wrong := range []image.Terminal{{Index: -1, Master: true}, {Index: 1 << 30, Master: true}, {Master: true, Settings: make([]byte, 3)}} {
		im.Files[0].Terminal = &wrong
		if _, err := OpenTerminals(im); err == nil {
			t.Errorf("%+v is no error", wrong)
		}
	}
}
