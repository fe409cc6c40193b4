package live

import (
	"bytes"
	"flag"
	"image"
	"image/draw"
	"image/png"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/testbed"
)

var menuPicture = flag.String("menu-picture", "", "write a picture of the menu to this file")

// A desktop is a program with a window, and the display that shows it.
type desktop struct {
	*testbed.Display
	*testbed.Window
}

func showOn(t *testing.T, account, name string, args ...string) *desktop {
	t.Helper()
	testbed.NeedTool(t, "xdotool")
	display := testbed.RunDisplay(t, 640, 480)
	d := &desktop{display, display.RunWindow(t, account, name, args...)}
	d.do(t, "mousemove", "639", "479")
	d.steady(t)
	return d
}

func (d *desktop) target() string { return strconv.Itoa(d.Pid()) }

func (d *desktop) do(t *testing.T, args ...string) string {
	t.Helper()
	out, err := d.Xdotool(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (d *desktop) shot(t *testing.T) *image.RGBA {
	t.Helper()
	shot, err := d.Screenshot()
	if err != nil {
		t.Fatal(err)
	}
	return shot
}

// steady returns what is shown when that no longer changes.
func (d *desktop) steady(t *testing.T) *image.RGBA {
	t.Helper()
	last := d.shot(t)
	end := time.Now().Add(20 * time.Second)
	for same := 0; same < 3; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("what is shown does not come to rest")
		}
		now := d.shot(t)
		if same++; !bytes.Equal(now.Pix, last.Pix) {
			same, last = 0, now
		}
	}
	return last
}

// changed waits until the display shows something else than before, and returns
// where it differs.
func (d *desktop) changed(t *testing.T, before *image.RGBA) (where image.Rectangle) {
	t.Helper()
	await(t, "a change of what is shown", func() bool { return !bytes.Equal(d.shot(t).Pix, before.Pix) })
	now := d.steady(t)
	for y := range now.Rect.Dy() {
		for x := range now.Rect.Dx() {
			if now.RGBAAt(x, y) != before.RGBAAt(x, y) {
				where = where.Union(image.Rect(x, y, x+1, y+1))
			}
		}
	}
	return where
}

func (d *desktop) click(t *testing.T, at image.Point) {
	t.Helper()
	d.do(t, "mousemove", strconv.Itoa(at.X), strconv.Itoa(at.Y), "click", "1")
}

// open opens the menu of an item, and returns where that is.
func (d *desktop) open(t *testing.T, item image.Rectangle) image.Rectangle {
	t.Helper()
	at := centre(item)
	d.do(t, "mousemove", strconv.Itoa(at.X), strconv.Itoa(at.Y))
	closed := d.steady(t) // with the pointer there
	d.click(t, at)
	menu := d.changed(t, closed)
	menu.Min.Y = max(menu.Min.Y, item.Max.Y)
	return menu
}

func centre(r image.Rectangle) image.Point { return r.Min.Add(r.Max).Div(2) }

// entry is where one of the menu's entries is, in a menu that is open.
func entry(menu image.Rectangle, n, of int) image.Point {
	return image.Pt(centre(menu).X, menu.Min.Y+menu.Dy()*(2*n+1)/(2*of))
}

// dialogs are the windows that are called as vOS's are.
func (d *desktop) dialogs(t *testing.T) []string {
	out, err := d.Xdotool(t.Context(), "search", "--onlyvisible", "--name", "^vOS$")
	if err != nil {
		return nil // it finds none
	}
	return strings.Fields(out)
}

func (d *desktop) unharmed(t *testing.T) {
	t.Helper()
	checkFree(t, d.Pid())
}

func menus(t *testing.T, r result) []api.Menu { t.Helper(); return lines[api.Menu](t, r) }

// held is what a program holds, its allocators' memory left out: that grows.
func held(t *testing.T, pid int) (mappings, descriptors []string) {
	t.Helper()
	i := inventory(t, pid)
	for _, m := range i.Mappings {
		if !strings.HasSuffix(m, " ") { // anonymous: an allocator's
			mappings = append(mappings, m)
		}
	}
	return mappings, i.Descriptors
}

// TestMenu puts the menu into real programs, uses it with the mouse, while no vos
// runs but those that it starts itself, and takes it out again: the program shows,
// maps and has open what it did before.
func TestMenu(t *testing.T) {
	for _, program := range []struct{ name, account string }{{"galculator", ""}, {"l3afpad", "nobody"}, {"mousepad", ""}} {
		if program.name == "mousepad" && !soak {
			continue
		}
		t.Run(program.name, func(t *testing.T) {
			// Where the program's user may run it.
			vosPath := filepath.Join(publicFolder(t), "vos")
			copyFile(t, binary, vosPath)
			account := program.account
			if scope, err := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope"); err == nil && string(bytes.TrimSpace(scope)) != "0" {
				account = "" // who started vos from a program could not let it look into that
			}
			d := showOn(t, account, program.name)
			before := d.steady(t)
			mappings, descriptors := held(t, d.Pid())
			run := func(code int, args ...string) result { t.Helper(); return vosAt(t, vosPath, args...).expect(t, code) }

			if plan := menus(t, run(10, "attach", "--menu", d.target(), "--dry-run", "--json")); len(plan) != 1 || len(plan[0].Steps) == 0 {
				t.Errorf("the plan is %+v", plan)
			}
			if got := menus(t, run(0, "attach", "--menu", d.target(), "--json")); len(got) != 1 || got[0].Outcome != api.Added || got[0].MenuBars != 1 || got[0].Changed != 1 {
				t.Fatalf("added: %+v", got)
			}
			item := d.changed(t, before)
			if item.Dy() > 60 || item.Dx() > 100 {
				t.Errorf("more than an item has changed: %v", item)
			}
			if got := menus(t, run(0, "attach", "--menu", d.target(), "--json")); len(got) != 1 || got[0].Outcome != api.Clean {
				t.Errorf("added once more: %+v", got)
			}

			// Status: an answer in a dialog of the program.
			menu := d.open(t, item)
			opened := d.steady(t)
			d.click(t, entry(menu, 0, 4))
			await(t, "the dialog", func() bool { return len(d.dialogs(t)) == 1 })
			if answered := d.steady(t); *menuPicture != "" && program.name == "galculator" {
				picture(t, 510, 330, opened, answered)
			}
			d.do(t, "windowclose", d.dialogs(t)[0])
			await(t, "the end of the dialog", func() bool { return len(d.dialogs(t)) == 0 })
			d.do(t, "mousemove", "639", "479")

			// Refresh now: heals what is corrupted.
			corruptPages(t, d.Pid(), "libgobject-2.0.so.0")
			run(10, "verify", d.target())
			d.click(t, entry(d.open(t, item), 2, 4))
			await(t, "the dialog", func() bool { return len(d.dialogs(t)) == 1 })
			run(0, "verify", d.target())
			d.unharmed(t)
			d.do(t, "windowclose", d.dialogs(t)[0])
			await(t, "the end of the dialog", func() bool { return len(d.dialogs(t)) == 0 })

			// Checkpoint: its connection to the X server is in the way, and the answer says so.
			d.do(t, "mousemove", "639", "479")
			d.click(t, entry(d.open(t, item), 3, 4))
			await(t, "the dialog", func() bool { return len(d.dialogs(t)) == 1 })
			d.unharmed(t)
			d.do(t, "windowfocus", d.dialogs(t)[0]) // windowclose makes GTK complain here
			d.do(t, "key", "Escape")
			await(t, "the end of the dialog", func() bool { return len(d.dialogs(t)) == 0 })
			if answer := run(7, "ctl", d.target(), "checkpoint"); !strings.Contains(answer.Stdout, "can't be written down") || !strings.Contains(answer.Stdout, "socket") {
				t.Errorf("ctl checkpoint: %s", answer.Stdout)
			}

			// Out again.
			d.do(t, "mousemove", "639", "479")
			got := menus(t, run(0, "attach", "--menu", "--remove", d.target(), "--json"))
			if len(got) != 1 || got[0].Outcome != api.Removed || got[0].Changed != 1 || len(got[0].Residual) > 0 {
				t.Errorf("removed: %+v", got)
			}
			await(t, "the picture of before", func() bool { return bytes.Equal(d.shot(t).Pix, before.Pix) })
			nowMapped, nowOpen := held(t, d.Pid())
			if extra := beyond(nowMapped, mappings); slices.ContainsFunc(extra, func(m string) bool { return strings.Contains(m, "vos") }) {
				t.Errorf("mapped besides: %q", extra)
			}
			if !slices.Equal(nowOpen, descriptors) {
				t.Errorf("open now %q, before %q", nowOpen, descriptors)
			}
			if got := menus(t, run(0, "attach", "--menu", "--remove", d.target(), "--json")); len(got) != 1 || got[0].Outcome != api.Clean {
				t.Errorf("removed once more: %+v", got)
			}
			d.unharmed(t)
			if printed := d.Printed(); strings.Contains(printed, "CRITICAL") || strings.Contains(printed, "Gtk-WARNING") {
				t.Errorf("the program complains: %s", printed)
			}
		})
	}
}

// beyond are the elements of now that were not there before.
func beyond(now, before []string) (extra []string) {
	for _, m := range now {
		if !slices.Contains(before, m) {
			extra = append(extra, m)
		}
	}
	return extra
}

// picture draws two pictures of the display side by side, as far as the program's
// window and its menu or dialog reach.
func picture(t *testing.T, width, height int, shots ...*image.RGBA) {
	t.Helper()
	const gap = 12
	both := image.NewRGBA(image.Rect(0, 0, len(shots)*(width+gap)-gap, height))
	for i, shot := range shots {
		at := image.Rect(i*(width+gap), 0, i*(width+gap)+width, height)
		draw.Draw(both, at, shot, image.Point{}, draw.Src)
	}
	file, err := os.Create(*menuPicture)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	encoder := png.Encoder{CompressionLevel: png.BestCompression}
	if err := encoder.Encode(file, both); err != nil {
		t.Fatal(err)
	}
}

// windows runs the program of testdata that has windows with menu bars.
func windows(t *testing.T, args ...string) (*subject, *testbed.Fixture) {
	t.Helper()
	display := testbed.RunDisplay(t, 320, 240)
	return start(t, testbed.FixtureOptions{Env: display.Env(t.TempDir())}, testProgram(t, "windows"), args...)
}

// items waits until the menu bars of windows have that many items.
func items(t *testing.T, f *testbed.Fixture, want int64) {
	t.Helper()
	await(t, strconv.FormatInt(want, 10)+" items", func() bool {
		report, err := f.Report(t.Context())
		return err == nil && report.Counts["items"] == want
	})
}

// TestMenuOfManyWindows adds the item to windows as they come and go.
func TestMenuOfManyWindows(t *testing.T) {
	s, f := windows(t, "bars=3", "plain=1")
	rounds := 10
	if soak {
		rounds = 1000
	}
	items(t, f, 3)
	empty := leftIn(t, s.pid)
	for range rounds {
		vos(t, "attach", "--menu", s.target()).expect(t, 0)
		items(t, f, 6)
		if err := syscall.Kill(s.pid, syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		items(t, f, 8) // with the item
		got := menus(t, vos(t, "attach", "--menu", s.target(), "--json").expect(t, 0))
		if len(got) != 1 || got[0].Outcome != api.Clean || got[0].MenuBars != 4 {
			t.Fatalf("a window was opened later: %+v", got)
		}
		if err := syscall.Kill(s.pid, syscall.SIGUSR2); err != nil { // with its item
			t.Fatal(err)
		}
		items(t, f, 6)
		got = menus(t, vos(t, "attach", "--menu", "--remove", s.target(), "--json").expect(t, 0))
		if len(got) != 1 || got[0].Changed != 3 || len(got[0].Residual) > 0 {
			t.Fatalf("removed: %+v", got)
		}
		items(t, f, 3)
		s.unharmed(t)
		if now := leftIn(t, s.pid); now.own != 0 || now.descriptors != empty.descriptors {
			t.Fatalf("left: %+v, before %+v", now, empty)
		}
	}
}

// TestMenuWhileWindowsComeAndGo adds the item and takes it out while windows are
// opened and closed all the time.
func TestMenuWhileWindowsComeAndGo(t *testing.T) {
	s, f := windows(t, "bars=3")
	items(t, f, 3)
	before := leftIn(t, s.pid)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			case <-time.After(3 * time.Millisecond):
			}
			// Of two signals of one kind that come together one is lost.
			if err := syscall.Kill(s.pid, []syscall.Signal{syscall.SIGUSR1, syscall.SIGUSR2}[n%2]); err != nil {
				t.Error(err)
				return
			}
		}
	}()
	rounds := 30
	if soak {
		rounds = 400
	}
	unfit := 0
	for range rounds {
		// For a moment there may be no window.
		if r := vos(t, "attach", "--menu", s.target()); r.Code == 7 && strings.Contains(r.Stderr, "no_menu_bar") {
			unfit++
		} else {
			r.expect(t, 0)
		}
		got := menus(t, vos(t, "attach", "--menu", "--remove", s.target(), "--json").expect(t, 0))
		if len(got) != 1 || len(got[0].Residual) > 0 {
			t.Fatalf("removed: %+v", got)
		}
		s.unharmed(t)
		if now := leftIn(t, s.pid); now.own != 0 || now.descriptors != before.descriptors {
			t.Fatalf("left: %+v, before %+v", now, before)
		}
	}
	close(stop)
	<-stopped
	if unfit > rounds/2 {
		t.Errorf("%d of %d times there was no window", unfit, rounds)
	}
}

// TestMenuOfVOSElsewhere adds the item by a copy of vos, and again by another one:
// its entries start that one then, and the memory of the first is gone.
func TestMenuOfVOSElsewhere(t *testing.T) {
	s, f := windows(t, "bars=2")
	items(t, f, 2)
	before := leftIn(t, s.pid)
	for _, folder := range []string{publicFolder(t), publicFolder(t)} {
		path := filepath.Join(folder, "vos")
		copyFile(t, binary, path)
		got := menus(t, vosAt(t, path, "attach", "--menu", s.target(), "--json").expect(t, 0))
		if len(got) != 1 || got[0].Outcome != api.Added || got[0].Changed != 2 {
			t.Fatalf("added by %s: %+v", path, got)
		}
		items(t, f, 4)
		steps := menus(t, vosAt(t, path, "attach", "--menu", s.target(), "--dry-run", "--json").expect(t, 10))[0].Steps
		if all := strings.Join(steps, "\n"); !strings.Contains(all, path) || strings.Contains(all, "map ") {
			t.Errorf("the plan of the same vos: %s", all)
		}
		if now := leftIn(t, s.pid); now.own != 2 { // code, and the page to write
			t.Errorf("mapped: %+v", now)
		}
	}
	vos(t, "attach", "--menu", "--remove", s.target()).expect(t, 0) // by any vos
	items(t, f, 2)
	if now := leftIn(t, s.pid); now.own != 0 || now.descriptors != before.descriptors {
		t.Errorf("left: %+v, before %+v", now, before)
	}
	s.unharmed(t)
}

// TestDetachTakesTheMenu has calls counted in a program with the item: vos detach
// takes both out, or the one that is there.
func TestDetachTakesTheMenu(t *testing.T) {
	s, f := windows(t, "bars=2")
	items(t, f, 2)
	before := leftIn(t, s.pid)
	for _, counted := range []bool{true, false} {
		if counted {
			vos(t, "attach", s.target()).expect(t, 0)
		}
		vos(t, "attach", "--menu", s.target()).expect(t, 0)
		items(t, f, 4)
		plan := lines[api.Interception](t, vos(t, "detach", s.target(), "--dry-run", "--json").expect(t, 10))
		if len(plan) != 1 || !strings.Contains(strings.Join(plan[0].Steps, "\n"), "menu bar") {
			t.Errorf("the plan: %+v", plan)
		}
		got := lines[api.Interception](t, vos(t, "detach", s.target(), "--json").expect(t, 0))
		if len(got) != 1 || got[0].Outcome != api.Detached || len(got[0].Residual) > 0 {
			t.Errorf("detached: %+v", got)
		}
		items(t, f, 2)
		if now := leftIn(t, s.pid); now.own != 0 || now.descriptors != before.descriptors {
			t.Errorf("left: %+v, before %+v", now, before)
		}
		s.unharmed(t)
	}
}

// TestMenuKilledAtAnyInstant kills vos at random instants while it adds the item
// and takes it out. The program works on, and the next vos finds its way.
func TestMenuKilledAtAnyInstant(t *testing.T) {
	s, f := windows(t, "bars=2")
	items(t, f, 2)
	empty := leftIn(t, s.pid)
	add, remove := []string{"attach", "--menu", s.target()}, []string{"attach", "--menu", "--remove", s.target()}
	adding, removing := whole(t, add...), whole(t, remove...)
	killed, all := 0, 60
	if soak {
		all = 300
	}
	for n := range all {
		args, limit := add, adding
		if n%2 == 1 {
			args, limit = remove, removing
		}
		if killAfter(t, instant(limit), args) {
			killed++
		}
		s.unharmed(t)
		if n%5 == 4 {
			vos(t, add...).expect(t, 0)
			items(t, f, 4)
			vos(t, remove...).expect(t, 0)
			items(t, f, 2)
			if now := leftIn(t, s.pid); now.own != 0 || now.descriptors != empty.descriptors {
				t.Fatalf("left after %d runs: %+v, before %+v", n+1, now, empty)
			}
		}
	}
	t.Logf("%d of %d runs were killed before their end", killed, all)
	if killed < all/2 {
		t.Errorf("only %d of %d runs were killed before their end", killed, all)
	}
}

// TestMenuRefused asks for what can't be served: nothing is left in the program.
func TestMenuRefused(t *testing.T) {
	refused := func(t *testing.T, s *subject, code api.Code) {
		t.Helper()
		before := leftIn(t, s.pid)
		got := menus(t, vos(t, "attach", "--menu", s.target(), "--json").expect(t, 7))
		if len(got) != 1 || got[0].Outcome != api.Refused || len(got[0].Refusals) != 1 || got[0].Refusals[0].Code != code {
			t.Errorf("got %+v, want %s", got, code)
		}
		if now := leftIn(t, s.pid); now.own != 0 || now.descriptors != before.descriptors {
			t.Errorf("left: %+v, before %+v", now, before)
		}
	}
	t.Run("no toolkit", func(t *testing.T) {
		s := fixture(t, "plain")
		refused(t, s, "toolkit_unserved")
		s.unharmed(t)
	})
	t.Run("no menu bar ever", func(t *testing.T) {
		s, _ := windows(t, "plain=1")
		refused(t, s, "no_menu_bar")
		s.unharmed(t)
	})
	t.Run("no menu bar now", func(t *testing.T) {
		s, f := windows(t, "bars=1")
		if err := syscall.Kill(s.pid, syscall.SIGUSR2); err != nil {
			t.Fatal(err)
		}
		items(t, f, 0)
		refused(t, s, "no_menu_bar")
		s.unharmed(t)
	})
	t.Run("not to be started", func(t *testing.T) {
		d := showOn(t, "nobody", "galculator")
		private := t.TempDir() // below a folder of root's alone
		if err := os.Chmod(private, 0o700); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(private, "vos")
		copyFile(t, binary, path)
		got := menus(t, vosAt(t, path, "attach", "--menu", d.target(), "--json").expect(t, 7))
		if len(got) != 1 || len(got[0].Refusals) != 1 || got[0].Refusals[0].Code != "vos_not_startable" {
			t.Errorf("got %+v", got)
		}
		d.unharmed(t)
	})
	t.Run("main loop busy", func(t *testing.T) {
		display := testbed.RunDisplay(t, 320, 240)
		f := testbed.Run(t, testbed.FixtureOptions{Env: display.Env(t.TempDir())}, testProgram(t, "windows"), "bars=1", "deaf")
		s := &subject{pid: f.Pid(), ask: f.Report}
		time.Sleep(100 * time.Millisecond)
		got := menus(t, vos(t, "attach", "--menu", s.target(), "--json").expect(t, 7))
		if len(got) != 1 || len(got[0].Refusals) != 1 || got[0].Refusals[0].Code != "main_loop_busy" {
			t.Errorf("got %+v", got)
		}
		if err := syscall.Kill(s.pid, syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		s.works(t)
		items(t, f, 1) // what was withdrawn does not come
		vos(t, "attach", "--menu", s.target()).expect(t, 0)
		items(t, f, 2)
		vos(t, "attach", "--menu", "--remove", s.target()).expect(t, 0)
		items(t, f, 1)
		if now := leftIn(t, s.pid); now.own != 0 {
			t.Errorf("left: %+v", now)
		}
		s.unharmed(t)
	})
}

// TestControl asks about a program in words.
func TestControl(t *testing.T) {
	s := fixture(t, "plain")
	for _, verb := range api.Verbs {
		want := 0
		if verb == api.VerbCheckpoint {
			want = 7 // its standard descriptors lead to the tests
		}
		r := vos(t, "ctl", s.target(), string(verb)).expect(t, want)
		if !strings.Contains(r.Stdout, "("+s.target()+")") {
			t.Errorf("%s: %q", verb, r.Stdout)
		}
	}
	corruptPages(t, s.pid, "libc.so.6")
	if got := lines[api.Control](t, vos(t, "ctl", s.target(), "verify", "--json").expect(t, 10)); got[0].Outcome != api.Corrupt || !strings.Contains(strings.Join(got[0].Lines, " "), "libc.so.6") {
		t.Errorf("verify: %+v", got)
	}
	if got := lines[api.Control](t, vos(t, "ctl", s.target(), "refresh", "--json").expect(t, 0)); got[0].Outcome != api.Refreshed {
		t.Errorf("refresh: %+v", got)
	}
	// Without a menu there is nobody to show it.
	if got := lines[api.Control](t, vos(t, "ctl", s.target(), "status", "--show", "--json").expect(t, 0)); got[0].Shown || !strings.Contains(got[0].Unshown, "no_menu") {
		t.Errorf("status: %+v", got)
	}
	vos(t, "ctl", "999999999", "status").expect(t, 6)
	// Who may not look can't say that all is well.
	asUser := vosAsUser(t)
	for _, verb := range api.Verbs {
		if r := asUser(t, "ctl", s.target(), string(verb)).expect(t, 5); r.Stdout != "" {
			t.Errorf("%s by another user: %q", verb, r.Stdout)
		}
	}
	s.unharmed(t)
}

// TestControlCheckpoint writes a program to the directory of its user's state.
func TestControlCheckpoint(t *testing.T) {
	k := startKept(t, "Go")
	k.rest(t)
	state := t.TempDir()
	t.Setenv("XDG_STATE_HOME", state)
	r := vos(t, "ctl", k.target(), "checkpoint").expect(t, 0)
	images, err := filepath.Glob(filepath.Join(state, "vos", "images", k.target()+"-*"))
	if err != nil || len(images) != 1 || !strings.Contains(r.Stdout, images[0]) {
		t.Fatalf("%v, %v: %s", images, err, r.Stdout)
	}
	vos(t, "image", images[0]).expect(t, 0)
	k.next(t)
	k.rest(t)
	t.Setenv("XDG_STATE_HOME", "")
	t.Setenv("HOME", "")
	if r := vos(t, "ctl", k.target(), "checkpoint").expect(t, 1); !strings.Contains(r.Stderr, "HOME") {
		t.Errorf("without a place: %s", r.Stderr)
	}
	k.next(t)
}

// vosAt runs another copy of the binary.
func vosAt(t *testing.T, path string, args ...string) result {
	t.Helper()
	ours := binary
	binary = path
	defer func() { binary = ours }()
	return vos(t, args...)
}
