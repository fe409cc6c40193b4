package tracee

import (
	"fmt"

	"github.com/virtualizing-os/vos/internal/api"
)

// Refusals of this package.
const (
	codeKernelThread  api.Code = "kernel_thread"
	CodeZombie        api.Code = "zombie"
	codeTraced        api.Code = "already_traced"
	codeNot64Bit      api.Code = "not_64_bit"
	codeUninterrupted api.Code = "uninterruptible"
	codeSeccomp       api.Code = "seccomp"
	codeShadowStack   api.Code = "shadow_stack"
	codeDispatch      api.Code = "syscall_user_dispatch"
	codeNoGadget      api.Code = "no_gadget"
	codeTransfer      api.Code = "partial_transfer"
	codeNoScratch     api.Code = "no_scratch"
	CodeNoSafePoint   api.Code = "no_safe_point"
	codePendingCall   api.Code = "pending_call"
	codeRestarted     api.Code = "restarted_call"
)

func zombieRefusal(pid int) error {
	return api.Refusal{Code: CodeZombie, Subject: fmt.Sprintf("process %d", pid),
		Detail: "it has ended and waits for its parent", Remedy: "none is needed"}
}

func tracedRefusal(pid, tracer int) error {
	return api.Refusal{Code: codeTraced, Subject: fmt.Sprintf("process %d", pid),
		Detail: fmt.Sprintf("process %d traces it", tracer),
		Remedy: "end the debugger or tracer and try again"}
}

func not64BitRefusal(pid int) error {
	return api.Refusal{Code: codeNot64Bit, Subject: fmt.Sprintf("process %d", pid),
		Detail: "it runs 32-bit code, which is not supported", Remedy: "restart the program instead"}
}

func uninterruptible(pid, tid int) error {
	return api.Refusal{Code: codeUninterrupted, Subject: fmt.Sprintf("thread %d of process %d", tid, pid),
		Detail: "it is in an uninterruptible sleep (state D): in vfork, or waiting for a device",
		Remedy: "try again when it is not"}
}

func noSafePointRefusal(pid int, detail string) error {
	return api.Refusal{Code: CodeNoSafePoint, Subject: fmt.Sprintf("process %d", pid),
		Detail: "no thread was found at a place where a function can be called in it: " + detail,
		Remedy: "try again when the program has less to do"}
}
