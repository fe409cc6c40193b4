package criu

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"slices"
	"testing"

	crfdinfo "github.com/checkpoint-restore/go-criu/v7/crit/images/fdinfo"
	lock "github.com/checkpoint-restore/go-criu/v7/crit/images/file-lock"
	ghostfile "github.com/checkpoint-restore/go-criu/v7/crit/images/ghost-file"
	"github.com/checkpoint-restore/go-criu/v7/crit/images/memfd"
	pipedata "github.com/checkpoint-restore/go-criu/v7/crit/images/pipe-data"
	crremap "github.com/checkpoint-restore/go-criu/v7/crit/images/remap-file-path"
	skinet "github.com/checkpoint-restore/go-criu/v7/crit/images/sk-inet"
	skpacket "github.com/checkpoint-restore/go-criu/v7/crit/images/sk-packet"
	tcpstream "github.com/checkpoint-restore/go-criu/v7/crit/images/tcp-stream"
)

func TestDescriptors(t *testing.T) {
	k, dir, _ := exported(t)
	var all []*crfdinfo.FileEntry
	every, _ := read(t, dir, "files.img", &crfdinfo.FileEntry{})
	byID := map[uint32]*crfdinfo.FileEntry{}
	for _, f := range every {
		if byID[f.GetId()] != nil {
			t.Errorf("file %d is there twice", f.GetId())
		}
		byID[f.GetId()] = f
	}
	table, _ := read(t, dir, "fdinfo-2.img", &crfdinfo.FdinfoEntry{})
	for i, d := range table {
		f := byID[d.GetId()]
		if d.GetFd() != uint32(i) || d.GetFlags() != uint32(i%2) || f == nil || f.GetType() != d.GetType() {
			t.Fatalf("descriptor %d: %v leads to %v", i, d, f)
		}
		all = append(all, f)
	}
	child, _ := read(t, dir, "fdinfo-3.img", &crfdinfo.FdinfoEntry{})
	if len(child) != 1 || child[0].GetId() != table[4].GetId() {
		t.Errorf("the child has %v", child)
	}
	if r := all[0].GetReg(); r.GetName() != "/var/data" || r.GetPos() != 512 || r.GetFlags() != 0o100002 || r.GetSize() != 8192 || r.GetMode() != 0o100644 ||
		r.GetFown().GetPid() != 812 || r.GetFown().GetSignum() != 29 {
		t.Errorf("file %v", r)
	}
	if d, n := all[1].GetReg(), all[2].GetReg(); d.GetMode() != 0o40644 || n.GetMode() != 0o20644 || d.Size != nil || n.Size != nil {
		t.Errorf("directory %v, device %v", d, n)
	}
	if p, q := all[4].GetPipe(), all[5].GetPipe(); p.GetPipeId() != 501 || q.GetPipeId() != 501 || p.GetFlags() != 0 || q.GetFlags() != 1 {
		t.Errorf("pipe %v, %v", p, q)
	}
	if f := all[6].GetFifo(); f.GetPipeId() != 502 || byID[f.GetRegfId()].GetReg().GetName() != "/run/f" {
		t.Errorf("fifo %v", f)
	}
	if e := all[7].GetEfd(); e.GetCounter() != 7 || e.GetFlags() != 2 {
		t.Errorf("eventfd %v", e)
	}
	if e := all[8].GetTfd(); e.GetClockid() != 1 || e.GetTicks() != 2 || e.GetSettimeFlags() != 1 || e.GetIsec() != 3 || e.GetVnsec() != 4 {
		t.Errorf("timerfd %v", e)
	}
	if e := all[9].GetSgfd(); e.GetSigmask() != 1<<16 {
		t.Errorf("signalfd %v", e)
	}
	if e := all[10].GetEpfd(); len(e.GetTfd()) != 1 || e.GetTfd()[0].GetTfd() != 7 || e.GetTfd()[0].GetEvents() != 25 || e.GetTfd()[0].GetData() != 99 {
		t.Errorf("epoll %v", e)
	}
	if e := all[11].GetIfy(); len(e.GetWd()) != 1 || e.GetWd()[0].GetFHandle().GetPath() != "/etc" || e.GetWd()[0].GetMask() != 2 || e.GetWd()[0].GetWd() != 1 {
		t.Errorf("inotify %v", e)
	}
	if e := all[13].GetReg(); !e.GetExt() || e.GetName() != "inherited[14]" {
		t.Errorf("inherited %v", e)
	}
	inodes, _ := read(t, dir, "memfd.img", &memfd.MemfdInodeEntry{})
	if e := all[12].GetMemfd(); len(inodes) != 1 || uint64(e.GetInodeId()) != inodes[0].GetInodeId() || e.GetPos() != 3 || inodes[0].GetName() != "log" ||
		inodes[0].GetShmid() != 2 || inodes[0].GetSize() != page || inodes[0].GetSeals() != 1 {
		t.Errorf("memfd %v, %v", e, inodes)
	}
	compareSockets(t, all[14:])
	compareContent(t, k, dir, table)
	compareConnection(t, dir, all[19].GetIsk())
}

func compareSockets(t *testing.T, all []*crfdinfo.FileEntry) {
	t.Helper()
	if s := all[0].GetIsk(); s.GetState() != 10 || s.GetSrcPort() != 6379 || !slices.Equal(s.GetSrcAddr(), []uint32{0x0100007f}) || s.GetBacklog() != 511 ||
		!s.GetOpts().GetReuseaddr() || s.GetOpts().GetSoBufLock() != 0 || s.GetProto() != 6 || s.V6Only != nil {
		t.Errorf("listens %v", s)
	}
	if s := all[1].GetIsk(); s.GetState() != 1 || s.GetSrcPort() != 53 || s.GetDstPort() != 54 || !slices.Equal(s.GetDstAddr(), []uint32{0, 0, 0, 2 << 24}) ||
		!s.GetV6Only() || s.GetOpts().GetSoRcvbuf() != 4096 || s.GetOpts().GetSoBufLock() != 2 {
		t.Errorf("UDP %v", s)
	}
	if a, b := all[2].GetUsk(), all[3].GetUsk(); a.GetPeer() != 604 || b.GetPeer() != 603 || a.GetIno() != 603 || b.GetShutdown() != 2 || a.Shutdown != nil || len(a.GetName()) != 0 {
		t.Errorf("pair %v, %v", a, b)
	}
	if s := all[4].GetUsk(); string(s.GetName()) != "/run/s\x00" || s.GetFilePerms().GetMode() != 0o140660 || s.GetState() != 7 || s.GetType() != 2 {
		t.Errorf("datagrams %v", s)
	}
}

func compareConnection(t *testing.T, dir string, s *skinet.InetSkEntry) {
	t.Helper()
	if s.GetState() != 4 || s.GetSrcPort() != 6379 || s.GetDstPort() != 4096 || s.GetShutdown() != 2 || s.GetOpts().GetSoSndbuf() != 8192 {
		t.Errorf("connection %v", s)
	}
	b := bytes.NewBuffer(readFile(t, dir, "tcp-stream-25e.img")[8:])
	e := next(t, b, &tcpstream.TcpStreamEntry{})
	if e.GetInqLen() != 8 || e.GetInqSeq() != 2000 || e.GetOutqLen() != 12 || e.GetOutqSeq() != 1000 || e.GetUnsqLen() != 7 || e.GetOptMask() != 7 || e.GetMssClamp() != 1460 ||
		e.GetSndWscale() != 7 || e.GetRcvWscale() != 9 || e.GetTimestamp() != 77 || e.GetSndWl1() != 11 || e.GetSndWnd() != 12 || e.GetMaxWindow() != 13 ||
		e.GetRcvWnd() != 14 || e.GetRcvWup() != 15 || b.String() != "came in sent not yet" {
		t.Errorf("stream %v, %q", e, b)
	}
}

// compareContent compares what is in pipes and queues, the deleted file and the locks.
func compareContent(t *testing.T, k *kept, dir string, table []*crfdinfo.FdinfoEntry) {
	t.Helper()
	for name, want := range map[string]string{"pipes-data.img": "in the pipe", "fifo-data.img": "first in"} {
		data, extra := read(t, dir, name, &pipedata.PipeDataEntry{})
		if b, err := base64.StdEncoding.DecodeString(extra[0]); len(data) != 1 || err != nil || string(b) != want || data[0].GetBytes() != uint32(len(want)) {
			t.Errorf("%s: %v, %q, %v", name, data, b, err)
		}
	}
	queues, extra := read(t, dir, "sk-queues.img", &skpacket.SkPacketEntry{})
	if b, err := base64.StdEncoding.DecodeString(extra[0]); len(queues) != 1 || err != nil || string(b) != "unread" || queues[0].GetIdFor() != table[16].GetId() ||
		!slices.Equal(queues[0].GetScm()[0].GetRights(), []uint32{table[7].GetId()}) {
		t.Errorf("queue %v, %q", queues, b)
	}
	remaps, _ := read(t, dir, "remap-fpath.img", &crremap.RemapFilePathEntry{})
	ghosts := map[uint32][]byte{1: k.library[:5000], 2: k.ghost}
	names := namesOf(t, dir)
	if len(remaps) != 2 || names[remaps[0].GetOrigId()] != "/usr/lib/old.so" || remaps[1].GetOrigId() != table[3].GetId() || remaps[1].GetRemapType() != crremap.RemapType_GHOST {
		t.Errorf("remaps %v", remaps)
	}
	for n, want := range ghosts {
		b := bytes.NewBuffer(readFile(t, dir, fmt.Sprintf("ghost-file-%x.img", n))[8:])
		g := next(t, b, &ghostfile.GhostFileEntry{})
		if n == 2 && (g.GetUid() != 33 || g.GetGid() != 34 || g.GetMode() != 0o100644) || n == 1 && (g.GetUid() != 3 || g.GetMode() != 0o100755) ||
			g.GetSize() != uint64(len(want)) || !g.GetChunks() {
			t.Errorf("ghost %v", g)
		}
		var content []byte
		for b.Len() > 0 {
			c := next(t, b, &ghostfile.GhostChunkEntry{})
			if c.GetOff() != uint64(len(content)) {
				t.Errorf("chunk %v", c)
			}
			content = append(content, b.Next(int(c.GetLen()))...)
		}
		if !bytes.Equal(content, want) {
			t.Errorf("deleted file %d has %d other bytes, not %d", n, len(content), len(want))
		}
	}
	locks, _ := read(t, dir, "filelocks.img", &lock.FileLockEntry{})
	if len(locks) != 2 || locks[0].GetFlag() != 1 || locks[0].GetType() != 1 || locks[0].GetStart() != 5 || locks[0].GetLen() != 5 || locks[0].GetPid() != 812 ||
		locks[1].GetFlag() != 2 || locks[1].GetLen() != 0 || locks[1].GetFd() != 0 {
		t.Errorf("locks %v", locks)
	}
}
