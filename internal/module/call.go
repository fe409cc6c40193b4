package module

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/tracee"
)

// ErrNotNeeded is that the process has nothing for which a call would matter.
var ErrNotNeeded = errors.New("not needed")

// allocators are functions that only an allocator exports, or what wraps one.
var allocators = []string{"malloc", "free", "calloc", "realloc", "memalign", "aligned_alloc", "posix_memalign", "_Znwm", "_ZdlPv"}

// Modules whose functions vOS calls, in the order in which they are looked for,
// and those that share locks with them.
const (
	cLibrary   = "libc.so.6"
	muslPrefix = "libc.musl-"
	threads    = "libpthread.so.0" // part of the C library since glibc 2.34, as is:
	loading    = "libdl.so.2"
	unwinder   = "libgcc_s.so.1"
)

// musl reports whether the process runs on musl, whose loader is its C library.
func (p *Process) musl() bool {
	for _, m := range p.Modules {
		if m.Object != nil && (strings.HasPrefix(m.Name, muslPrefix) || m.Kind == Loader && strings.HasPrefix(m.Object.Soname, "ld-musl")) {
			return true
		}
	}
	return false
}

// isCLibrary reports whether system calls of others are made in the module.
func isCLibrary(m *Module) bool {
	return m.Name == cLibrary || m.Name == threads || strings.HasPrefix(m.Name, muslPrefix) ||
		m.Kind == Loader && m.Object != nil && strings.HasPrefix(m.Object.Soname, "ld-musl")
}

// Function returns the address of a function that the process's C library or
// unwinder exports.
func (p *Process) Function(name string) (address uint64, ok bool) {
	for _, m := range p.Modules {
		if m.Object == nil || !isCLibrary(m) && m.Name != loading && m.Name != unwinder {
			continue
		}
		s, found, err := m.Object.Lookup(name, "")
		if err == nil && found && s.Type == elf.STT_FUNC {
			return m.Bias + s.Value, true
		}
	}
	return 0, false
}

// callPlace says where a thread may not be borrowed for a call.
func (p *Process) callPlace() (tracee.CallPlace, error) {
	var place tracee.CallPlace
	for _, m := range p.Modules {
		if p.unsafe(m) {
			place.Unsafe = append(place.Unsafe, tracee.Range{Start: m.start, End: m.end})
		}
		if isCLibrary(m) {
			place.Wrappers = append(place.Wrappers, tracee.Range{Start: m.start, End: m.end})
		}
	}
	place.Errno, _ = p.Function("__errno_location")
	if debug, err := p.loaderDebug(); err != nil {
		return place, err
	} else if debug != 0 {
		place.State = debug + debugState
	}
	return place, nil
}

// unsafe reports whether a thread in the module's code may hold a lock of the
// loader, the allocator or the unwinder. Only what is exported can take the place
// of the C library's allocator.
func (p *Process) unsafe(m *Module) bool {
	if m.Object == nil || m.Kind == Loader || m.Kind == VDSO || isCLibrary(m) || m.Name == loading || m.Name == unwinder {
		return true
	}
	for _, name := range allocators {
		if _, found, err := m.Object.Lookup(name, ""); err != nil || found {
			return true
		}
	}
	return false
}

// Layout of struct r_debug and struct link_map, link.h.
const (
	debugMap   = 8
	debugState = 24

	linkBiasAt = 0
	linkNameAt = 8
	linkNextAt = 24
	linkSize   = 32

	maxLinks = 1 << 14
)

// loaderDebug returns the address of the loader's r_debug, 0 where there is none.
func (p *Process) loaderDebug() (uint64, error) {
	memory, err := p.openMemory()
	if err != nil {
		return 0, err
	}
	for _, m := range p.Modules {
		if m.Object == nil {
			continue
		}
		switch m.Kind {
		case Loader:
			if s, found, err := m.Object.Lookup("_r_debug", ""); err == nil && found {
				return m.Bias + s.Value, nil
			}
		case Executable:
			// What the file has in DT_DEBUG is 0; the loader writes to memory.
			for _, segment := range m.Object.Segments {
				if segment.Type != elf.PT_DYNAMIC {
					continue
				}
				entries := make([]byte, min(segment.Memsz, 1<<16))
				if _, err := memory.ReadAt(entries, int64(m.Bias+segment.Vaddr)); err != nil {
					return 0, err
				}
				for ; len(entries) >= 16; entries = entries[16:] {
					if elf.DynTag(binary.LittleEndian.Uint64(entries)) == elf.DT_DEBUG {
						if at := binary.LittleEndian.Uint64(entries[8:]); at != 0 {
							return at, nil
						}
					}
				}
			}
		}
	}
	return 0, nil
}

// linkName returns the name by which the loader knows a module: with that very
// name it need not look for a file. It is read while the program runs, so what
// is found has to be proved by the call.
func (p *Process) linkName(m *Module) ([]byte, bool, error) {
	debug, err := p.loaderDebug()
	if err != nil || debug == 0 {
		return nil, false, err
	}
	memory, err := p.openMemory()
	if err != nil {
		return nil, false, err
	}
	link := make([]byte, linkSize)
	if _, err := memory.ReadAt(link[:8], int64(debug+debugMap)); err != nil {
		return nil, false, err
	}
	next := binary.LittleEndian.Uint64(link)
	for n := 0; next != 0 && n < maxLinks; n++ {
		if _, err := memory.ReadAt(link, int64(next)); err != nil {
			return nil, false, nil // taken out of the list meanwhile
		}
		if binary.LittleEndian.Uint64(link) != m.Bias {
			next = binary.LittleEndian.Uint64(link[linkNextAt:])
			continue
		}
		name := make([]byte, 4096)
		// The end of the heap may come first.
		read, _ := memory.ReadAt(name, int64(binary.LittleEndian.Uint64(link[linkNameAt:])))
		length := bytes.IndexByte(name[:read], 0)
		return name[:length+1], length > 0, nil
	}
	return nil, false, nil
}

// call calls a function of the process in one session.
func (p *Process) call(ctx context.Context, name string, f tracee.Function) (result uint64, times tracee.Times, err error) {
	at, ok := p.Function(name)
	if !ok {
		return 0, times, api.Refusal{Code: codeNoFunction, Subject: fmt.Sprintf("process %d", p.PID()),
			Detail: "its C library does not export " + name, Remedy: restart}
	}
	place, err := p.callPlace()
	if err != nil {
		return 0, times, err
	}
	f.Address = at
	times, err = tracee.Do(ctx, p.Process, tracee.Options{Identity: p.identity}, func(s *tracee.Session) error {
		if err := s.BorrowForCall(place); err != nil {
			return err
		}
		result, err = s.CallFunction(f)
		return err
	})
	if err != nil {
		return 0, times, fmt.Errorf("call %s in process %d: %w", name, p.PID(), err)
	}
	return result, times, nil
}

// WaitingPlace says where a thread may be borrowed for a call of a function that
// needs locks of more than loader and allocator: only where it waits in one of
// the system calls.
func (p *Process) WaitingPlace(calls ...uint64) (tracee.CallPlace, error) {
	place, err := p.callPlace()
	place.Waits = calls
	return place, err
}

// Session runs f with a session of the process as it was inspected.
func (p *Process) Session(ctx context.Context, f func(*tracee.Session) error) (tracee.Times, error) {
	return tracee.Do(ctx, p.Process, tracee.Options{Identity: p.identity}, f)
}

// Flags of dlopen, dlfcn.h and bits/dlfcn.h.
const (
	openLazily  = 1      // RTLD_LAZY
	openLoaded  = 4      // RTLD_NOLOAD
	openForEver = 0x1000 // RTLD_NODELETE

	pinAttempts = 3
)

// Pin keeps a module mapped for as long as the program runs: dlclose will not
// unmap it any more. Modules that are not unmapped anyhow need no call.
func (p *Process) Pin(ctx context.Context, m *Module) error {
	if m.Kind != Library || !m.Opened || m.Object != nil && m.Object.NoDelete() || p.musl() {
		return nil
	}
	return p.pin(ctx, m)
}

func (p *Process) pin(ctx context.Context, m *Module) error {
	memory, err := p.openMemory()
	if err != nil {
		return err
	}
	for range pinAttempts {
		name, found, err := p.linkName(m)
		if err != nil {
			return err
		}
		if !found {
			continue
		}
		handle, _, err := p.call(ctx, "dlopen", tracee.Function{
			Args: [6]uint64{0, openLazily | openLoaded | openForEver}, Pointers: [6]bool{true}, Data: name,
			Calls: []uint64{syscall.SYS_FUTEX, syscall.SYS_BRK, syscall.SYS_MMAP, syscall.SYS_MUNMAP, syscall.SYS_MPROTECT},
		})
		if err != nil {
			return err
		}
		if handle == 0 {
			continue // closed meanwhile
		}
		bias := make([]byte, 8) // the handle is the link_map, which begins with l_addr
		if _, err := memory.ReadAt(bias, int64(handle)); err != nil {
			return err
		}
		if binary.LittleEndian.Uint64(bias) != m.Bias {
			break
		}
		return nil
	}
	return api.Refusal{Code: codeUnmapped, Subject: m.Name,
		Detail: "the loader does not know it where it was", Remedy: "try again if the program still uses it"}
}

// RegisterFrames tells the unwinder about code that no module has: ehFrame is the
// address of its .eh_frame, ended by a zero length, object that of 64 bytes of
// zeros that the unwinder may use until DeregisterFrames. Where no unwinder is
// loaded it returns ErrNotNeeded.
func (p *Process) RegisterFrames(ctx context.Context, ehFrame, object uint64) error {
	return p.callUnwinder(ctx, "__register_frame_info", ehFrame, object)
}

// DeregisterFrames takes back what RegisterFrames did for the same ehFrame.
func (p *Process) DeregisterFrames(ctx context.Context, ehFrame uint64) error {
	return p.callUnwinder(ctx, "__deregister_frame_info", ehFrame)
}

func (p *Process) callUnwinder(ctx context.Context, name string, args ...uint64) error {
	if _, ok := p.Function(name); !ok {
		return fmt.Errorf("call %s in process %d: %w: it has no unwinder", name, p.PID(), ErrNotNeeded)
	}
	f := tracee.Function{Calls: []uint64{syscall.SYS_FUTEX, syscall.SYS_BRK, syscall.SYS_MMAP, syscall.SYS_MUNMAP}}
	copy(f.Args[:], args)
	_, _, err := p.call(ctx, name, f)
	return err
}
