package criu

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	crcore "github.com/checkpoint-restore/go-criu/v7/crit/images/criu-core"
	crfs "github.com/checkpoint-restore/go-criu/v7/crit/images/fs"
	crinventory "github.com/checkpoint-restore/go-criu/v7/crit/images/inventory"
	crpstree "github.com/checkpoint-restore/go-criu/v7/crit/images/pstree"
	crseccomp "github.com/checkpoint-restore/go-criu/v7/crit/images/seccomp"

	"github.com/virtualizing-os/vos/internal/image"
)

func TestProcesses(t *testing.T) {
	k, dir, notes := exported(t)
	img := k.reader.Image()
	if len(notes) != 1 || !strings.Contains(notes[0], "inherited[14]") {
		t.Errorf("notes %q", notes)
	}
	inventory, _ := read(t, dir, "inventory.img", &crinventory.InventoryEntry{})
	if len(inventory) != 1 || inventory[0].GetImgVersion() != 2 || !inventory[0].GetFdinfoPerId() || inventory[0].GetRootIds().GetFilesId() != 1 {
		t.Errorf("inventory %v", inventory)
	}
	tree, _ := read(t, dir, "pstree.img", &crpstree.PstreeEntry{})
	if len(tree) != 3 || tree[0].GetPid() != 812 || tree[0].GetPpid() != 0 || !slices.Equal(tree[0].GetThreads(), []uint32{812, 815}) ||
		tree[1].GetPpid() != 812 || tree[1].GetSid() != 812 || tree[1].GetPgid() != 812 {
		t.Errorf("tree %v", tree)
	}
	dead, _ := read(t, dir, "core-814.img", &crcore.CoreEntry{})
	if z := dead[0].GetTc(); tree[2].GetPid() != 814 || tree[2].GetPpid() != 813 || tree[2].GetPgid() != 814 || !slices.Equal(tree[2].GetThreads(), []uint32{814}) ||
		z.GetTaskState() != 2 || z.GetExitCode() != 0x700 || z.GetComm() != "z" || dead[0].GetThreadInfo() != nil {
		t.Errorf("one that has ended is %v, %v", tree[2], dead)
	}
	for _, name := range []string{"core-812.img", "core-815.img", "core-813.img"} {
		core, _ := read(t, dir, name, &crcore.CoreEntry{})
		if len(core) != 1 || core[0].GetMtype() != crcore.CoreEntry_X86_64 {
			t.Fatalf("%s: %v", name, core)
		}
		compareThread(t, name, core[0])
	}
	filters, _ := read(t, dir, "seccomp.img", &crseccomp.SeccompEntry{})
	if f := filters[0].GetSeccompFilters(); len(f) != 2 || string(f[0].GetFilter()) != "8 bytes." || f[0].Prev != nil || string(f[1].GetFilter()) != "8 others" ||
		f[1].Prev == nil || f[1].GetPrev() != 0 || f[1].GetFlags() != 2 {
		t.Errorf("filters %v", filters)
	}
	for name, want := range map[string]uint32{"core-812.img": 0, "core-815.img": 1} {
		c, _ := read(t, dir, name, &crcore.CoreEntry{})
		if th := c[0].GetThreadCore(); th.GetSeccompMode() != crcore.SeccompMode_filter || th.SeccompFilter == nil || th.GetSeccompFilter() != want {
			t.Errorf("%s: filter %v", name, th)
		}
	}
	core, _ := read(t, dir, "core-812.img", &crcore.CoreEntry{})
	compareTask(t, core[0], &img.Processes[0])
	fs, _ := read(t, dir, "fs-812.img", &crfs.FsEntry{})
	names := namesOf(t, dir)
	if names[fs[0].GetCwdId()] != "/srv" || names[fs[0].GetRootId()] != "/" || fs[0].GetUmask() != 0o27 {
		t.Errorf("directories %v", fs)
	}
}

// compareThread compares what all threads of the example have.
func compareThread(t *testing.T, name string, core *crcore.CoreEntry) {
	t.Helper()
	x := core.GetThreadInfo()
	if r := x.GetGpregs(); r.GetR15() != 15 || r.GetAx() != ^uint64(3) || r.GetIp() != 0x10010 || r.GetSp() != 0x20000 || r.GetFsBase() != 0x30000 ||
		r.GetCs() != 0x33 || r.GetSs() != 0x2b || r.GetFlags() != 0x246 || x.GetClearTidAddr() != 0x7000 || len(x.GetTls()) != 3 {
		t.Errorf("%s: registers %v", name, x)
	}
	s := state()
	f := x.GetFpregs()
	save := f.GetXsave()
	if f.GetMxcsr() != binary.LittleEndian.Uint32(s[24:]) || !slices.Equal(f.GetStSpace(), words32(s[32:160])) || !slices.Equal(f.GetXmmSpace(), words32(s[160:416])) ||
		save.GetXstateBv() != binary.LittleEndian.Uint64(s[512:]) || !slices.Equal(save.GetYmmhSpace(), words32(s[576:832])) || len(save.GetBndregState()) != 0 ||
		!slices.Equal(save.GetOpmaskReg(), words64(s[1088:1152])) || !slices.Equal(save.GetZmmUpper(), words64(s[1152:1664])) ||
		!slices.Equal(save.GetHi16Zmm(), words64(s[1664:2688])) || !slices.Equal(save.GetPkru(), words32(s[2688:2696])) {
		t.Errorf("%s: extended state %v", name, f)
	}
	c := core.GetThreadCore()
	if c.GetFutexRla() != 0x6000 || c.GetFutexRlaLen() != 24 || c.GetSchedNice() != -5 || c.GetSchedPolicy() != 1 || c.GetSchedPrio() != 7 || c.GetBlkSigset() != 1<<63 ||
		c.GetSas().GetSsSp() != 0x5000 || c.GetSas().GetSsSize() != 8192 || c.GetSas().GetSsFlags() != 2 || len(c.GetSignalsP().GetSignals()) != 1 ||
		c.GetRseqEntry().GetRseqAbiPointer() != 0x6100 || c.GetRseqEntry().GetSignature() != 0x53053053 {
		t.Errorf("%s: thread %v", name, c)
	}
}

func compareTask(t *testing.T, core *crcore.CoreEntry, p *image.Process) {
	t.Helper()
	task, c := core.GetTc(), core.GetThreadCore().GetCreds()
	if task.GetTaskState() != taskAlive || task.GetComm() != "main" || task.GetPersonality() != 0x40000 || task.GetOomScoreAdj() != -17 || !task.GetChildSubreaper() ||
		len(task.GetSigactions()) != 62 || len(task.GetSignalsS().GetSignals()) != 1 || len(task.GetRlimits().GetRlimits()) != 1 ||
		task.GetRlimits().GetRlimits()[0].GetMax() != ^uint64(0) || core.GetThreadCore().GetPdeathSig() != 15 {
		t.Errorf("task %v", task)
	}
	// Of SIGKILL there is no action: that of signal 10 is the ninth.
	if a := task.GetSigactions()[8]; a.GetSigaction() != 0x1234 || a.GetFlags() != 4 || a.GetRestorer() != 5 || a.GetMask() != 6 {
		t.Errorf("action %v", a)
	}
	timers := task.GetTimers()
	if r := timers.GetReal(); r.GetIsec() != 1 || r.GetIusec() != 500000 || r.GetVsec() != 0 || r.GetVusec() != 300 {
		t.Errorf("interval %v", r)
	}
	if p := timers.GetPosix(); len(p) != 1 || p[0].GetItId() != 3 || p[0].GetItSigevNotify() != 4 || p[0].GetNotifyThreadId() != 815 || p[0].GetIsec() != 1 || p[0].GetVnsec() != 5 ||
		p[0].GetSivalPtr() != 77 || p[0].GetOverrun() != 2 {
		t.Errorf("timers %v", p)
	}
	if c.GetUid() != 1 || c.GetEuid() != 2 || c.GetSuid() != 3 || c.GetFsuid() != 4 || c.GetGid() != 5 || c.GetFsgid() != 8 || c.GetSecbits() != 2 ||
		!slices.Equal(c.GetGroups(), []uint32{9, 10}) || !slices.Equal(c.GetCapPrm(), []uint32{3, 1 << 8}) {
		t.Errorf("credentials %v", c)
	}
}
