package criu

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"github.com/checkpoint-restore/go-criu/v7/crit"
	crfdinfo "github.com/checkpoint-restore/go-criu/v7/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v7/crit/images/mm"
	crpagemap "github.com/checkpoint-restore/go-criu/v7/crit/images/pagemap"
)

func TestMemory(t *testing.T) {
	k, dir, _ := exported(t)
	space, _ := read(t, dir, "mm-812.img", &mm.MmEntry{})
	names := namesOf(t, dir)
	m := space[0]
	if names[m.GetExeFileId()] != "/usr/bin/x" || !slices.Equal(m.GetMmSavedAuxv(), []uint64{6, 4096, 33, 0x7ff0}) || m.GetMmBrk() != 0x9000 || !m.GetThpDisabled() {
		t.Errorf("memory %v", m)
	}
	want := []struct {
		start, end  uint64
		status      uint32
		flags, prot uint32
		offset      uint64
		file        string
		advice      uint64
	}{
		{0x10000, 0x20000, areaRegular | areaFilePrivate, 2, 3, page, "/usr/bin/x", 0},
		{0x20000, 0x24000, areaRegular | areaFileShared, 1, 3, 0, "/var/data", 0},
		{0x30000, 0x80000, areaRegular | areaPrivate | areaHeap, 0x22, 3, 0, "", 1<<15 | 1<<10},
		{0x90000, 0x93000, areaRegular | areaShared, 0x21, 3, 0, "", 0},
		{0x94000, 0x95000, areaRegular | areaMemfd | areaFileShared, 1, 3, 0, "memfd", 0},
		{0x96000, 0x98000, areaRegular | areaFilePrivate, 2, 3, 0, "/usr/lib/old.so", 0},
		{0xa0000, 0xa6000, areaRegular | areaPrivate | areaVVar, 0x22, 1, 0, "", 0},
		{0xa6000, 0xa8000, areaRegular | areaPrivate | areaVDSO, 0x22, 5, 0, "", 0},
		{0x50000, 0x51000, areaGuard, 0, 0, 0, "", 0},
	}
	if len(m.GetVmas()) != len(want) {
		t.Fatalf("%d mappings: %v", len(m.GetVmas()), m.GetVmas())
	}
	for i, w := range want {
		v := m.GetVmas()[i]
		file := ""
		if v.GetStatus()&(areaFilePrivate|areaFileShared) != 0 {
			file = names[uint32(v.GetShmid())]
		}
		if v.GetStart() != w.start || v.GetEnd() != w.end || v.GetStatus() != w.status || v.GetFlags() != w.flags || v.GetProt() != w.prot ||
			v.GetPgoff() != w.offset || file != w.file || v.GetMadv() != w.advice || v.GetFd() != -1 {
			t.Errorf("mapping %d is %v (%s), not %+v", i, v, file, w)
		}
	}
	got := readPages(t, dir, "pagemap-812.img")
	for start, want := range map[uint64][]byte{0x11000: k.pages[0x11000], 0x30000: k.pages[0x30000], 0x40000: k.pages[0x40000], 0x97000: k.pages[0x97000], 0xa6000: k.vdso} {
		if !bytes.Equal(got[start], want) {
			t.Errorf("the pages at %#x differ: %d bytes of %d", start, len(got[start]), len(want))
		}
	}
	if len(got) != 5 {
		t.Errorf("%d runs of pages", len(got))
	}
	if got := readPages(t, dir, "pagemap-shmem-1.img"); len(got) != 1 || !bytes.Equal(got[page], k.object) {
		t.Error("the shared memory differs")
	}
	if got := readPages(t, dir, "pagemap-shmem-2.img"); len(got) != 1 || !bytes.Equal(got[0], k.memfd) {
		t.Error("the memfd differs")
	}
	if got := readPages(t, dir, "pagemap-813.img"); len(got) != 0 {
		t.Errorf("the child has %d runs of pages", len(got))
	}
	reader, err := crit.NewMemoryReader(dir, 812, page)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := reader.GetMemPages(0x31000, 0x31008); err != nil || !bytes.Equal(b.Bytes(), k.pages[0x30000][page:page+8]) {
		t.Errorf("go-criu reads %x, %v", b, err)
	}
}

// readPages returns the pages of a list, by where each run begins.
func readPages(t *testing.T, dir, name string) map[uint64][]byte {
	t.Helper()
	all := entries(t, dir, name, &crpagemap.PagemapHead{})
	head, ok := all[0].Message.(*crpagemap.PagemapHead)
	if !ok {
		t.Fatalf("%s begins with a %T", name, all[0].Message)
	}
	b := readFile(t, dir, fmt.Sprintf("pages-%d.img", head.GetPagesId()))
	runs := map[uint64][]byte{}
	for _, e := range all[1:] {
		m := e.Message.(*crpagemap.PagemapEntry)
		size := int(m.GetNrPages()) * page
		if m.GetFlags() != pagePresent || len(b) < size {
			t.Fatalf("%s: %v, and %d bytes are left", name, m, len(b))
		}
		runs[m.GetVaddr()], b = b[:size], b[size:]
	}
	if len(b) > 0 {
		t.Errorf("%s: %d bytes are of no page", name, len(b))
	}
	return runs
}

// namesOf returns the files that have a name, and "memfd" for those.
func namesOf(t *testing.T, dir string) map[uint32]string {
	t.Helper()
	names := map[uint32]string{}
	all, _ := read(t, dir, "files.img", &crfdinfo.FileEntry{})
	for _, f := range all {
		switch {
		case f.GetReg() != nil:
			names[f.GetId()] = f.GetReg().GetName()
		case f.GetMemfd() != nil:
			names[f.GetId()] = "memfd"
		}
	}
	return names
}

func TestLayouts(t *testing.T) {
	const avx, avx512, mpx, pkru, amx = 1 << xYMM, 1<<xOpMask | 1<<xZMMUpper | 1<<xHi16ZMM, 1<<xBoundRegs | 1<<xBoundCSR, 1 << xPKRU, 1<<xTileCfg | 1<<xTile
	for _, c := range []struct {
		size     int
		features uint64
		at       map[int]int // nil: not known
	}{
		{832, 3 | avx, map[int]int{xYMM: 576}},
		{1088, 3 | avx | mpx, map[int]int{xBoundRegs: 960, xBoundCSR: 1024}},
		{2696, 3 | avx | avx512 | pkru, map[int]int{xOpMask: 1088, xPKRU: 2688}},
		{2688, 3 | avx | avx512, map[int]int{xHi16ZMM: 1664}},
		{11008, 3 | avx | avx512 | pkru | amx, map[int]int{xHi16ZMM: 1664, xTile: 2816}},
		{2440, 3 | avx | avx512 | pkru, map[int]int{xOpMask: 832, xHi16ZMM: 1408, xPKRU: 2432}},
		{840, 3 | avx | pkru, map[int]int{xPKRU: 832}},
		{2696, 3 | avx | pkru, map[int]int{xPKRU: 2688}},
		{1000, 3 | avx | pkru, nil},
	} {
		l := layoutOf(c.size, c.features)
		if (l == nil) != (c.at == nil) {
			t.Errorf("%d bytes of %#x: %v", c.size, c.features, l)
		}
		for n, at := range c.at {
			if l[n].offset != at {
				t.Errorf("%d bytes of %#x: component %d at %d, not %d", c.size, c.features, n, l[n].offset, at)
			}
		}
	}
}
