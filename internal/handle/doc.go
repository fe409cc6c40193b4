// Package handle tells what the descriptors of a running program lead to: files,
// pipes, sockets, epoll instances and what is registered in them, timers and the
// rest, and who else has the same open file.
//
// Redirect binds a descriptor to something else (redirect.go and the files that
// begin with its name; docs/ARCHITECTURE.md tells how). All else only looks, through
// /proc, kcmp(2) and sock_diag(7): the program is not stopped, and no descriptor of
// it is taken over, as a second holder of a socket or pipe would put off the end
// that its peer waits for.
//
// The program goes on meanwhile, so a descriptor may be closed, or be another one,
// between two questions about it. What is told of one is therefore of one open
// file: name and inode are asked of one O_PATH descriptor, fdinfo is written by the
// kernel in one go, and both must be of the same inode and mount (see Read). A
// descriptor that is closed before that is not told of. Of others (peers, sharers)
// is told what was so at one time during the look.
//
// Words: a description is an open file as struct file in the kernel, with offset
// and status flags; a descriptor is a number in a process that leads to one.
// dup(2), fork(2) and SCM_RIGHTS make several descriptors of one description.
//
// Names are hostile: of files, memfds and abstract sockets, which may have
// newlines and pretend to be something else. The kind is therefore taken from the
// file's type and device before its name.
package handle
