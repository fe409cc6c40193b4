package module

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// An opener is an imported function that opens descriptors.
type opener struct {
	n     uint64   // how many a call opens; 0 where it depends
	kinds []string // of api.HandleKinds; nil are all
}

// What functions open by a name: any of these, or what has contents to read.
var (
	named    = []string{"file", "directory", "fifo", "terminal", "device", "path", "namespace"}
	readable = []string{"file", "directory", "fifo", "terminal", "device"}
)

// openers are the functions of C libraries that open descriptors. What fcntl
// duplicates, recvmsg receives and syscall does, their names don't tell.
var openers = knownOpeners()

func knownOpeners() map[string]opener {
	all := make(map[string]opener)
	add := func(n uint64, kinds []string, names string) {
		for name := range strings.FieldsSeq(names) {
			all[name] = opener{n, kinds}
		}
	}
	add(1, named, "open open64 __open __open64 __open_2 __open64_2 openat openat64 __openat_2 __openat64_2 open_by_handle_at")
	add(1, readable, "fopen fopen64 _IO_fopen freopen freopen64 setmntent __setmntent")
	add(1, []string{"file"}, "creat creat64 tmpfile tmpfile64 mkstemp mkstemp64 mkostemp mkostemp64 mkstemps mkstemps64 mkostemps mkostemps64 shm_open mq_open")
	add(1, []string{"directory"}, "opendir")
	add(0, []string{"directory"}, "fts_open fts64_open")
	add(1, []string{"terminal"}, "posix_openpt getpt forkpty")
	add(2, []string{"terminal"}, "openpty")
	add(1, []string{"pipe"}, "popen")
	add(2, []string{"pipe"}, "pipe pipe2 __pipe")
	add(1, []string{"socket"}, "socket accept accept4")
	add(2, []string{"socket"}, "socketpair")
	add(0, []string{"socket"}, "getaddrinfo openlog syslog vsyslog __syslog_chk __vsyslog_chk")
	add(1, []string{"memfd"}, "memfd_create")
	add(1, []string{"epoll"}, "epoll_create epoll_create1")
	add(1, []string{"eventfd"}, "eventfd")
	add(1, []string{"timerfd"}, "timerfd_create")
	add(1, []string{"signalfd"}, "signalfd")
	add(1, []string{"inotify"}, "inotify_init inotify_init1")
	add(1, []string{"fanotify"}, "fanotify_init")
	add(1, []string{"pidfd"}, "pidfd_open")
	add(1, []string{"io_uring"}, "io_uring_setup io_uring_queue_init io_uring_queue_init_params io_uring_queue_init_mem")
	add(1, nil, "dup dup2 dup3 __dup2 pidfd_getfd")
	return all
}

// closing are functions that close one descriptor.
var closing = map[string]bool{
	"close": true, "__close": true, "fclose": true, "_IO_fclose": true, "closedir": true, "pclose": true,
	"freopen": true, "freopen64": true, "endmntent": true, "__endmntent": true,
}

// Openers tell which modules may have opened what a process has open, as far as calls
// were counted.
type Openers struct {
	ByKind map[string][]string // of handles: the modules that called for one of the kind, most calls first

	// Uncounted are imported functions that open descriptors whose calls are not counted.
	Uncounted []api.Uncounted
}

// Intercepted reports whether an interceptor is mapped in a process.
func Intercepted(p *procfs.Process) (bool, error) {
	all, err := p.Maps()
	return slices.ContainsFunc(all, func(m procfs.Mapping) bool { return isInterceptor(&m) }), err
}

// Openers reads who called functions that open descriptors, since calls are counted.
// Descriptors that were listed before are of these, if they were opened since.
func (m *Meter) Openers() (*Openers, error) {
	r, err := m.Read()
	if err != nil {
		return nil, err
	}
	o := &Openers{ByKind: make(map[string][]string)}
	calls := make(map[string]map[string]uint64) // by kind and module
	for i, about := range m.modules {
		for _, f := range r.Modules[i].Functions {
			opener, ok := openerOf(f.Name)
			if !ok || f.Calls == 0 {
				continue
			}
			kinds := opener.kinds
			if kinds == nil {
				kinds = api.HandleKinds
			}
			for _, kind := range kinds {
				if calls[kind] == nil {
					calls[kind] = make(map[string]uint64)
				}
				calls[kind][about.Name] += f.Calls
			}
		}
		for _, u := range about.Uncounted {
			u.Functions = slices.DeleteFunc(slices.Clone(u.Functions), func(name string) bool { _, ok := openerOf(name); return !ok })
			if len(u.Functions) > 0 {
				o.Uncounted = append(o.Uncounted, u)
			}
		}
	}
	for kind, by := range calls {
		o.ByKind[kind] = slices.SortedFunc(maps.Keys(by), func(a, b string) int {
			return cmp.Or(cmp.Compare(by[b], by[a]), cmp.Compare(a, b))
		})
	}
	return o, nil
}

// openerOf returns what an imported function opens, by its name with or without a
// version.
func openerOf(function string) (o opener, ok bool) {
	name, _, _ := strings.Cut(function, "@")
	o, ok = openers[name]
	return o, ok
}
