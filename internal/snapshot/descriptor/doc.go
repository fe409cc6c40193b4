// Package descriptor is both sides of a snapshot for what descriptors lead to: files,
// pipes, sockets, timers and the rest. Each kind of resource is in a file of its own,
// which says how it is kept and how it is made again (see kind).
//
// # Keeping
//
// Look asks, while the program runs, what speaks against keeping its descriptors, and
// who else has a part in them. Found.Dump writes them down while it is held still. It
// works on copies of the descriptors, which are closed before it returns: a vos that is
// killed meanwhile leaves nothing, as the kernel closes what it had.
//
// What the program shares with others can't be made again by itself: an open file
// description that another program has too, the terminal, the pipes to whoever
// started it. These are refused, unless Options.Inherit names them: then the image only
// says that they were there, and whoever restores gives them.
//
// # Making again
//
// Plan tells what speaks against it, and changes nothing. Open opens all of an image's
// descriptions in vos's own process; Opened.Give lets a process that is held take
// copies of them, each under its number, and makes there what must be made in the
// process itself (the registrations of an epoll). A file that is no longer as it was
// is refused (see changed), unless Restoring.Force is set.
package descriptor
