package module

import (
	"debug/elf"
	"fmt"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/intercept"
)

const codeAllocator api.Code = "allocator_unknown"

// allocating tells which imported functions allocate and free memory, and how. Those
// that get it by the C library's own slots are the C library's alone.
var allocating = map[string]struct {
	kind    intercept.Kind
	aid     string // another function that the stub needs
	library bool   // a function of the C library, not of the allocator
}{
	"malloc":          {kind: intercept.Allocate},
	"calloc":          {kind: intercept.Allocate},
	"aligned_alloc":   {kind: intercept.Allocate},
	"memalign":        {kind: intercept.Allocate},
	"valloc":          {kind: intercept.Allocate},
	"pvalloc":         {kind: intercept.Allocate},
	"realloc":         {kind: intercept.Reallocate},
	"reallocarray":    {kind: intercept.ReallocateMany},
	"posix_memalign":  {kind: intercept.AllocateInto},
	"free":            {kind: intercept.Release},
	"cfree":           {kind: intercept.Release},
	"strdup":          {kind: intercept.Duplicate, library: true},
	"__strdup":        {kind: intercept.Duplicate, library: true},
	"strndup":         {kind: intercept.Duplicate, library: true},
	"__strndup":       {kind: intercept.Duplicate, library: true},
	"wcsdup":          {kind: intercept.Duplicate, library: true},
	"asprintf":        {kind: intercept.Print, aid: "vasprintf", library: true},
	"__asprintf_chk":  {kind: intercept.PrintChecked, aid: "__vasprintf_chk", library: true},
	"vasprintf":       {kind: intercept.PrintList, library: true},
	"__vasprintf_chk": {kind: intercept.PrintList, library: true},
	"getline":         {kind: intercept.Line, library: true},
	"getdelim":        {kind: intercept.Line, library: true},
	"__getdelim":      {kind: intercept.Line, library: true},
	"_Znwm":           {kind: intercept.OperatorNew, aid: "malloc"},
	"_Znam":           {kind: intercept.OperatorNew, aid: "malloc"},
	"_ZdlPv":          {kind: intercept.Release, aid: "free"},
	"_ZdaPv":          {kind: intercept.Release, aid: "free"},
	"_ZdlPvm":         {kind: intercept.Release, aid: "free"},
	"_ZdaPvm":         {kind: intercept.Release, aid: "free"},
}

// An allocator is the malloc that a program uses, and who allocates through it.
type allocator struct {
	how    intercept.Allocator
	home   *Module           // that defines malloc
	libc   *Module           // nil where it isn't glibc, or gets its memory elsewhere
	cxx    *Module           // libstdc++ whose operator new is malloc, nil if there is none
	own    map[string]uint64 // malloc and free
	others []string          // modules that use another malloc
}

// findAllocator finds the malloc that the modules of a program import.
func (p *Process) findAllocator(slots []ImportSlot) (*allocator, *api.Refusal) {
	users := make(map[uint64]int)
	bound := make(map[*Module]map[string]uint64)
	for _, s := range slots {
		if s.Symbol.Name != "malloc" && s.Symbol.Name != "free" || s.Target == 0 {
			continue
		}
		if bound[s.Importer] == nil {
			bound[s.Importer] = make(map[string]uint64)
		}
		bound[s.Importer][s.Symbol.Name] = s.Target
		if s.Symbol.Name == "malloc" {
			users[s.Target]++
		}
	}
	var malloc uint64
	for target, n := range users {
		if n > users[malloc] || n == users[malloc] && target < malloc {
			malloc = target
		}
	}
	home := p.moduleAt(malloc)
	if home == nil || home.Object == nil {
		return nil, &api.Refusal{Code: codeAllocator, Subject: p.Name, Detail: "no module imports malloc from another one", Remedy: "count calls only"}
	}
	a := &allocator{home: home, own: map[string]uint64{"malloc": malloc}}
	if free, ok := home.function("free"); ok {
		a.own["free"] = free
	}
	_, glibc := home.function("gnu_get_libc_version")
	if usable, ok := home.function("malloc_usable_size"); glibc {
		a.how.Header = true
	} else if ok {
		a.how.UsableSize = usable
	} else {
		return nil, &api.Refusal{Code: codeAllocator, Subject: home.Name,
			Detail: "it allocates the program's memory, and has no malloc_usable_size to tell the size of a block", Remedy: "count calls only"}
	}
	for m, names := range bound {
		if names["malloc"] != 0 && names["malloc"] != malloc {
			a.others = append(a.others, m.Name)
		}
		if names["malloc"] != malloc || names["free"] != a.own["free"] {
			continue
		}
		if _, ok := m.function("gnu_get_libc_version"); ok {
			a.libc = m
		}
		if _, ok := m.function("_ZSt15get_new_handlerv"); ok {
			a.cxx = m
		}
	}
	return a, nil
}

// function returns the address of a function that a module defines.
func (m *Module) function(name string) (address uint64, ok bool) {
	s, ok, err := m.Object.Lookup(name, "")
	if err != nil || !ok || s.Type != elf.STT_FUNC {
		return 0, false
	}
	return m.Bias + s.Value, true
}

// kind returns how a slot's calls are counted, and the function that the stub needs
// besides. Where why is not empty, calls of an allocating function are counted alone.
func (a *allocator) kind(s *ImportSlot, p *Process) (kind intercept.Kind, aid uint64, why string) {
	f, ok := allocating[s.Symbol.Name]
	if !ok {
		return intercept.Count, 0, ""
	}
	home := p.moduleAt(s.Target)
	switch {
	case f.kind == intercept.OperatorNew || f.aid == "free":
		if a.cxx == nil || home != a.cxx {
			return intercept.Count, 0, "the program has operators of its own"
		}
		return f.kind, a.own[f.aid], ""
	case f.library:
		if a.libc == nil || home != a.libc {
			return intercept.Count, 0, "it allocates elsewhere"
		}
	case home != a.home:
		return intercept.Count, 0, fmt.Sprintf("it is not of %s", a.home.Name)
	}
	if f.aid != "" {
		if aid, ok = home.function(f.aid); !ok {
			return intercept.Count, 0, fmt.Sprintf("%s has no %s", home.Name, f.aid)
		}
	}
	return f.kind, aid, ""
}
