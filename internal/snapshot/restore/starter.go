package restore

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/x86"
)

// The starter is the program that makes the process, as only a child can be given a
// process id. It is of two pages, linked where nothing stands in its way:
//
//	text  wait for ever | the interpreter
//	data  the interpreter's table, and data
const (
	starterText = 0x200000
	starterData = starterText + pageSize
	pageSize    = 4096
)

// newStarter returns the starter as a file, and the arena that it brings.
func newStarter() (_ *os.File, _ arena, err error) {
	a := x86.NewAssembler(starterText)
	again := a.NewLabel()
	a.Bind(again)
	a.MovImm32(x86.RAX, syscall.SYS_PAUSE)
	a.Syscall()
	a.Jmp(again)
	a.Align(16)
	interpreter := interpreterAt(a)
	code, err := a.Code()
	if err != nil {
		return nil, arena{}, fmt.Errorf("assemble the starter: %w", err)
	}
	file, err := kernel.ExecutableFile("vos-restore", starterImage(code))
	if err != nil {
		return nil, arena{}, err
	}
	return file, arena{
		interpreter: interpreter,
		table:       starterData, entries: 32,
		data: starterData + 32*entryBytes, size: pageSize - 32*entryBytes,
	}, nil
}

// starterImage is the ELF file of it, which the text fills from its second page on.
func starterImage(code []byte) []byte {
	header := elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT),
		Entry: starterText, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 3,
	}
	segments := []elf.Prog64{
		{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Off: pageSize, Vaddr: starterText, Paddr: starterText,
			Filesz: uint64(len(code)), Memsz: uint64(len(code)), Align: pageSize},
		{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_W), Off: 0, Vaddr: starterData, Paddr: starterData,
			Memsz: pageSize, Align: pageSize},
		{Type: uint32(elf.PT_GNU_STACK), Flags: uint32(elf.PF_R | elf.PF_W)},
	}
	var b bytes.Buffer
	for _, v := range []any{header, segments} {
		// A bytes.Buffer takes all, and the values are of fixed size.
		_ = binary.Write(&b, binary.LittleEndian, v)
	}
	image := make([]byte, pageSize, pageSize+len(code))
	copy(image, b.Bytes())
	return append(image, code...)
}

// tracing are the options with which the starter and what it makes are traced.
const tracing = kernel.ExitKill | kernel.TraceSysGood

// start starts the starter, in a session of its own, and stops it. It dies with the calling OS thread, which becomes its tracer. A task that
// comes with an error is to be killed.
func (t *tracer) start() (_ *task, err error) { return t.startWith(nil) }

// startWith starts one that has a file as its standard input.
func (t *tracer) startWith(input *os.File) (_ *task, err error) {
	program, ground, err := newStarter()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, program.Close()) }()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, null.Close()) }()

	if input == nil {
		input = null
	}
	attr := &syscall.ProcAttr{
		Files: []uintptr{input.Fd(), null.Fd(), null.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL},
	}
	path := fmt.Sprintf("/proc/self/fd/%d", program.Fd())
	pid, err := syscall.ForkExec(path, []string{"vos-restore"}, attr)
	if err != nil {
		return nil, fmt.Errorf("start the process that makes others (a file in memory, which vm.memfd_noexec must allow): %w", err)
	}
	if err := kernel.Seize(pid, tracing); err != nil {
		return nil, errors.Join(err, syscall.Kill(pid, syscall.SIGKILL))
	}
	starter := t.task(pid)
	starter.arena = ground
	if err := kernel.Interrupt(pid); err != nil {
		return starter, err
	}
	if err := t.awaitStop(starter); err != nil {
		return starter, err
	}
	return starter, starter.prepare()
}
