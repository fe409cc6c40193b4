package restore

import (
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
	"github.com/virtualizing-os/vos/internal/kernel"
	"github.com/virtualizing-os/vos/internal/x86"
)

// InitName is the name of the process that Init's program is.
const InitName = "vos-init"

// Init is a program for the first process of a pid namespace, once what was to be built
// in it is there: it waits for all whose parents end, and ends when nobody is left, those
// who have come from outside included: a vos that checkpoints the program is not to end
// with it. It has two pages, and holds no descriptor open.
type Init struct{ file *os.File }

// NewInit makes the program, so that nothing but a lack of memory can keep it from being
// executed.
func NewInit() (*Init, error) {
	a := x86.NewAssembler(starterText)
	begin, again, end := a.NewLabel(), a.NewLabel(), a.NewLabel()
	a.Jmp(begin)
	name := a.Address()
	a.Raw([]byte(InitName + "\x00")...)
	pause := a.Address()
	a.Raw(binary.LittleEndian.AppendUint64(make([]byte, 8), uint64(10*time.Millisecond))...) // a timespec
	a.Bind(begin)
	a.MovImm32(x86.RAX, syscall.SYS_PRCTL)
	a.MovImm32(x86.RDI, prctlName)
	a.MovImm64(x86.RSI, name)
	a.Syscall()
	a.Bind(again)
	a.MovImm32(x86.RAX, syscall.SYS_WAIT4)
	a.MovImm64(x86.RDI, anyChild)
	a.MovImm32(x86.RSI, 0)
	a.MovImm32(x86.RDX, waitAll)
	a.MovImm32(x86.R10, 0)
	a.Syscall()
	a.CmpImm(x86.RAX, -int32(syscall.ECHILD))
	a.Jcc(x86.NotEqual, again)
	a.MovImm32(x86.RAX, syscall.SYS_KILL) // all others, with no signal
	a.MovImm64(x86.RDI, anyChild)
	a.MovImm32(x86.RSI, 0)
	a.Syscall()
	a.CmpImm(x86.RAX, -int32(syscall.ESRCH))
	a.Jcc(x86.Equal, end)
	a.MovImm32(x86.RAX, syscall.SYS_NANOSLEEP)
	a.MovImm64(x86.RDI, pause)
	a.MovImm32(x86.RSI, 0)
	a.Syscall()
	a.Jmp(again)
	a.Bind(end)
	a.MovImm32(x86.RAX, syscall.SYS_EXIT_GROUP)
	a.MovImm32(x86.RDI, 0)
	a.Syscall()
	code, err := a.Code()
	if err != nil {
		return nil, fmt.Errorf("assemble the first process of a namespace: %w", err)
	}
	file, err := kernel.ExecutableFile(InitName, starterImage(code))
	return &Init{file}, err
}

const anyChild = ^uint64(0)

// OnlyIDs reports whether ids that are taken are all that speaks against restoring: in a
// pid namespace of its own the program can have them.
func OnlyIDs(refusals []api.Refusal) bool {
	return len(refusals) > 0 && !slices.ContainsFunc(refusals, func(r api.Refusal) bool { return r.Code != codePIDTaken })
}

// Become lets the calling process be that program. It returns on failure alone.
func (i *Init) Become() error {
	for fd := range 3 {
		syscall.CloseOnExec(fd)
	}
	return fmt.Errorf("become the first process of the namespace: %w", syscall.Exec(fmt.Sprintf("/proc/self/fd/%d", i.file.Fd()), []string{InitName}, nil))
}
