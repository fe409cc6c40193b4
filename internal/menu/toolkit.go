package menu

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/module"
	"github.com/virtualizing-os/vos/internal/x86"
)

// Refusals of this package.
const (
	codeToolkit     api.Code = "toolkit_unserved"
	codeIncomplete  api.Code = "toolkit_incomplete"
	codeNoMenuBar   api.Code = "no_menu_bar"
	codeLoopBusy    api.Code = "main_loop_busy"
	codeMenuUnknown api.Code = "menu_unknown"
	codeMenuStaging api.Code = "menu_staging_failed"
	codeNoMenu      api.Code = "no_menu"
	codeUnstartable api.Code = "vos_not_startable"
)

const noRemedy = "use vos ctl, or the other commands, from outside of the program"

// Libraries of GTK 3, by their sonames, and what is called of them.
const (
	libGTK     = "libgtk-3.so.0"
	libGDK     = "libgdk-3.so.0"
	libGObject = "libgobject-2.0.so.0"
	libGLib    = "libglib-2.0.so.0"
)

var wanted = map[string][]string{
	libGTK: {
		"gtk_widget_get_type", "gtk_menu_bar_get_type", "gtk_container_get_type", "gtk_window_list_toplevels", "gtk_container_forall",
		"gtk_menu_new", "gtk_menu_item_new_with_label", "gtk_menu_item_set_submenu", "gtk_menu_shell_append",
		"gtk_widget_show_all", "gtk_widget_destroy", "gtk_widget_get_toplevel", "gtk_message_dialog_new", "gtk_window_set_title",
	},
	libGDK: {"gdk_threads_add_idle_full"},
	libGObject: {
		"g_object_ref", "g_object_unref", "g_object_get_data", "g_object_set_data", "g_type_check_instance_is_a",
		"g_signal_connect_data", "g_signal_lookup", "g_signal_add_emission_hook", "g_signal_remove_emission_hook",
	},
	libGLib: {"g_list_foreach", "g_list_free", "g_spawn_command_line_async", "g_main_context_wakeup"},
}

// others are the toolkits that are not served, by a library of theirs.
var others = []struct{ soname, name string }{
	{"libgtk-4.so.1", "GTK 4"},
	{"libgtk-x11-2.0.so.0", "GTK 2"},
	{"libQt6Widgets.so.6", "Qt 6"},
	{"libQt5Widgets.so.5", "Qt 5"},
	{"libQt6Gui.so.6", "Qt 6"},
	{"libQt5Gui.so.5", "Qt 5"},
}

// Served returns a refusal where the program's toolkit can't be served.
func Served(p *module.Process) error {
	_, err := findFunctions(p)
	return err
}

// findFunctions returns the addresses of all functions that are wanted, by name.
// Refusals say what can't be served.
func findFunctions(p *module.Process) (map[string]uint64, error) {
	found := make(map[string]uint64)
	subject := fmt.Sprintf("process %d", p.PID())
	for _, soname := range slices.Sorted(maps.Keys(wanted)) {
		library, err := findLibrary(p, soname)
		if err != nil {
			return nil, err
		}
		if library == nil {
			return nil, unserved(p)
		}
		for _, name := range wanted[soname] {
			s, ok, err := library.Object.Lookup(name, "")
			switch {
			case err != nil:
				return nil, fmt.Errorf("look up %s of %s: %w", name, soname, err)
			case !ok || s.Type != elf.STT_FUNC:
				return nil, api.Refusal{Code: codeIncomplete, Subject: subject, Detail: fmt.Sprintf("its %s has no function %s", soname, name), Remedy: noRemedy}
			}
			found[name] = library.Bias + s.Value
		}
	}
	return found, nil
}

// findLibrary returns the one module of a soname that the program loaded, nil
// where there is none.
func findLibrary(p *module.Process, soname string) (found *module.Module, err error) {
	for _, m := range p.Modules {
		if m.Name != soname || m.Staged() || m.Object == nil {
			continue
		}
		if found != nil {
			return nil, api.Refusal{Code: codeIncomplete, Subject: fmt.Sprintf("process %d", p.PID()),
				Detail: "it has " + soname + " twice, and which one its windows are of is not known", Remedy: noRemedy}
		}
		found = m
	}
	return found, nil
}

func unserved(p *module.Process) error {
	detail := "it has no GTK 3, the one toolkit that can be served"
	for _, other := range others {
		if slices.ContainsFunc(p.Modules, func(m *module.Module) bool { return m.Name == other.soname }) {
			detail = "its toolkit is " + other.name + ": GTK 3 is the one that can be served"
			break
		}
	}
	return api.Refusal{Code: codeToolkit, Subject: fmt.Sprintf("process %d", p.PID()), Detail: detail, Remedy: noRemedy}
}

func noMenuBar(pid int) error {
	return api.Refusal{Code: codeNoMenuBar, Subject: fmt.Sprintf("process %d", pid),
		Detail: "none of its windows has a GtkMenuBar; one with a header bar only can't be served", Remedy: noRemedy}
}

// neverHadMenuBar reports whether the type GtkMenuBar is not registered, so that
// there can be none: the function that returns the type keeps it in a word, which
// its first instructions load. Where they look different, nothing is known.
func neverHadMenuBar(p *module.Process, getType uint64) (bool, error) {
	memory, err := p.OpenMemory()
	if err != nil {
		return false, err
	}
	defer memory.Close()
	code := make([]byte, 32)
	if _, err := memory.ReadAt(code, int64(getType)); err != nil {
		return false, err
	}
	const mov = 0x8b
	for at := 0; at < len(code)-x86.MaxLen; {
		inst, err := x86.Decode(code[at:])
		if err != nil || inst.IsBranch() || inst.IsTerminator() {
			return false, nil
		}
		word, ok := inst.Target(getType + uint64(at))
		if ok && inst.IsRIPRelative() && inst.Opcode == mov {
			var registered [8]byte
			if _, err := memory.ReadAt(registered[:], int64(word)); err != nil {
				return false, nil
			}
			return binary.LittleEndian.Uint64(registered[:]) == 0, nil
		}
		at += inst.Len
	}
	return false, nil
}

func sortedNames(functions map[string]uint64) []string {
	return slices.Sorted(maps.Keys(functions))
}
