package live

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/virtualizing-os/vos/internal/testbed"
)

// TestSnapshotDisplay checkpoints a program with a window together with its X server,
// ends both, and builds them again: it shows what it showed, and goes on being used.
func TestSnapshotDisplay(t *testing.T) {
	cycles := 3
	if soak {
		cycles = 20
	}
	for _, tool := range []string{"Xvfb", "galculator", "xdotool"} {
		testbed.NeedTool(t, tool)
	}
	home, frames := publicFolder(t), t.TempDir()
	settings := filepath.Join(home, "gtk-3.0")
	if err := os.Mkdir(settings, 0o755); err != nil {
		t.Fatal(err)
	}
	// What moves by itself would be taken for a change.
	if err := os.WriteFile(filepath.Join(settings, "settings.ini"), []byte("[Settings]\ngtk-cursor-blink=0\ngtk-enable-animations=0\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	number := filepath.Join(home, "number")
	const script = `mkfifo "$1"; Xvfb -displayfd 3 -screen 0 640x480x24 -nolisten tcp -ac -noreset -fbdir "$2" 3<>"$1" >/dev/null 2>&1 &
		until [ -p "$1" ]; do sleep .01; done; read n <"$1"; echo "$n" >"$1.is"; shift 2; DISPLAY=:$n; export DISPLAY; "$@"; wait`
	command := append([]string{"env"}, testbed.DisplayOf("", frames).Env(home)...)
	root := startAlone(t, append([]string{testbed.NeedTool(t, "sh"), "-c", script, "sh", number, frames}, append(command[:1:1], append(command[2:], testbed.NeedTool(t, "galculator"))...)...)...)
	var name string
	await(t, "the display", func() bool {
		is, err := os.ReadFile(number + ".is")
		name = strings.TrimSpace(string(is))
		return err == nil && name != ""
	})
	d := &desktop{Display: testbed.DisplayOf(":"+name, frames)}
	var window string
	await(t, "a window", func() bool {
		found, err := d.Xdotool(t.Context(), "search", "--onlyvisible", "--name", "galculator")
		window, _, _ = strings.Cut(found, "\n")
		return err == nil && window != ""
	})
	d.do(t, "mousemove", "639", "479")
	d.steady(t)
	y := &typist{root: root}
	for n := range cycles {
		d.do(t, "windowfocus", "--sync", window)
		before := d.steady(t)
		d.do(t, "type", strconv.Itoa(n%9+1))
		d.changed(t, before)
		before = d.steady(t)
		y.restored(t, filepath.Join(home, strconv.Itoa(n)))
		if !bytes.Equal(d.steady(t).Pix, before.Pix) {
			t.Fatalf("cycle %d: it shows something else than before", n)
		}
	}
}
