package menu

import (
	"fmt"

	"github.com/virtualizing-os/vos/internal/procfs"
	"github.com/virtualizing-os/vos/internal/tracee"
	"github.com/virtualizing-os/vos/internal/x86"
)

// title is the item's label, and the title of what it shows.
const title = "vOS"

// An Item is an entry of the submenu.
type Item struct {
	Label   string
	Command string // by the rules of a shell's quoting, as g_shell_parse_argv has them
}

// Values of GTK's enumerations: gtkdialog.h, gtkmessagedialog.h.
const (
	dialogDestroyWithParent = 2
	messageInfo             = 0
	buttonsClose            = 2
)

// A generator makes the code. It is position-independent: functions of the
// program are called by way of a table of their addresses.
//
// All functions that the program calls follow the System V calling convention;
// the stack is aligned to 16 at each call.
type generator struct {
	*x86.Assembler
	functions map[string]x86.Label // words with their addresses
	state     uint64               // address of the state page
	strings   []text

	visit, find, add, show, mapping, activate, gone x86.Label
}

type text struct {
	label x86.Label
	text  string
}

// makeImage returns the content of the menu's memfd: header, code, table and
// strings, then the state page.
func makeImage(functions map[string]uint64, items []Item) ([]byte, error) {
	// The size of the code depends on nothing, so the first try tells it.
	size := uint64(maxSize)
	for {
		image, used, err := tryImage(functions, items, size)
		if err != nil {
			return nil, err
		}
		fits := (used+procfs.PageSize-1)&^(procfs.PageSize-1) + procfs.PageSize
		switch {
		case fits > maxSize:
			return nil, fmt.Errorf("make a menu: its commands take %d bytes, more than %d", used, maxSize-procfs.PageSize)
		case fits == size:
			return image, nil
		}
		size = fits
	}
}

func tryImage(functions map[string]uint64, items []Item, size uint64) (image []byte, used uint64, err error) {
	h := header{size: size, state: size - procfs.PageSize}
	g := generator{Assembler: x86.NewAssembler(0), functions: make(map[string]x86.Label), state: h.state}
	for _, name := range sortedNames(functions) {
		g.functions[name] = g.NewLabel()
	}
	for _, l := range []*x86.Label{&g.visit, &g.find, &g.add, &g.show, &g.mapping, &g.activate, &g.gone} {
		*l = g.NewLabel()
	}
	g.Raw(make([]byte, headerSize)...)
	g.begin()
	h.idle, h.tail = g.idle()
	g.visitWidget()
	g.findItem()
	g.addItem(items)
	g.showText()
	g.mappingWidget()
	g.activateItem()
	h.gone = g.closureGone()
	g.Align(8)
	for _, name := range sortedNames(functions) {
		g.Bind(g.functions[name])
		g.Quad(functions[name])
	}
	for _, s := range g.strings {
		g.Bind(s.label)
		g.Raw(append([]byte(s.text), 0)...)
	}
	code, err := g.Code()
	if err != nil {
		return nil, 0, fmt.Errorf("make a menu: %w", err)
	}
	image = make([]byte, max(size, uint64(len(code))))
	copy(image, code)
	copy(image, h.encode())
	return image, uint64(len(code)), nil
}

// begin starts a function that an indirect call may lead to.
func (g *generator) begin() {
	g.Align(16)
	g.Endbr64()
}

func (g *generator) call(function string) { g.CallMem(x86.Rel(g.functions[function])) }

// word is a word of the state page.
func (g *generator) word(at uint64) x86.Address { return x86.Rel(g.LabelAt(g.state + at)) }

// string sets a register to the address of a text.
func (g *generator) string(r x86.Reg, s string) {
	l := g.NewLabel()
	g.strings = append(g.strings, text{l, s})
	g.Lea(r, x86.Rel(l))
}

func (g *generator) zero(r x86.Reg) { g.Xor(r, r) }

// ifTrue jumps where a gboolean, 4 bytes, was returned that is not zero.
func (g *generator) ifTrue(l x86.Label) {
	g.Test32(x86.RAX, x86.RAX)
	g.Jcc(x86.NotEqual, l)
}

// idle is what the main loop calls: gboolean (*GSourceFunc)(gpointer). The
// pointer is the request's number.
func (g *generator) idle() (entry uint64, tail tracee.Range) {
	entry = g.Address() - 4 // of endbr64
	nothing := g.NewLabel()
	g.Push(x86.RBX)
	g.Mov(x86.RBX, x86.RDI)
	g.LockInc(g.word(stateInside))
	g.zero(x86.RAX)
	g.Xchg(g.word(stateRequest), x86.RAX)
	g.Test(x86.RAX, x86.RAX)
	g.Jcc(x86.Equal, nothing)
	g.Store(g.word(stateOperation), x86.RAX)
	g.unhook()
	g.walk()
	g.hook()
	g.Bind(nothing)
	g.Store(g.word(stateRan), x86.RBX)
	g.Load(x86.RAX, g.word(stateInside))
	g.Dec(x86.RAX)
	g.Store(g.word(stateInside), x86.RAX)
	tail.Start = g.Address()
	g.zero(x86.RAX) // G_SOURCE_REMOVE
	g.Pop(x86.RBX)
	g.Ret()
	tail.End = g.Address()
	return entry, tail
}

// walk visits all windows. It keeps them while it does, as to destroy an item
// destroys windows as well: those of menus. RBX is kept.
func (g *generator) walk() {
	g.Push(x86.R12)
	g.Push(x86.R12) // for the alignment
	g.zero(x86.RAX)
	for _, at := range []uint64{stateBars, stateItems, stateChanged} {
		g.Store(g.word(at), x86.RAX)
	}
	g.call("gtk_menu_bar_get_type")
	g.Store(g.word(stateBarType), x86.RAX)
	g.call("gtk_container_get_type")
	g.Store(g.word(stateContainerType), x86.RAX)
	g.call("gtk_window_list_toplevels")
	g.Mov(x86.R12, x86.RAX)
	for _, each := range []func(){
		func() { g.Load(x86.RSI, x86.Rel(g.functions["g_object_ref"])) },
		func() { g.Lea(x86.RSI, x86.Rel(g.visit)) },
		func() { g.Load(x86.RSI, x86.Rel(g.functions["g_object_unref"])) },
	} {
		g.Mov(x86.RDI, x86.R12)
		each()
		g.zero(x86.RDX)
		g.call("g_list_foreach")
	}
	g.Mov(x86.RDI, x86.R12)
	g.call("g_list_free")
	g.Pop(x86.R12)
	g.Pop(x86.R12)
}

// hook has mappingWidget called for each widget that is shown from now on, if
// items are added to menu bars, and it is not called yet.
func (g *generator) hook() {
	done, hooked := g.NewLabel(), g.NewLabel()
	g.unless(requestAdd, done)
	g.Load(x86.RAX, g.word(stateBars))
	g.Test(x86.RAX, x86.RAX)
	g.Jcc(x86.Equal, done)
	g.Load(x86.RAX, g.word(stateHook))
	g.Test(x86.RAX, x86.RAX)
	g.Jcc(x86.NotEqual, done)
	g.call("gtk_widget_get_type")
	g.string(x86.RDI, "map")
	g.Mov(x86.RSI, x86.RAX)
	g.call("g_signal_lookup")
	g.Store(g.word(stateSignal), x86.RAX)
	g.Test32(x86.RAX, x86.RAX)
	g.Jcc(x86.Equal, done)
	g.LockInc(g.word(stateConnected))
	g.Mov(x86.RDI, x86.RAX)
	g.zero(x86.RSI)
	g.Lea(x86.RDX, x86.Rel(g.mapping))
	g.zero(x86.RCX)
	g.Lea(x86.R8, x86.Rel(g.gone))
	g.call("g_signal_add_emission_hook")
	g.Store(g.word(stateHook), x86.RAX)
	g.Test(x86.RAX, x86.RAX)
	g.Jcc(x86.NotEqual, hooked)
	g.LockInc(g.word(stateGone))
	g.Bind(hooked)
	g.Bind(done)
}

// unhook takes that back, if items are taken out.
func (g *generator) unhook() {
	done := g.NewLabel()
	g.unless(requestRemove, done)
	g.Load(x86.RSI, g.word(stateHook))
	g.Test(x86.RSI, x86.RSI)
	g.Jcc(x86.Equal, done)
	g.Load(x86.RDI, g.word(stateSignal))
	g.call("g_signal_remove_emission_hook")
	g.zero(x86.RAX)
	g.Store(g.word(stateHook), x86.RAX)
	g.Bind(done)
}

// unless jumps if another operation is under way.
func (g *generator) unless(operation int32, l x86.Label) {
	g.Load(x86.RAX, g.word(stateOperation))
	g.CmpImm(x86.RAX, operation)
	g.Jcc(x86.NotEqual, l)
}

// mappingWidget is gboolean (*GSignalEmissionHook)(GSignalInvocationHint*, guint,
// const GValue*, gpointer). The first value's pointer, at 8, is the widget. If it is
// a menu bar, it gets the item. While it runs, GObject holds the hook.
func (g *generator) mappingWidget() {
	out, bar := g.NewLabel(), g.NewLabel()
	g.Bind(g.mapping)
	g.begin()
	g.Push(x86.RBX)
	g.Load(x86.RBX, x86.At(x86.RDX, 8))
	g.Mov(x86.RDI, x86.RBX)
	g.Load(x86.RSI, g.word(stateBarType))
	g.call("g_type_check_instance_is_a")
	g.ifTrue(bar)
	g.Jmp(out)
	g.Bind(bar)
	g.zero(x86.RAX)
	g.Store(g.word(stateItem), x86.RAX)
	g.forAll(g.find)
	g.Load(x86.RAX, g.word(stateItem))
	g.Test(x86.RAX, x86.RAX)
	g.Jcc(x86.NotEqual, out)
	g.Mov(x86.RDI, x86.RBX)
	g.Call(g.add)
	g.Bind(out)
	g.MovImm32(x86.RAX, 1) // it stays
	g.Pop(x86.RBX)
	g.Ret()
}

// visitWidget is void (*GtkCallback)(GtkWidget*, gpointer), as is GFunc.
func (g *generator) visitWidget() {
	bar, out, add, remove, has, show := g.NewLabel(), g.NewLabel(), g.NewLabel(), g.NewLabel(), g.NewLabel(), g.NewLabel()
	g.Bind(g.visit)
	g.begin()
	g.Push(x86.RBX)
	g.Mov(x86.RBX, x86.RDI)
	g.Load(x86.RSI, g.word(stateBarType))
	g.call("g_type_check_instance_is_a")
	g.ifTrue(bar)
	inside := g.NewLabel()
	g.Mov(x86.RDI, x86.RBX)
	g.Load(x86.RSI, g.word(stateContainerType))
	g.call("g_type_check_instance_is_a")
	g.ifTrue(inside)
	g.Jmp(out)
	g.Bind(inside)
	g.forAll(g.visit)
	g.Jmp(out)

	g.Bind(bar)
	g.IncMem(g.word(stateBars))
	g.zero(x86.RAX)
	g.Store(g.word(stateItem), x86.RAX)
	g.forAll(g.find)
	g.Load(x86.RAX, g.word(stateOperation))
	for operation, l := range []x86.Label{requestNone: out, requestAdd: add, requestRemove: remove, requestShow: show} {
		g.CmpImm(x86.RAX, int32(operation))
		g.Jcc(x86.Equal, l)
	}
	g.Jmp(out)

	g.Bind(add)
	g.Load(x86.RAX, g.word(stateItem))
	g.Test(x86.RAX, x86.RAX)
	g.Jcc(x86.NotEqual, has)
	g.Mov(x86.RDI, x86.RBX)
	g.Call(g.add)
	g.IncMem(g.word(stateChanged))
	g.Bind(has)
	g.IncMem(g.word(stateItems))
	g.Jmp(out)

	g.Bind(remove)
	g.Load(x86.RDI, g.word(stateItem))
	g.Test(x86.RDI, x86.RDI)
	g.Jcc(x86.Equal, out)
	g.call("gtk_widget_destroy")
	g.IncMem(g.word(stateChanged))
	g.Jmp(out)

	g.Bind(show)
	g.Load(x86.RAX, g.word(stateItem))
	g.Test(x86.RAX, x86.RAX)
	g.Jcc(x86.Equal, out)
	g.IncMem(g.word(stateItems))
	g.Load(x86.RAX, g.word(stateChanged))
	g.Test(x86.RAX, x86.RAX)
	g.Jcc(x86.NotEqual, out)
	g.IncMem(g.word(stateChanged))
	g.Mov(x86.RDI, x86.RBX)
	g.Call(g.show)

	g.Bind(out)
	g.Pop(x86.RBX)
	g.Ret()
}

// forAll calls a callback for all children of the container in RBX.
func (g *generator) forAll(callback x86.Label) {
	g.Mov(x86.RDI, x86.RBX)
	g.Lea(x86.RSI, x86.Rel(callback))
	g.zero(x86.RDX)
	g.call("gtk_container_forall")
}

// findItem, a GtkCallback, notes a child that is marked as vOS's.
func (g *generator) findItem() {
	out := g.NewLabel()
	g.Bind(g.find)
	g.begin()
	g.Push(x86.RBX)
	g.Mov(x86.RBX, x86.RDI)
	g.string(x86.RSI, mark)
	g.call("g_object_get_data")
	g.Test(x86.RAX, x86.RAX)
	g.Jcc(x86.Equal, out)
	g.Store(g.word(stateItem), x86.RBX)
	g.Bind(out)
	g.Pop(x86.RBX)
	g.Ret()
}

// mark is the key by which the item is known.
const mark = "vos-menu"

// addItem adds the item to the menu bar in RDI.
func (g *generator) addItem(items []Item) {
	const bar, menu, item = x86.RBX, x86.R12, x86.R13
	g.Bind(g.add)
	g.Push(bar)
	g.Push(menu)
	g.Push(item)
	g.Mov(bar, x86.RDI)
	g.call("gtk_menu_new")
	g.Mov(menu, x86.RAX)
	for _, entry := range items {
		g.string(x86.RDI, entry.Label)
		g.call("gtk_menu_item_new_with_label")
		g.Mov(item, x86.RAX)
		g.LockInc(g.word(stateConnected))
		g.Mov(x86.RDI, item)
		g.string(x86.RSI, "activate")
		g.Lea(x86.RDX, x86.Rel(g.activate))
		g.string(x86.RCX, entry.Command)
		g.Lea(x86.R8, x86.Rel(g.gone))
		g.zero(x86.R9)
		g.call("g_signal_connect_data")
		g.Mov(x86.RDI, menu)
		g.Mov(x86.RSI, item)
		g.call("gtk_menu_shell_append")
	}
	g.string(x86.RDI, title)
	g.call("gtk_menu_item_new_with_label")
	g.Mov(item, x86.RAX)
	g.Mov(x86.RDI, item)
	g.Mov(x86.RSI, menu)
	g.call("gtk_menu_item_set_submenu")
	g.Mov(x86.RDI, item)
	g.string(x86.RSI, mark)
	g.MovImm32(x86.RDX, 1)
	g.call("g_object_set_data")
	g.Mov(x86.RDI, item)
	g.call("gtk_widget_show_all") // the submenu's items included
	g.Mov(x86.RDI, bar)
	g.Mov(x86.RSI, item)
	g.call("gtk_menu_shell_append")
	g.Pop(item)
	g.Pop(menu)
	g.Pop(bar)
	g.Ret()
}

// showText shows the text of the state page in a dialog that keeps nobody from
// going on, before the window of the menu bar in RDI. Nothing of it leads here:
// what closes it is GTK's.
func (g *generator) showText() {
	g.Bind(g.show)
	g.Push(x86.RBX)
	g.call("gtk_widget_get_toplevel")
	g.Mov(x86.RDI, x86.RAX)
	g.MovImm32(x86.RSI, dialogDestroyWithParent)
	g.MovImm32(x86.RDX, messageInfo)
	g.MovImm32(x86.RCX, buttonsClose)
	g.string(x86.R8, "%s")
	g.Lea(x86.R9, g.word(stateText))
	g.zero(x86.RAX) // no vector arguments
	g.call("gtk_message_dialog_new")
	g.Mov(x86.RBX, x86.RAX)
	g.Mov(x86.RDI, x86.RBX)
	g.string(x86.RSI, title)
	g.call("gtk_window_set_title")
	g.Mov(x86.RDI, x86.RBX)
	g.string(x86.RSI, "response")
	g.Load(x86.RDX, x86.Rel(g.functions["gtk_widget_destroy"]))
	g.zero(x86.RCX)
	g.zero(x86.R8)
	g.zero(x86.R9)
	g.call("g_signal_connect_data")
	g.Mov(x86.RDI, x86.RBX)
	g.call("gtk_widget_show_all")
	g.Pop(x86.RBX)
	g.Ret()
}

// activateItem is what "activate" of an entry calls: void (*)(GtkMenuItem*,
// gpointer). The pointer is the command. The process is not waited for here.
func (g *generator) activateItem() {
	g.Bind(g.activate)
	g.begin()
	g.Mov(x86.RDI, x86.RSI)
	g.zero(x86.RSI)
	g.JmpMem(x86.Rel(g.functions["g_spawn_command_line_async"]))
}

// closureGone is void (*GClosureNotify)(gpointer, GClosure*). The range is of its
// instructions behind the first.
func (g *generator) closureGone() (behind tracee.Range) {
	g.Bind(g.gone)
	g.begin()
	behind.Start = g.Address()
	g.LockInc(g.word(stateGone))
	g.Ret()
	behind.End = g.Address()
	return behind
}
