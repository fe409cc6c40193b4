// Package menu puts an item "vOS" into the menu bars of a running GTK 3 program,
// and takes it out again.
//
// The item has a submenu, of which every entry starts a command: `vos ctl` with
// the program's pid. What stays in the program is one memfd of some pages, mapped
// read-only and executable, with one writable page behind it: generated code
// (code.go), and words by which vOS and that code talk (image.go). No library is
// loaded, and no vos process need run for the item to work.
//
// # Why this is safe
//
// GTK may be called in its main loop alone, and only there when the loop gives
// leave. So vOS does not call GTK: it asks the program's main loop to call the
// generated code, as a thread of the program itself would, by
// gdk_threads_add_idle_full and g_main_context_wakeup. Both may be called in any
// thread at any time by their documentation; what they need is the lock of the
// main context and the allocator's. The thread that is borrowed for them waits in
// poll, which neither is called with a lock of these, nor calls a handler.
//
// The code takes a request out of its word by one exchange, carries it out, and
// says that it has run. It walks the windows that GTK lists, and in a GtkMenuBar
// adds the item, destroys it, or shows a text. An emission hook on the signal map
// adds it to menu bars that are shown later. Each closure that GObject gets, and the
// hook, counts itself when it is made and when it is finalized.
//
// # Taking it out
//
// The mapping is removed when nothing in the program can lead there any more:
// every request that was ever queued has run, as idle sources of one priority run
// in the order in which they were queued; every closure is finalized; and, with
// all threads stopped, none is in the few instructions behind these counts. Where
// that is not so, the mapping stays, and is told.
//
// vOS may be killed between any two steps. A request that was written and queued
// is then carried out, one that was not queued is overwritten by the next vOS.
package menu
