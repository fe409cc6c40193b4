package tracee

import (
	"syscall"
	"testing"

	"github.com/virtualizing-os/vos/internal/kernel"
)

func TestRepairInterrupt(t *testing.T) {
	eintr := negative(int64(syscall.EINTR))
	tests := []struct {
		name     string
		regs     kernel.Registers
		repaired bool
	}{
		{"epoll_wait", kernel.Registers{OrigRAX: syscall.SYS_EPOLL_WAIT, RAX: eintr}, true},
		{"receive with a timeout", kernel.Registers{OrigRAX: syscall.SYS_RECVFROM, RAX: eintr}, true},
		{"close must not be repeated", kernel.Registers{OrigRAX: syscall.SYS_CLOSE, RAX: eintr}, false},
		{"another error", kernel.Registers{OrigRAX: syscall.SYS_EPOLL_WAIT, RAX: negative(int64(syscall.EBADF))}, false},
		{"the kernel restarts it", kernel.Registers{OrigRAX: syscall.SYS_SELECT, RAX: negative(restartNoHand)}, false},
		{"outside of a system call", kernel.Registers{OrigRAX: outsideSyscall, RAX: eintr}, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			regs := test.regs
			if got := repairInterrupt(&regs); got != test.repaired {
				t.Fatalf("repaired %v, want %v", got, test.repaired)
			}
			want := test.regs
			if test.repaired {
				want.RAX = negative(restartNoHand)
			}
			if regs != want {
				t.Errorf("registers %+v, want %+v", regs, want)
			}
		})
	}
}

func TestHomeRegisters(t *testing.T) {
	interrupted := kernel.Registers{RIP: 0x1002, RAX: negative(restartBlock), OrigRAX: syscall.SYS_NANOSLEEP, RDI: 7}
	want := kernel.Registers{RIP: 0x1000, RAX: syscall.SYS_NANOSLEEP, OrigRAX: outsideSyscall, RDI: 7}
	if got := homeRegisters(interrupted); got != want {
		t.Errorf("interrupted call: %+v, want %+v", got, want)
	}
	finished := kernel.Registers{RIP: 0x1002, RAX: 5, OrigRAX: syscall.SYS_READ}
	want = kernel.Registers{RIP: 0x1002, RAX: 5, OrigRAX: outsideSyscall}
	if got := homeRegisters(finished); got != want {
		t.Errorf("finished call: %+v, want %+v", got, want)
	}
	running := kernel.Registers{RIP: 0x1234, RAX: negative(restartSys), OrigRAX: outsideSyscall}
	if got := homeRegisters(running); got != running {
		t.Errorf("running code: %+v, want it unchanged", got)
	}
}
