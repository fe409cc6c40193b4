package tracee

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/procfs"
)

// A scratch is memory of the process that holds nothing: the lowest end of the
// main thread's stack mapping, which execve makes at least 128 KiB longer than
// the program needs to start. It is not the memory below the borrowed thread's
// own stack pointer, which on a goroutine's or coroutine's small stack belongs
// to somebody else.
//
// That it holds nothing is known in one of three ways: no page of it was ever
// touched; or the main thread is stopped with its stack pointer far above; or
// it holds what an earlier session left, to the byte (see seal).
type scratch struct {
	start, end uint64 // the stack mapping
}

const (
	pageSize = 4096

	// Room below the chain. It is used only if the tracer dies and a signal
	// handler runs on the way home; the mapping grows on its own beyond it.
	handlerRoom = 16 << 10

	// How far a used stack's pointer must stay away from memory that was
	// touched once and is dead now.
	deadDistance = 64 << 10
)

// findScratch returns the stack mapping of the process.
func findScratch(process *procfs.Process) (scratch, error) {
	maps, err := process.Maps()
	if err != nil {
		return scratch{}, err
	}
	for _, m := range maps {
		if m.Kind == procfs.KindStack {
			return scratch{m.Start, m.End}, nil
		}
	}
	return scratch{}, noScratchRefusal(process.PID(), "it has no stack mapping")
}

// place returns the address for length bytes, a multiple of 64, given that
// thread t is stopped.
func (s *Session) place(a scratch, t *thread, length uint64) (uint64, error) {
	need := (handlerRoom + length + pageSize - 1) &^ (pageSize - 1)
	if a.end-a.start < need {
		return 0, noScratchRefusal(s.process.PID(), "its stack mapping is too small")
	}
	at := a.start + handlerRoom
	touched, err := s.pagemap.TouchedPages(nil, a.start, a.start+need)
	if err != nil {
		return 0, err
	}
	if len(touched) > 0 {
		if err := s.pendingCall(at); err != nil {
			return 0, err
		}
	}
	if len(touched) > 0 {
		if covered, beyond, ok := s.readSeal(at, length); ok && covered < length-sealBytes {
			return 0, &unfinished{area: Range{a.start, max(a.start+need, at+length+beyond)}, at: at, length: length}
		}
	}
	if main := s.threads[s.process.PID()]; main != nil && main.stopped {
		t = main // whichever is borrowed
	}
	farAbove := t.tid == s.process.PID() && t.regs.RSP < a.end && t.regs.RSP >= a.start+need+deadDistance
	if len(touched) == 0 || farAbove {
		return at, nil
	}
	if s.sealed(Range{a.start, a.start + need}, touched, at, length) {
		return at, nil
	}
	return 0, noScratchRefusal(s.process.PID(), "the whole of its stack mapping has been used")
}

func noScratchRefusal(pid int, detail string) error {
	return api.Refusal{Code: codeNoScratch, Subject: fmt.Sprintf("process %d", pid),
		Detail: "no memory to prepare a thread's way home: " + detail,
		Remedy: "try again when the program's main thread uses less of its stack"}
}

// A seal stands at the end of a chain's memory and says what the memory held
// when it was written: from a distance below the seal up to the seal itself. A
// session writes it with the way home, over that alone, and again when it ends,
// over all. Where it still fits, no frame of the program's stack has come to lie
// there since.
//
//	magic (16 bytes) | bytes covered (8) | CRC-32C of them (4) | beyond (4)
//
// Beyond the seal, for as many times 64 bytes, are ways home of other threads (AskEach).
const (
	sealMagic = "vOS scratch v1\x00\x7f"
	sealBytes = 32
)

var sealTable = crc32.MakeTable(crc32.Castagnoli)

func encodeSeal(covered []byte) []byte {
	seal := append([]byte(nil), sealMagic...)
	seal = binary.LittleEndian.AppendUint64(seal, uint64(len(covered)))
	return binary.LittleEndian.AppendUint64(seal, uint64(crc32.Checksum(covered, sealTable)))
}

const (
	sealBeyond = 28 // offset in a seal
	beyondUnit = 64
)

// sealed reports whether the touched pages of an area hold what a session left
// there that came to its end.
func (s *Session) sealed(area Range, touched []procfs.PageRange, at, length uint64) bool {
	if covered, _, ok := s.readSeal(at, length); !ok || covered < length-sealBytes {
		return false
	}
	for _, r := range touched {
		if r.Start < at&^(pageSize-1) || r.End > area.End {
			return false
		}
	}
	return true
}

// readSeal returns how many bytes the seal covers of the memory of a chain, and how many
// beyond it are in use; ok is false where there is none that fits.
func (s *Session) readSeal(at, length uint64) (covered, beyond uint64, ok bool) {
	memory := make([]byte, length)
	if _, err := s.memory.ReadAt(memory, int64(at)); err != nil {
		return 0, 0, false
	}
	seal := memory[length-sealBytes:]
	if string(seal[:len(sealMagic)]) != sealMagic {
		return 0, 0, false
	}
	covered = binary.LittleEndian.Uint64(seal[16:])
	if covered > length-sealBytes {
		return 0, 0, false
	}
	content := memory[length-sealBytes-covered : length-sealBytes]
	beyond = beyondUnit * uint64(binary.LittleEndian.Uint32(seal[sealBeyond:]))
	return covered, beyond, string(encodeSeal(content)[:sealBeyond]) == string(seal[:sealBeyond])
}

// unfinished is that the scratch memory is of a session that died before its end.
// A thread may still be on the way home that stands there: it need not have run
// since.
type unfinished struct {
	area       Range // where ways home stand
	at, length uint64
}

func (u *unfinished) Error() string { return "a session that died has left its scratch memory" }

// settle waits until every thread has come home from a session that died, and
// seals what that has left, all that is touched of it included. It is a session
// of its own, with all threads stopped.
func (s *Session) settle(u *unfinished) error {
	if err := s.StopAll(); err != nil {
		return err
	}
	for _, t := range s.threads {
		if t.regs.RSP >= u.area.Start && t.regs.RSP < u.area.End {
			return errOnItsWay
		}
	}
	memory := make([]byte, u.length-sealBytes)
	if _, err := s.memory.ReadAt(memory, int64(u.at)); err != nil {
		return err
	}
	_, err := s.memory.WriteAt(encodeSeal(memory), int64(u.at+u.length-sealBytes))
	return err
}

var errOnItsWay = errors.New("a thread is on its way home from a session that died")
