package match

import (
	"bytes"
	"debug/elf"
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/dso"
	"github.com/virtualizing-os/vos/internal/x86"
)

// refusals collects refusals, a few of each code: the rest is counted.
type refusals struct {
	all   []api.Refusal
	count map[api.Code]int
}

// mostOfCode is how many refusals of one code are told one by one.
const mostOfCode = 8

func (r *refusals) add(code api.Code, subject, format string, args ...any) {
	if r.count == nil {
		r.count = map[api.Code]int{}
	}
	if r.count[code]++; r.count[code] > mostOfCode {
		return
	}
	r.all = append(r.all, api.Refusal{Code: code, Subject: subject, Detail: fmt.Sprintf(format, args...), Remedy: remedies[code]})
}

// list returns the refusals, with how many more there are of each code.
func (r *refusals) list() []api.Refusal {
	for i := len(r.all) - 1; i >= 0; i-- {
		if n := r.count[r.all[i].Code]; n > mostOfCode {
			r.all[i].Detail += fmt.Sprintf(" (and %d more like this)", n-mostOfCode)
			r.count[r.all[i].Code] = 0
		}
	}
	return r.all
}

// refuse is the seventh step: all that speaks against the replacement.
func (m *Match) refuse(p *pairing, d *dataMapper, r *redirection, opt Options) {
	var all refusals
	m.refuseObjects(&all, opt)
	m.refuseExports(&all, p)
	m.refuseThreadLocal(&all)
	m.refuseData(&all, d)
	m.refuseCode(&all, r)
	m.refuseConstructors(&all, p)
	m.refuseDrift(&all)
	m.Refusals = all.list()
}

// refuseObjects checks what the headers and the dynamic sections say.
func (m *Match) refuseObjects(all *refusals, opt Options) {
	old, new := m.Old.Object, m.New.Object
	for _, b := range []*Build{m.Old, m.New} {
		o, which := b.Object, "old build"
		if b == m.New {
			which = "new build"
		}
		switch {
		case o.Type != elf.ET_DYN || o.PIE():
			all.add(CodeNotLibrary, which, "it is an executable")
		case o.Dynamic == nil:
			all.add(CodeNotLibrary, which, "it has no dynamic section")
		}
		if o.BuildID == "" {
			all.add(CodeNoBuildID, which, "without a build-id nobody can tell which build a process runs")
		}
		if o.TextRel() {
			all.add(CodeTextrel, which, "DT_TEXTREL: the loader writes to its code")
		}
		if err := o.Check(); err != nil {
			all.add(CodeMalformed, which, "%v", err)
		}
		if b.Debug != nil && b.Debug.BuildID != o.BuildID {
			all.add(CodeDebugFile, which, "its build-id is %s, the debug file's %s", o.BuildID, b.Debug.BuildID)
		}
		if name := cLibrary(b); name != "" && !opt.CLibrary {
			all.add(CodeCLibrary, name, "the C library and its loader depend on each other's builds")
		}
	}
	if old.Soname != new.Soname {
		all.add(CodeSoname, "new build", "its name is %q, the old build's %q", new.Soname, old.Soname)
	}
	if old.Machine != new.Machine {
		all.add(CodeArchitecture, new.Machine.String(), "the old build is for %v", old.Machine)
	}
	if more := new.Properties.ISANeeded &^ old.Properties.ISANeeded; more != 0 {
		all.add(CodeArchitecture, "new build", "it needs instructions (levels %#x) that the old build doesn't", more)
	}
	for _, n := range new.Needed {
		if !slices.Contains(old.Needed, n) {
			all.add(CodeNeeded, n, "the old build doesn't need it")
		}
	}
}

// cLibrary returns the name of a library that is part of glibc, by its name or
// because its symbols say so.
func cLibrary(b *Build) string {
	o := b.Object
	if strings.HasPrefix(o.Soname, "ld-linux") {
		return o.Soname
	}
	switch o.Soname {
	case "libc.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "libutil.so.1", "libanl.so.1", "libthread_db.so.1", "libBrokenLocale.so.1":
		return o.Soname
	}
	versions, _ := o.Versions()
	for _, v := range versions {
		if v.Name == "GLIBC_PRIVATE" {
			return o.Soname
		}
	}
	return ""
}

// refuseExports compares what other objects may bind to.
func (m *Match) refuseExports(all *refusals, p *pairing) {
	for i := range m.Old.Exports {
		e := &m.Old.Exports[i]
		if e.Section == elf.SHN_ABS {
			continue
		}
		n := m.New.Export(e.Key)
		switch {
		case n == nil && m.New.exportsName(e.Name):
			all.add(CodeExportGone, e.Key, "the new build has the name, but not this version")
		case n == nil:
			all.add(CodeExportGone, e.Key, "the new build doesn't export it")
		case (e.Function >= 0) != (n.Function >= 0) || e.IsTLS() != n.IsTLS():
			all.add(CodeExportKind, e.Key, "it was %v, and is %v", e.Type, n.Type)
		case e.Function < 0 && e.Size != n.Size:
			all.add(CodeExportSize, e.Key, "it had %d bytes, and has %d", e.Size, n.Size)
		case e.IsTLS() && e.Value != n.Value:
			all.add(CodeTLSImage, e.Key, "it was at %#x of the thread-local image, and is at %#x", e.Value, n.Value)
		}
	}
	for _, b := range []*Build{m.Old, m.New} {
		for i := range b.Exports {
			if e := &b.Exports[i]; e.IsIFUNC() {
				all.add(CodeIFUNC, e.Key, "which function it is was decided when it was bound")
			}
		}
	}
	for _, q := range p.split {
		k := p.ofOld[q.Old]
		if k < 0 {
			k = p.ofNew[q.New]
		}
		if q.equal && k >= 0 && p.pairs[k].State == Identical {
			continue
		}
		all.add(CodeAliasSplit, m.Old.Name(q.Old), "its names lead to one function in one build, to several in the other, and they differ")
	}
}

// refuseThreadLocal allows thread-local storage of one image only, reached by
// way of the module's number.
func (m *Match) refuseThreadLocal(all *refusals) {
	old, new := m.Old.Object.TLS, m.New.Object.TLS
	if (old == nil) != (new == nil) {
		all.add(CodeTLSImage, "PT_TLS", "one build has thread-local storage, the other has none")
	} else if old != nil {
		a, b := m.Old.im.at(old.Vaddr), m.New.im.at(new.Vaddr)
		a, b = a[:min(uint64(len(a)), old.Filesz)], b[:min(uint64(len(b)), new.Filesz)]
		switch {
		case old.Memsz != new.Memsz || old.Filesz != new.Filesz || old.Align != new.Align:
			all.add(CodeTLSImage, "PT_TLS", "%d bytes of %d initialised, and %d of %d", old.Filesz, old.Memsz, new.Filesz, new.Memsz)
		case !bytes.Equal(a, b):
			all.add(CodeTLSImage, "PT_TLS", "its initial values differ")
		}
	}
	for _, b := range []*Build{m.Old, m.New} {
		for i := range b.words {
			w := &b.words[i]
			switch w.kind {
			case elf.R_X86_64_TPOFF64:
				// A variable of another object is at the place that the loader
				// gave that one; the module's own would get a place of its own.
				if e := b.Export(w.name); w.name == "" || e != nil {
					all.add(CodeTLSStatic, orAt(w.name, w.at), "its distance from the thread pointer is fixed")
				}
			case elf.R_X86_64_TLSDESC:
				all.add(CodeTLSDesc, orAt(w.name, w.at), "R_X86_64_TLSDESC")
			}
		}
	}
	if old == nil || new == nil {
		return
	}
	places := map[string]uint64{}
	for _, l := range m.Old.labels.byAddr {
		if l.tls {
			places[l.name] = l.addr
		}
	}
	for _, l := range m.New.labels.byAddr {
		if at, ok := places[l.name]; l.tls && ok && at != l.addr {
			all.add(CodeTLSImage, l.name, "it was at %#x of the thread-local image, and is at %#x", at, l.addr)
		}
	}
}

func orAt(name string, at uint64) string {
	if name != "" {
		return name
	}
	return fmt.Sprintf("%#x", at)
}

// refuseData asks for a proof of each writable object that the new code uses.
func (m *Match) refuseData(all *refusals, d *dataMapper) {
	if len(m.Entries) == 0 {
		return
	}
	for _, u := range m.unproved {
		all.add(CodeDataIdentity, m.New.place(u.addr), "used by %s of the new build", u.from)
	}
	for _, c := range d.conflicts {
		if c.twice {
			all.add(CodeDataConflict, m.New.place(c.new), "it and %s of the new build both seem to be %s of the old one (%s)", m.New.place(c.other), m.Old.place(c.old), c.by)
		} else {
			all.add(CodeDataConflict, m.New.place(c.new), "it seems to be both %s and %s of the old build (%s)", m.Old.place(c.old), m.Old.place(c.other), c.by)
		}
	}
	for _, g := range d.grown {
		all.add(CodeDataGrown, m.New.place(g.new), "%d bytes lie behind it to the next known object, %d in the old build", g.newSize, g.oldSize)
	}
	for _, q := range d.points {
		if q.relro && m.tableGrown(d.p, q) {
			all.add(CodeTableGrown, m.New.place(q.new), "a table of functions has more entries: old pointers to it lead to the short one")
		}
	}
	for i := range d.p.new.labels.byAddr {
		l := &d.p.new.labels.byAddr[i]
		if l.code || l.tls || l.key == "" || l.size == 0 || m.New.im.region(m.New.Object, l.addr) != Data {
			continue
		}
		if k, ok := d.p.old.labels.byKey[l.key]; ok && k >= 0 && d.p.old.labels.byAddr[k].size != l.size {
			all.add(CodeDataGrown, l.name, "it had %d bytes, and has %d", d.p.old.labels.byAddr[k].size, l.size)
		}
	}
}

// tableGrown tells a relocated table of functions that became longer.
func (m *Match) tableGrown(p *pairing, q point) bool {
	if l, ok := m.Old.labels.object(q.old); ok && l.size > 0 {
		if n, ok := m.New.labels.object(q.new); ok && n.size > 0 {
			return n.size-(q.new-n.addr) > l.size-(q.old-l.addr) && m.New.hasFunctions(q.new, n.size)
		}
	}
	length := func(boundaries []uint64, at uint64) uint64 { return next(boundaries, at+1) - at }
	was, is := length(p.oldBounds, q.old), length(p.newBounds, q.new)
	return is > was && m.New.hasFunctions(q.new, is)
}

// hasFunctions tells whether a table has pointers to code.
func (b *Build) hasFunctions(at, size uint64) bool {
	return slices.ContainsFunc(b.wordsIn(at, at+size), func(w word) bool { return w.target != 0 && b.FunctionAt(w.target) >= 0 })
}

// place names an address of data.
func (b *Build) place(addr uint64) string {
	if l, ok := b.labels.object(addr); ok {
		if l.addr == addr {
			return l.name
		}
		return fmt.Sprintf("%s+%#x", l.name, addr-l.addr)
	}
	for i := range b.Exports {
		if e := &b.Exports[i]; e.Function < 0 && !e.IsTLS() && addr-e.Value < max(e.Size, 1) && addr >= e.Value {
			return fmt.Sprintf("%s+%#x", e.Name, addr-e.Value)
		}
	}
	if at, name := b.sectionOf(addr); name != "" {
		return fmt.Sprintf("%s+%#x", name, addr-at.Addr)
	}
	return fmt.Sprintf("%#x", addr)
}

// refuseCode checks that what runs of the new build is known, and that what is
// to be redirected has a safe counterpart.
func (m *Match) refuseCode(all *refusals, r *redirection) {
	for _, u := range r.refused {
		all.add(CodePairing, u.Function, "%s: its address is taken, so it would have to be redirected", u.Reason)
	}
	if len(m.Entries) == 0 {
		return
	}
	m.refuseLabels(all, r)
	seen := map[uint64]bool{}
	for _, i := range m.Needed {
		f := &m.New.Functions[i]
		for _, ref := range m.New.referencesOf(f) {
			if ref.Region != Const || ref.Mode != Address || seen[ref.Target] || m.New.im.region(m.New.Object, ref.Target) != Text {
				continue
			}
			seen[ref.Target] = true
			if at, ok := m.New.hiddenReference(ref.Target); ok {
				all.add(CodeOpaque, fmt.Sprintf("%#x", ref.Target), "%s takes its address; it may be code, which refers to writable data at %#x", m.New.Name(i), at)
			}
		}
		if !f.Opaque {
			continue
		}
		if at, ok := m.New.mayRefer(f); ok {
			all.add(CodeOpaque, m.New.Name(i), "what may be an instruction at %#x refers to writable data", at)
		}
	}
}

// refuseLabels refuses writable tables of places within functions (computed
// goto): the new function would jump by the old table into the old one.
func (m *Match) refuseLabels(all *refusals, r *redirection) {
	for i := range m.New.words {
		w := &m.New.words[i]
		if w.target == 0 || m.New.im.region(m.New.Object, w.at) != Data {
			continue
		}
		g := m.New.FunctionAt(w.target)
		if g < 0 || m.New.Functions[g].Addr == w.target || !r.needed[g] {
			continue
		}
		if k := r.p.ofNew[g]; k < 0 || r.p.pairs[k].State != Identical {
			all.add(CodeLabelTable, m.New.place(w.at), "it leads into %s, which differs", m.New.Name(g))
		}
	}
}

// refuseConstructors refuses constructors that the old build lacks or that do
// something else: they don't run in a replacement, and the new code may rely on
// what they set up.
func (m *Match) refuseConstructors(all *refusals, p *pairing) {
	at, ok := m.New.Object.Dyn(elf.DT_INIT_ARRAY)
	size, _ := m.New.Object.Dyn(elf.DT_INIT_ARRAYSZ)
	if !ok || len(m.Entries) == 0 || size > dso.MaxTable || at+size < at {
		return
	}
	for _, w := range m.New.wordsIn(at, at+size) {
		g := m.New.FunctionAt(w.target)
		if w.target == 0 || g < 0 || m.New.Functions[g].Startup {
			continue
		}
		switch k := p.ofNew[g]; {
		case k < 0:
			all.add(CodeConstructor, m.New.Name(g), "the old build has no such constructor")
		case p.pairs[k].State != Identical:
			all.add(CodeConstructor, m.New.Name(g), "it does something else than the old build's")
		}
	}
}

// hiddenReference looks for instructions with references to writable data in
// what is taken for a table within .text, as nothing calls it.
func (b *Build) hiddenReference(from uint64) (uint64, bool) {
	const longest, before = 64 << 10, 9
	end := from + longest
	if i := sort.Search(len(b.Functions), func(i int) bool { return b.Functions[i].Addr > from }); i < len(b.Functions) {
		end = min(end, b.Functions[i].Addr)
	}
	raw := b.im.at(from)
	raw = raw[:min(uint64(len(raw)), end-from)]
	for i := 2; i+4 <= len(raw); i++ {
		if raw[i-1]&0xc7 != 5 { // ModRM of a RIP-relative operand
			continue
		}
		for at := max(0, i-before); at < i-1; at++ {
			inst, err := x86.Decode(raw[at:])
			if err != nil || !inst.IsRIPRelative() || at+int(inst.Mem.Disp.Offset) != i {
				continue
			}
			if to, _ := inst.Target(from + uint64(at)); b.im.region(b.Object, to) == Data {
				return from + uint64(at), true
			}
		}
	}
	return 0, false
}

// mayRefer tells whether any four bytes of a function, read as a displacement,
// lead to writable data, whatever immediate follows them: where none do, the
// function has no such reference, decoded or not.
func (b *Build) mayRefer(f *Function) (uint64, bool) {
	raw := b.raw(f)
	for i := 0; i+4 <= len(raw); i++ {
		to := f.Addr + uint64(i) + 4 + uint64(int64(int32(le.Uint32(raw[i:]))))
		for _, immediate := range []uint64{0, 1, 2, 4} {
			if b.im.region(b.Object, to+immediate) == Data {
				return f.Addr + uint64(i), true
			}
		}
	}
	return 0, false
}
