package cli

import "github.com/virtualizing-os/vos/internal/api"

func pointer[T any](v T) *T { return &v }

// heldByNginx has a handle of each kind.
var heldByNginx = []api.Holdings{{
	IDs: api.IDs{PID: 812, Program: "nginx", PPID: 811, PGID: 811, SID: 811, NSPIDs: []int{812, 7},
		Threads: []api.Thread{{TID: 812, NSTIDs: []int{812, 7}}, {TID: 813, NSTIDs: []int{813, 8}}}},
	Unseen: 2,
	Handles: []api.Handle{
		handleOf(0, "device", api.Handle{Name: "/dev/null", Path: "/dev/null", Access: "read", Special: "1:3"}),
		handleOf(1, "pipe", api.Handle{Name: "pipe:[100]", Access: "write", Peers: []api.HandleRef{{PID: 700, Program: "logger", FD: 0}}}),
		handleOf(2, "file", api.Handle{Name: "/var/log/nginx/error.log (deleted)", Path: "/var/log/nginx/error.log", Deleted: true, Access: "write",
			Flags: []string{"O_APPEND"}, Offset: 4711, Size: pointer[int64](4711),
			Shared: []api.HandleRef{{PID: 811, Program: "nginx", FD: 2}, {PID: 812, Program: "nginx", FD: 5}},
			Locks:  []api.Lock{{Type: "FLOCK", Mode: "WRITE", PID: 811, End: -1}, {Type: "OFDLCK", Mode: "READ", PID: -1, Start: 5, End: 14}}}),
		handleOf(3, "socket", api.Handle{Name: "socket:[101]", Access: "read_write", Flags: []string{"O_CLOEXEC", "O_NONBLOCK"},
			Socket: &api.Socket{Family: "inet", Type: "stream", Protocol: "tcp", State: "listen", Local: "0.0.0.0:80", ReceiveQueue: 2, SendQueue: 511}}),
		handleOf(4, "socket", api.Handle{Name: "socket:[102]", Access: "read_write", OpenedBy: []string{"nginx", "libcrypto.so.3"}, Peers: []api.HandleRef{{PID: 900, Program: "curl", FD: 5}},
			Socket: &api.Socket{Family: "inet6", Type: "stream", Protocol: "tcp", State: "established", Local: "[::1]:80", Remote: "[::1]:4711", ReceiveQueue: 17}}),
		handleOf(6, "socket", api.Handle{Name: "socket:[103]", Access: "read_write",
			Socket: &api.Socket{Family: "unix", Type: "dgram", State: "unconnected", Local: "@nginx", Abstract: true}}),
		handleOf(7, "socket", api.Handle{Name: "socket:[104]", Access: "read_write", Socket: &api.Socket{Family: "netlink", Protocol: "route", State: "unconnected"}}),
		handleOf(8, "epoll", api.Handle{Name: "anon_inode:[eventpoll]", Access: "read_write", Epoll: []api.Registration{
			{FD: 3, Events: []string{"EPOLLIN", "EPOLLEXCLUSIVE"}, Data: "0x7f0000001000", Open: true, Kind: "socket"}, {FD: 9, Events: []string{}, Data: "0x9"}}}),
		handleOf(10, "eventfd", api.Handle{Name: "anon_inode:[eventfd]", Access: "read_write", Eventfd: &api.Eventfd{Count: 3, Semaphore: true}}),
		handleOf(11, "timerfd", api.Handle{Name: "anon_inode:[timerfd]", Access: "read_write", Timerfd: &api.Timerfd{Clock: "CLOCK_MONOTONIC", Ticks: 1, RemainingNS: 2_500_000_000, IntervalNS: 5_000_000}}),
		handleOf(12, "signalfd", api.Handle{Name: "anon_inode:[signalfd]", Access: "read_write", Signals: []int{10, 12}}),
		handleOf(13, "pidfd", api.Handle{Name: "anon_inode:[pidfd]", Access: "read_write", Pidfd: &api.Pidfd{PID: -1}}),
		handleOf(14, "inotify", api.Handle{Name: "anon_inode:inotify", Access: "read", Watches: []api.Watch{{Number: 1, Device: "254:0", Inode: 77, Events: []string{"IN_MODIFY"}}}}),
		handleOf(15, "memfd", api.Handle{Name: "/memfd:vos-vin (deleted)", Access: "read_write", Size: pointer[int64](4096), Mine: true, Own: "left"}),
		handleOf(62, "memfd", api.Handle{Name: "/memfd:vos-redirect (deleted)", Access: "read_write", Size: pointer[int64](200), Mine: true, Own: "record"}),
		handleOf(63, "file", api.Handle{Name: "/old.log", Path: "/old.log", Access: "write", Size: pointer[int64](1), Mine: true, Own: "kept"}),
		handleOf(20, "file", api.Handle{Name: "/new.log", Path: "/new.log", Access: "write", Size: pointer[int64](1), RedirectedFrom: "/old.log"}),
		handleOf(16, "terminal", api.Handle{Name: "/dev/ptmx", Path: "/dev/ptmx", Access: "read_write", Special: "5:2", Pty: pointer(3)}),
		handleOf(17, "io_uring", api.Handle{Name: "anon_inode:[io_uring]", Access: "read_write", Ring: &api.Ring{SubmissionEntries: 8, CompletionEntries: 16}}),
		handleOf(18, "anonymous", api.Handle{Name: "anon_inode:[userfaultfd]", Access: "read_write"}),
	},
}}

func handleOf(fd int, kind string, h api.Handle) api.Handle {
	h.PID, h.Program, h.FD, h.Kind, h.Device, h.Inode = 812, "nginx", fd, kind, "0:16", uint64(1000+fd)
	return h
}

var functionsOfNginx = []api.FunctionHandles{{
	PID: 812, Program: "nginx", Module: "nginx", Path: "/usr/sbin/nginx", Slots: 3, Lazy: 1, Led: 1, Imports: []api.FunctionSlot{
		{Address: "0x555555600000", Symbol: "inflate", Target: "0x7e0000001000", Module: "libz.so.1", Led: true, Generation: 2},
		{Address: "0x555555600008", Symbol: "read@GLIBC_2.2.5", Target: "0x7f0000001000", Module: "libc.so.6"},
		{Address: "0x555555600010", Symbol: "abort@GLIBC_2.2.5", Target: "0x555555555036", Lazy: true},
	},
}, {PID: 812, Program: "nginx", Module: "libz.so.1", Path: "/usr/lib/libz.so.1", Generation: 2}}
