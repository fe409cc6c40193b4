package testbed

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"image/color"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// A Display is an X server without a screen: what it would show lies in a file
// (Xvfb -fbdir).
type Display struct {
	child  *child
	folder string
	name   string // ":99"
	output *lastOutput
}

// StartDisplay starts Xvfb with a screen of that size, on a display that is free.
// The caller stops it.
func StartDisplay(width, height int) (_ *Display, err error) {
	path, err := findProgram("Xvfb")
	if err != nil {
		return nil, fmt.Errorf("start a display: %w", err)
	}
	d := &Display{output: &lastOutput{}}
	if d.folder, err = os.MkdirTemp("", "vos-display-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(d.folder)
		}
	}()
	number, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer number.Close()
	cmd := exec.Command(path, "-displayfd", "3", "-screen", "0", fmt.Sprintf("%dx%dx24", width, height),
		"-nolisten", "tcp", "-ac", "-noreset", "-fbdir", d.folder)
	cmd.ExtraFiles = []*os.File{write}
	cmd.Stdout, cmd.Stderr = d.output, d.output
	d.child, err = startChild(cmd)
	write.Close()
	if err != nil {
		return nil, err
	}
	if err := number.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return nil, errors.Join(err, d.Stop())
	}
	line, err := bufio.NewReader(number).ReadString('\n') // it writes that when it can be used
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start a display: %w: %s", err, d.output), d.Stop())
	}
	d.name = ":" + strings.TrimSpace(line)
	return d, nil
}

// DisplayOf is a display by its name, that somebody else starts and stops: Xvfb with
// -fbdir folder.
func DisplayOf(name, folder string) *Display { return &Display{name: name, folder: folder} }

// RunDisplay is [StartDisplay] for the length of a test.
func RunDisplay(tb TB, width, height int) *Display {
	tb.Helper()
	d, err := StartDisplay(width, height)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	tb.Cleanup(func() {
		if err := d.Stop(); err != nil {
			tb.Errorf("%v", err)
		}
	})
	return d
}

// Stop ends the display, and all that is shown on it.
func (d *Display) Stop() error {
	return errors.Join(d.child.stop(syscall.SIGTERM, 10*time.Second), os.RemoveAll(d.folder))
}

// Env is what a program that is to be shown on the display, and have no other
// session, finds in its environment; home is a folder of its own.
func (d *Display) Env(home string) []string {
	return []string{"DISPLAY=" + d.name, "HOME=" + home, "XDG_RUNTIME_DIR=" + home, "XDG_CONFIG_HOME=" + home,
		"GDK_BACKEND=x11", "NO_AT_BRIDGE=1", "DBUS_SESSION_BUS_ADDRESS=unix:path=/nowhere", "GSETTINGS_BACKEND=memory"}
}

// Screenshot returns what the display shows.
func (d *Display) Screenshot() (*image.RGBA, error) {
	file, err := os.ReadFile(filepath.Join(d.folder, "Xvfb_screen0"))
	if err != nil {
		return nil, fmt.Errorf("take a screenshot: %w", err)
	}
	return decodeXWD(file)
}

// decodeXWD decodes a window dump of 32 bits a pixel, blue first: XWDFile.h.
func decodeXWD(file []byte) (*image.RGBA, error) {
	const headWords = 25
	var head [headWords]uint32
	if err := binary.Read(bytes.NewReader(file), binary.BigEndian, &head); err != nil {
		return nil, fmt.Errorf("decode a window dump: %w", err)
	}
	size, width, height, order, bits, stride, colors := head[0], int(head[4]), int(head[5]), head[7], head[11], int(head[12]), head[19]
	at := int(size) + 12*int(colors)
	if head[1] != 7 || order != 0 || bits != 32 || width <= 0 || height <= 0 || stride < 4*width || at+stride*height > len(file) {
		return nil, fmt.Errorf("decode a window dump: of %d bytes, with header %v", len(file), head)
	}
	shot := image.NewRGBA(image.Rect(0, 0, width, height))
	for y := range height {
		row := file[at+y*stride:]
		for x := range width {
			shot.SetRGBA(x, y, color.RGBA{row[4*x+2], row[4*x+1], row[4*x], 255})
		}
	}
	return shot, nil
}

// Xdotool moves, clicks and types, or looks for windows, and returns what it printed.
func (d *Display) Xdotool(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "xdotool", args...)
	cmd.Env = append(os.Environ(), "DISPLAY="+d.name)
	out, err := cmd.Output()
	var failed *exec.ExitError
	if errors.As(err, &failed) {
		err = fmt.Errorf("xdotool %s: %w: %s", strings.Join(args, " "), err, failed.Stderr)
	}
	return strings.TrimSpace(string(out)), err
}

// A Window is a program of the distribution that is shown on a display.
type Window struct{ *server }

// RunWindow runs a program on a display for the length of a test, as another user
// where account is not "". It returns when a window of it is shown.
func (d *Display) RunWindow(tb TB, account, name string, args ...string) *Window {
	tb.Helper()
	path, err := findProgram(name)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	var env []string
	s, err := startServer(tb.Context(), name, nil, func(folder string, _ int) ([]string, error) {
		settings := filepath.Join(folder, "gtk-3.0")
		// What moves by itself would be taken for a change.
		err := errors.Join(os.Mkdir(settings, 0o755), os.WriteFile(filepath.Join(settings, "settings.ini"),
			[]byte("[Settings]\ngtk-cursor-blink=0\ngtk-enable-animations=0\n"), 0o644))
		if err != nil {
			return nil, err
		}
		prefix := []string{}
		if account != "" {
			if prefix, err = asAccount(account, folder, settings); err != nil {
				return nil, err
			}
		}
		env = append([]string{"env"}, d.Env(folder)...)
		return append(append(append(prefix, env...), path), args...), nil
	}, func(ctx context.Context, s *server) error {
		_, err := d.Xdotool(ctx, "search", "--onlyvisible", "--name", ".")
		return err
	})
	if err != nil {
		tb.Fatalf("%v", err)
	}
	w := &Window{s}
	tb.Cleanup(func() {
		select {
		case <-w.child.done:
			tb.Errorf("%s ended by itself: %v: %s", name, w.child.err, w.printed())
		default:
		}
		w.killGroup()
		if err := os.RemoveAll(w.folder); err != nil {
			tb.Errorf("%v", err)
		}
	})
	return w
}

// Pid returns the process id.
func (w *Window) Pid() int { return w.child.pid() }

// Printed returns the end of what the program printed.
func (w *Window) Printed() string { return w.output.String() }
