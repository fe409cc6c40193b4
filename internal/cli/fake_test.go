package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/virtualizing-os/vos/internal/api"
)

// A fake is an executive that emits what it holds. Scripts choose one by name in
// $FAKE; with $FAKE_REQUEST it writes the request it received to that file.
type fake struct {
	programs      []api.Program
	modules       []api.Module
	verifications []api.Verification
	operations    []api.Operation
	currencies    []api.Currency
	holdings      []api.Holdings
	functions     []api.FunctionHandles
	redirections  []api.Redirection
	checks        []api.Check
	snapshots     []api.Snapshot
	restarts      []api.Restart
	image         api.Image
	menus         []api.Menu
	controls      []api.Control
	interceptions []api.Interception
	usageReports  []api.UsageReport
	err           error
	interrupt     bool          // interrupts itself after emitting, and waits
	hang          bool          // waits for the context after emitting
	slow          time.Duration // before each result, and each progress
	progress      []api.Progress
}

func newFake() (api.Executive, error) {
	name := os.Getenv("FAKE")
	if name == "unmade" {
		return nil, fmt.Errorf("read pages of programs: %w: Linux 5.10 is the least, this is 4.19", api.ErrNotSupported)
	}
	f, ok := fakes[name]
	if !ok {
		return nil, fmt.Errorf("no fake %q", name)
	}
	return f, nil
}

func (f fake) Programs(ctx context.Context, r api.ProgramsRequest, emit func(api.Program) error) error {
	return play(ctx, f, r, f.programs, emit)
}

func (f fake) Modules(ctx context.Context, r api.ModulesRequest, emit func(api.Module) error) error {
	return play(ctx, f, r, f.modules, emit)
}

func (f fake) Verify(ctx context.Context, r api.VerifyRequest, emit func(api.Verification) error) error {
	return play(ctx, f, r, f.verifications, emit)
}

func (f fake) Refresh(ctx context.Context, r api.RefreshRequest, emit func(api.Operation) error) error {
	return play(ctx, f, r, f.operations, emit)
}

func (f fake) Replace(ctx context.Context, r api.ReplaceRequest, emit func(api.Operation) error) error {
	f.tell(r.Progress)
	return play(ctx, f, r, takenOver(f.operations, api.Replaced), emit)
}

func (f fake) Rollback(ctx context.Context, r api.RollbackRequest, emit func(api.Operation) error) error {
	f.tell(r.Progress)
	return play(ctx, f, r, takenOver(f.operations, api.RolledBack), emit)
}

func (f fake) Menu(ctx context.Context, r api.MenuRequest, emit func(api.Menu) error) error {
	return play(ctx, f, r, f.menus, emit)
}

func (f fake) Control(ctx context.Context, r api.ControlRequest, emit func(api.Control) error) error {
	return play(ctx, f, r, f.controls, emit)
}

func (f fake) Attach(ctx context.Context, r api.AttachRequest, emit func(api.Interception) error) error {
	return play(ctx, f, r, f.interceptions, emit)
}

func (f fake) Detach(ctx context.Context, r api.DetachRequest, emit func(api.Interception) error) error {
	return play(ctx, f, r, f.interceptions, emit)
}

func (f fake) Usage(ctx context.Context, r api.UsageRequest, emit func(api.UsageReport) error) error {
	if r.Every > 0 && f.interrupt { // as the machine does
		err := play(ctx, f, r, f.usageReports, emit)
		if errors.Is(err, context.Canceled) {
			err = nil
		}
		return err
	}
	return play(ctx, f, r, f.usageReports, emit)
}

func (f fake) Outdated(ctx context.Context, r api.OutdatedRequest, emit func(api.Currency) error) error {
	return play(ctx, f, r, f.currencies, emit)
}

func (f fake) Handles(ctx context.Context, r api.HandlesRequest, emit func(api.Holdings) error) error {
	return play(ctx, f, r, f.holdings, emit)
}

func (f fake) Functions(ctx context.Context, r api.FunctionsRequest, emit func(api.FunctionHandles) error) error {
	return play(ctx, f, r, f.functions, emit)
}

func (f fake) Check(ctx context.Context, r api.CheckRequest, emit func(api.Check) error) error {
	return play(ctx, f, r, f.checks, emit)
}

func (f fake) Restart(ctx context.Context, r api.RestartRequest, emit func(api.Restart) error) error {
	return play(ctx, f, r, f.restarts, emit)
}

func (f fake) Checkpoint(ctx context.Context, r api.CheckpointRequest, emit func(api.Snapshot) error) error {
	r.Progress(api.SnapshotProgress{Done: 1 << 20, Total: 1 << 30})
	return play(ctx, f, r, f.snapshots, emit)
}

func (f fake) Restore(ctx context.Context, r api.RestoreRequest, emit func(api.Snapshot) error) error {
	r.Progress(api.SnapshotProgress{Done: 1 << 20, Total: 1 << 30})
	return play(ctx, f, r, f.snapshots, emit)
}

func (f fake) Image(_ context.Context, r api.ImageRequest) (api.Image, error) {
	i := f.image
	if i.CRIU = r.CRIU; r.CRIU != "" {
		i.Residual = []string{"thread 812: it waits for its whole time again"}
	}
	return i, errors.Join(remember(r), f.err)
}

// tell says how far the fake has come.
func (f fake) tell(progress func(api.Progress)) {
	for _, p := range f.progress {
		time.Sleep(f.slow)
		progress(p)
	}
}

func (f fake) Redirect(ctx context.Context, r api.RedirectRequest, emit func(api.Redirection) error) error {
	return play(ctx, f, r, f.redirections, emit)
}

func play[T any](ctx context.Context, f fake, request any, results []T, emit func(T) error) error {
	if err := remember(request); err != nil {
		return err
	}
	for _, r := range results {
		time.Sleep(f.slow)
		if err := emit(r); err != nil {
			return errors.Join(fmt.Errorf("emit: %w", err), f.err)
		}
	}
	if f.interrupt {
		if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
			return err
		}
	}
	if f.interrupt || f.hang {
		<-ctx.Done()
		time.Sleep(20 * time.Millisecond) // the undo, which the command has to wait for
		fmt.Fprintln(os.Stderr, "fake: undone")
		return fmt.Errorf("refresh 812: %w", ctx.Err())
	}
	return f.err
}

// remember writes down what was asked.
func remember(request any) error {
	file := os.Getenv("FAKE_REQUEST")
	if file == "" {
		return nil
	}
	text, err := json.Marshal(request)
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}

var tls = api.Refusal{
	Code: "tls_initial_exec", Subject: "libfoo.so",
	Detail: "its thread-local storage is static", Remedy: "restart the program",
}

func corruption(pid int) api.Difference {
	return api.Difference{
		PID: pid, Program: "nginx", Module: "libz.so.1", Section: ".text", Function: "inflate+0x40",
		Address: "0x7f0000003040", Offset: "0x3040", Length: 12,
		Found: "cccccccccccccccccccccccc", Expected: "4889e54154554889fd534883", Kind: api.KindCorruption,
	}
}

func breakpoint(pid int) api.Difference {
	return api.Difference{
		PID: pid, Program: "nginx", Module: "libc.so.6", Section: ".text", Function: "malloc", Address: "0x7f0000103000",
		Offset: "0x103000", Length: 1, Found: "cc", Expected: "f3", Kind: api.KindBreakpoint,
	}
}

func operation(pid int, module string, outcome api.Outcome) api.Operation {
	op := api.Operation{PID: pid, Program: "nginx", Module: module, Path: "/usr/lib/" + module, Outcome: outcome, TotalUS: 1900, From: "c0ffee", To: "c0ffee"}
	switch outcome {
	case api.Refreshed:
		op.BorrowUS, op.Pages, op.Words = 84, 2, 1
	case api.Planned:
		op.Pages, op.Words, op.TotalUS = 2, 1, 0
		op.Steps = []string{"madvise 0x7f0000003000 2 pages", "write 0x7f0000005010 1 word"}
	case api.Refused:
		op.Refusals = []api.Refusal{tls}
	case api.Failed:
		op.Error = "stop thread 813: timed out"
	}
	return op
}

// takenOver is what operations would have been if they were to let another
// build take over.
func takenOver(operations []api.Operation, done api.Outcome) []api.Operation {
	from, to, generation := "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00", "decade00decade00decade00decade00decade00", 1
	functions := 12
	if done == api.RolledBack { // the build is there, and merely switched to
		from, to, generation, functions = to, from, 0, 0
	}
	var all []api.Operation
	for _, op := range operations {
		op.From, op.To, op.Pages, op.Words = from, to, 0, 0
		switch op.Outcome {
		case api.Refreshed:
			op.Outcome, op.Functions, op.Generation, op.PauseUS, op.BorrowUS, op.TotalUS = done, functions, generation, 640, 1200, 48_000
		case api.Planned:
			op.Functions, op.Generation = functions, generation
			op.Steps = []string{"map libz.so.1 (decade00) at 0x7e0000000000", "lead 12 functions to it"}
		case api.Clean:
			op.From, op.Generation = to, generation
		case api.Refused:
			op.To = ""
		}
		all = append(all, op)
	}
	return all
}

// upgraded is libssl3 of a process after an upgrade.
func upgraded(pid int) api.OutdatedModule {
	return api.OutdatedModule{
		PID: pid, Program: "nginx", Module: "libssl.so.3", Path: "/usr/lib/x86_64-linux-gnu/libssl.so.3", Package: "libssl3",
		RunningVersion: "3.0.15-1~deb12u1", InstalledVersion: "3.0.16-1~deb12u1",
		RunningBuildID: "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00", InstalledBuildID: "decade00decade00decade00decade00decade00",
		Change: api.FileReplaced, Verdict: api.VerdictRestart, Unit: "nginx.service",
	}
}

// unpacked is a library that a process unpacked for itself and deleted.
func unpacked(pid int) api.OutdatedModule {
	return api.OutdatedModule{
		PID: pid, Program: "java", Module: "libnative.so", Path: "/tmp/libnative123.so", RunningBuildID: "",
		Change: api.FileDeleted, Verdict: api.VerdictNone, Container: "0123456789abcdef",
	}
}

var unreachable = api.UncomparedModule{Module: "libc.so.6", Path: "/usr/lib/libc.so.6", Refusal: api.Refusal{
	Code: "path_unknown", Subject: "/usr/lib/libc.so.6", Detail: "it is on a mount that neither the process nor vos sees", Remedy: "none is known",
}}

func joined(errs ...error) error { return errors.Join(errs...) }

// hostileName clears the screen, moves the cursor, ends the line, sets the title
// in C1 codes, reverses the writing direction, and is no UTF-8.
const hostileName = "\x1b[2J\r\nevil\u009d0;x\u009c\u202e\xff"

var (
	errGone         = fmt.Errorf("find program 4711: %w", api.ErrGone)
	errNotPermitted = fmt.Errorf("open /proc/812/mem: %w", api.ErrNotPermitted)
)

var outside = api.Refusal{
	Code: "outside_end", Subject: "descriptor 1 of process 812",
	Detail: "its terminal /dev/pts/3 is not the program's own", Remedy: "--inherit, and vos restore --inherit 1 gives it another one",
}

var redisImage = api.Image{
	Directory: "/var/lib/vos/redis", ID: "00112233445566778899aabbccddeeff", Taken: time.Date(2026, 3, 1, 12, 0, 0, 0, time.Local),
	Model: "enhanced", Kernel: "6.18.0", Hostname: "web2", CPU: "Example CPU", Bytes: 3 << 20,
	Processes: []api.ImageProcess{{
		PID: 812, Parent: 0, Program: "redis-server", Command: []string{"redis-server", "*:6379"}, Executable: "/usr/bin/redis-server",
		Threads: 5, MappedBytes: 64 << 20, KeptBytes: 3 << 20,
		Mappings: []api.ImageMapping{
			{Start: "0x5555555db000", End: "0x555555664000", Kind: "anonymous", Protection: "rw-", Name: "[heap]", KeptBytes: 3 << 20},
			{Start: "0x7ffff7fc1000", End: "0x7ffff7fc3000", Kind: "vdso", Protection: "r-x", Name: "[vdso]"},
		},
		Descriptors: []api.ImageDescriptor{{FD: 0, Kind: "file", Path: "/dev/null"}, {FD: 6, Kind: "socket", Path: "tcp *:6379"}, {FD: 5, Kind: "epoll"}},
	}},
	Ended: []api.ImageEnded{{PID: 815, Parent: 812, Program: "redis-server", Status: "exit code 7"}},
}

var fakes = map[string]fake{
	"checked": {checks: []api.Check{
		{PID: 811, Program: "redis-server", Model: "enhanced", Checkpointable: true, Threads: 5, MappedBytes: 64 << 20, KeptBytes: 3 << 20, Descriptors: 8},
		{PID: 812, Program: "redis-server", Model: "full", Threads: 5, MappedBytes: 64 << 20, KeptBytes: 3 << 20, Descriptors: 8, Refusals: []api.Refusal{outside}},
	}},
	"restarted": {restarts: []api.Restart{
		{PID: 811, Program: "redis-server", Outcome: api.Restarted, FreezeUS: 7100, PausedUS: 441000, TotalUS: 960000, Rounds: 64,
			Bytes: 1 << 30, DroppedBytes: 3 << 20, Before: api.MemoryState{Mappings: 61, ResidentBytes: 1100 << 20, PageTablesBytes: 2200 << 10},
			After: api.MemoryState{Mappings: 60, ResidentBytes: 1097 << 20, PageTablesBytes: 2198 << 10},
			Left:  []api.LeftMemory{{Reason: "of a file", Mappings: 40, Bytes: 12 << 20}, {Reason: "the stack of the main thread", Mappings: 1, Bytes: 132 << 10}}},
		{PID: 812, Program: "redis-server", Outcome: api.Refused, Refusals: []api.Refusal{{Code: "pinned_memory", Subject: "process 812",
			Detail: "io_uring may read to and write from its memory meanwhile", Remedy: "vos checkpoint and vos restore, or restart the program"}}}}},
	"restart-planned": {restarts: []api.Restart{{PID: 811, Program: "redis-server", Outcome: api.Planned, Bytes: 1 << 30}}},
	"checkpointed": {snapshots: []api.Snapshot{{PID: 812, Program: "redis-server", Outcome: api.Checkpointed, Model: "enhanced",
		FreezeUS: 3200, TotalUS: 61000, Bytes: 3 << 20, Image: "/var/lib/vos/redis", Residual: []string{"it is in a session of its own"}}}},
	"checkpoint-planned": {snapshots: []api.Snapshot{{PID: 812, Program: "redis-server", Outcome: api.Planned, Model: "enhanced",
		TotalUS: 900, Image: "/var/lib/vos/redis", Steps: []string{"keep 3.0 MiB of 64.0 MiB"}}}},
	"checkpoint-refused": {snapshots: []api.Snapshot{{PID: 812, Program: "redis-server", Outcome: api.Refused, Model: "full",
		Image: "/var/lib/vos/redis", Refusals: []api.Refusal{outside}}}},
	"restored": {snapshots: []api.Snapshot{{PID: 812, Program: "redis-server", Outcome: api.Restored, Model: "enhanced",
		TotalUS: 4100, Bytes: 3 << 20, Image: "/var/lib/vos/redis"}}},
	"snapshot-failed": {snapshots: []api.Snapshot{{PID: 812, Program: "redis-server", Outcome: api.Failed, Model: "enhanced",
		Image: "/var/lib/vos/redis", Error: "write /var/lib/vos/redis: no space left on device"}}},
	"image":   {image: redisImage},
	"nothing": {},
	"menu": {menus: []api.Menu{
		{PID: 4000, Program: "galculator", Outcome: api.Added, MenuBars: 2, Changed: 1, Mapped: "0x7f0000000000-0x7f0000002000", BorrowUS: 240, TotalUS: 31_000},
		{PID: 4001, Program: "galculator", Outcome: api.Clean, MenuBars: 1, Mapped: "0x7f0000000000-0x7f0000002000", TotalUS: 9000},
	}},
	"menu-planned":  {menus: []api.Menu{{PID: 4000, Program: "galculator", Outcome: api.Planned, Steps: []string{"map 8192 bytes", "let the main loop add an item"}}}},
	"menu-kept":     {menus: []api.Menu{{PID: 4000, Program: "galculator", Outcome: api.Removed, MenuBars: 1, Changed: 1, Mapped: "0x7f0000000000-0x7f0000002000", Residual: []string{"0x7f0000000000-0x7f0000002000 /memfd:vos-menu, 8192 bytes: a thread is within it"}}}},
	"menu-refused":  {menus: []api.Menu{{PID: 4000, Program: "editor", Outcome: api.Refused, Refusals: []api.Refusal{{Code: "toolkit_unserved", Subject: "process 4000", Detail: "its toolkit is Qt 6", Remedy: "use vos ctl"}}}}},
	"menu-failed":   {menus: []api.Menu{{PID: 4000, Program: "editor", Outcome: api.Failed, Error: "read the state: input/output error"}}},
	"asked":         {controls: []api.Control{{PID: 4000, Program: "galculator", Verb: api.VerbStatus, Outcome: api.Done, Lines: []string{"galculator (4000) has run for 2h.", "No module is corrupted."}}}},
	"asked-corrupt": {controls: []api.Control{{PID: 4000, Program: "galculator", Verb: api.VerbVerify, Outcome: api.Corrupt, Lines: []string{"1 module differs."}}}},
	"asked-refused": {controls: []api.Control{{PID: 4000, Program: "galculator", Verb: api.VerbRefresh, Outcome: api.Refused, Lines: []string{"Not refreshed: libfoo.so."}, Refusals: []api.Refusal{tls}}}},
	"asked-failed":  {controls: []api.Control{{PID: 4000, Program: "galculator", Verb: api.VerbRefresh, Outcome: api.Failed, Lines: []string{"Failed: libz.so.1."}, Error: "libz.so.1 (stop thread: timed out)"}}},
	"shown":         {controls: []api.Control{{PID: 4000, Program: "galculator", Verb: api.VerbStatus, Outcome: api.Done, Lines: []string{"fine"}, Shown: true}}},
	"unshown":       {controls: []api.Control{{PID: 4000, Program: "galculator", Verb: api.VerbStatus, Outcome: api.Done, Lines: []string{"two", "lines"}, Unshown: "it has no menu"}}},
	"used": {
		modules: []api.Module{{PID: 811, Program: "nginx", Module: "libz.so.1", Path: "/usr/lib/libz.so.1", BuildID: "c0ffee", Base: "0x7f0000000000", Kind: "library", File: api.FileSame, Refreshable: true, Imported: new(30), Used: new(7)}},
		usageReports: []api.UsageReport{{
			Interceptions: []api.Interception{{PID: 811, Program: "nginx", Outcome: api.Attached, Memory: true, Slots: 415, PauseUS: 210}, {PID: 812, Program: "nginx", Outcome: api.Attached, Memory: true, Restarted: true, Slots: 415, PauseUS: 110}},
			Usages: []api.Usage{
				usage(811, "nginx", 0),
				usage(811, "libz.so.1", 10_000_000),
				{PID: 811, Program: "nginx", Module: "libidle.so", Base: "0x2000", Imported: 3},
				{PID: 811, Program: "nginx", Module: api.ByPointer, Base: "0x1", Calls: 9, Uncounted: notCounted[:1]},
			},
		}},
		interceptions: []api.Interception{{PID: 811, Program: "nginx", Outcome: api.Detached, Slots: 415, PauseUS: 190, Residual: []string{"0x7f0000000000-0x7f0000100000: the program may have copied 3 of its addresses"}}},
	},
	"used-twice": {usageReports: []api.UsageReport{
		{Usages: []api.Usage{{PID: 811, Program: "nginx", Module: "nginx", Base: "0x1000", Imported: 30, Used: 7, Calls: 100}}},
		{Round: 1, Ended: []int{812}, Interceptions: []api.Interception{{PID: 811, Program: "nginx", Outcome: api.Attached, Slots: 12}},
			Usages: []api.Usage{{PID: 811, Program: "nginx", Module: "nginx", Base: "0x1000", Round: 1, Imported: 30, Used: 8, Calls: 120, ForUS: 2_000_000, CallsPerSecond: 10}}},
	}},
	"folded": {usageReports: []api.UsageReport{{Samples: []api.SampledBlocks{
		{PID: 811, Program: "nginx", Module: "libz.so.1", Caller: "zcalloc", Function: "malloc@GLIBC_2.2.5", Bytes: 1 << 20},
		{PID: 811, Program: "two words", Module: "a;b", Caller: hostileName, Function: "", Bytes: 3},
	}}}},
	"use-refused": {usageReports: []api.UsageReport{{
		Interceptions: []api.Interception{{PID: 812, Program: "nginx", Outcome: api.Refused, Refusals: []api.Refusal{{Code: "interceptor_corrupt", Subject: "nginx", Detail: "the interceptor at 0x7f0000000000: corrupt interceptor", Remedy: "restart the program"}}}},
	}}},
	"attached": {interceptions: []api.Interception{
		{PID: 811, Program: "nginx", Outcome: api.Attached, Memory: true, Modules: 8, Functions: 412, Slots: 415, Mapped: 3 << 20, PauseUS: 210, BorrowUS: 90, TotalUS: 21_000, Uncounted: notCounted},
		{PID: 812, Program: "nginx", Outcome: api.Clean, Memory: true, Modules: 8, Functions: 412, Mapped: 3 << 20, TotalUS: 9000},
	}},
	"attach-planned": {interceptions: []api.Interception{{PID: 811, Program: "nginx", Outcome: api.Planned, Modules: 8, Functions: 412, Slots: 415, Mapped: 3 << 20, Steps: []string{"map the interceptor at 0x7f0000000000-0x7f0000300000 (3072 KiB): stubs for 412 functions as 8 modules call them", "lead 415 import slots to stubs"}}}},
	"attach-refused": {interceptions: []api.Interception{
		{PID: 811, Program: "nginx", Outcome: api.Attached, Restarted: true, Memory: true, Slots: 3, PauseUS: 100},
		{PID: 812, Program: "nginx", Outcome: api.Refused, Refusals: []api.Refusal{{Code: "interceptor_corrupt", Subject: "nginx", Detail: "the interceptor at 0x7f0000000000: corrupt interceptor", Remedy: "restart the program"}}},
	}},
	"detach-refused": {interceptions: []api.Interception{{PID: 812, Program: "nginx", Outcome: api.Refused, Refusals: []api.Refusal{tls}}}},
	"attach-failed":  {interceptions: []api.Interception{{PID: 811, Program: "nginx", Outcome: api.Failed, Error: "stop thread 813: timed out"}}},
	"detached":       {interceptions: []api.Interception{{PID: 811, Program: "nginx", Outcome: api.Detached, Functions: 3, Mapped: 1 << 20, Slots: 415, PauseUS: 190, BorrowUS: 40, TotalUS: 8000, Residual: []string{"0x7f0000000000-0x7f0000100000: the program may have copied 3 of its addresses"}}}},
	"nginx": {
		programs: []api.Program{{
			Name: "nginx", PID: 811, AgeMS: 273_600_000, Threads: 3, PSSBytes: 12_897_485, Modules: 9, Outdated: 1, Corrupt: 1,
			Processes: []api.Process{
				{PID: 811, PPID: 1, Name: "nginx", Executable: "/usr/sbin/nginx", State: "S", AgeMS: 273_600_000, Threads: 1, PSSBytes: 4_000_000, Modules: 9, OutdatedModules: []string{"libz.so.1"}},
				{PID: 812, PPID: 811, Name: "nginx", Executable: "/usr/sbin/nginx", UID: 33, State: "S", AgeMS: 273_599_000, Threads: 2, PSSBytes: 8_897_485, Modules: 9, OutdatedModules: []string{"libz.so.1"}, CorruptModules: []string{"libz.so.1"}},
			},
		}, {
			Name: "sshd", PID: 90, AgeMS: 42_000, Threads: 1, Modules: 0, Partial: true,
			Unread:    []string{"memory: not permitted"},
			Processes: []api.Process{{PID: 90, PPID: 1, Name: "sshd", Executable: "/usr/sbin/sshd", State: "S", AgeMS: 42_000, Threads: 1, Unread: []string{"memory: not permitted"}}},
		}},
		modules: []api.Module{
			{PID: 812, Program: "nginx", Module: "nginx", Path: "/usr/sbin/nginx", BuildID: "0123456789abcdef0123456789abcdef01234567", Base: "0x555555554000", Kind: "executable", TextBytes: 901_120, DataBytes: 151_552, MappedBytes: 1_310_720, File: api.FileSame, Refreshable: true},
			{PID: 812, Program: "nginx", Module: "libfoo.so", Path: "/opt/libfoo.so", Base: "0x7f0000000000", Kind: "library", TextBytes: 4096, MappedBytes: 16384, DirtyTextPages: 3, File: api.FileReplaced, Outdated: true, Corrupt: true, Refusals: []api.Refusal{tls}},
		},
		verifications: []api.Verification{
			{PID: 811, Program: "nginx", Module: "libz.so.1", Path: "/usr/lib/libz.so.1", Pages: 3, Words: 40, TotalUS: 210},
			{PID: 812, Program: "nginx", Module: "libz.so.1", Path: "/usr/lib/libz.so.1", Pages: 3, Words: 40, Differences: []api.Difference{corruption(812)}, Corrupt: true, TotalUS: 230},
		},
		operations: []api.Operation{
			operation(811, "libz.so.1", api.Refreshed), operation(812, "libz.so.1", api.Refreshed),
			operation(812, "libc.so.6", api.Clean),
		},
		redirections: []api.Redirection{redirected(811, api.Redirected), redirected(812, api.Redirected)},
		currencies: []api.Currency{
			{PID: 90, Program: "sshd", Modules: 9},
			{PID: 811, Program: "nginx", Modules: 9, Outdated: []api.OutdatedModule{upgraded(811)}},
			{PID: 812, Program: "nginx", Modules: 9, Outdated: []api.OutdatedModule{upgraded(812), {
				PID: 812, Program: "nginx", Module: "libfoo.so", Path: "/opt/libfoo.so", Change: api.FileDeleted, Verdict: api.VerdictRestart, Unit: "nginx.service",
				Refusals: []api.Refusal{{Code: "file_unreadable", Subject: "libfoo.so", Detail: "map_files needs CAP_SYS_ADMIN", Remedy: "run vos as root"}},
			}}},
			{PID: 900, Program: "java", Modules: 20, Outdated: []api.OutdatedModule{unpacked(900)}},
			{PID: 950, Program: "editor", Modules: 4, Outdated: []api.OutdatedModule{{
				PID: 950, Program: "editor", Module: "editor", Path: "/usr/bin/editor", RunningBuildID: "feed00112233445566", InstalledBuildID: "bead00112233445566",
				Change: api.FileReplaced, Verdict: api.VerdictRestart,
			}}},
		},
	},
	"replaced": {modules: []api.Module{
		{PID: 812, Program: "nginx", Module: "nginx", Path: "/usr/sbin/nginx", BuildID: "0123456789abcdef0123456789abcdef01234567", Base: "0x555555554000", Kind: "executable", TextBytes: 901_120, DataBytes: 151_552, MappedBytes: 1_310_720, File: api.FileSame, Refreshable: true},
		{PID: 812, Program: "nginx", Module: "libz.so.1", Path: "/usr/lib/libz.so.1", BuildID: "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00", Base: "0x7f0000000000", Kind: "library", TextBytes: 69_632, DataBytes: 4096, MappedBytes: 118_784, File: api.FileReplaced, Outdated: true, Generation: 1, Refreshable: true},
		{PID: 812, Program: "nginx", Module: "libz.so.1", Path: "/usr/lib/libz.so.1", BuildID: "decade00decade00decade00decade00decade00", Base: "0x7e0000000000", Kind: "library", TextBytes: 69_632, DataBytes: 4096, MappedBytes: 118_784, File: api.FileSame, Generation: 1, Staged: true, Refreshable: true},
	}},
	"handles": {holdings: heldByNginx, functions: functionsOfNginx},
	"restless": {holdings: []api.Holdings{{IDs: heldByNginx[0].IDs, Restless: []int{7}, Unread: []string{"thread 813 has descriptors of its own"},
		Uncounted: []api.Uncounted{{Module: "libfoo.so", Why: "its address is used as a pointer", Functions: []string{"open@GLIBC_2.2.5", "socket@GLIBC_2.2.5"}}}}}},
	"part-forbidden": {holdings: heldByNginx[:1], err: errNotPermitted},
	"many-workers":   {currencies: manyWorkers(7)},
	"fleeting":       {currencies: []api.Currency{{PID: 900, Program: "java", Modules: 20, Outdated: []api.OutdatedModule{unpacked(900)}}}},
	"unreachable":    {currencies: []api.Currency{{PID: 70, Program: "sandbox", Modules: 3, Unknown: []api.UncomparedModule{unreachable}}}},
	"outdated-and-forbidden": {
		currencies: []api.Currency{{PID: 811, Program: "nginx", Modules: 9, Outdated: []api.OutdatedModule{upgraded(811)}}},
		err:        errNotPermitted,
	},
	"clean": {
		verifications: []api.Verification{{PID: 811, Program: "nginx", Module: "libz.so.1", Pages: 1, Words: 40, TotalUS: 90}},
		operations:    []api.Operation{operation(811, "libz.so.1", api.Clean)},
	},
	"breakpoint": {verifications: []api.Verification{
		{PID: 811, Program: "nginx", Module: "libc.so.6", Pages: 1, Differences: []api.Difference{breakpoint(811)}},
	}},
	"unverifiable": {verifications: []api.Verification{
		{PID: 811, Program: "nginx", Module: "libfoo.so", Path: "/opt/libfoo.so", Refusals: []api.Refusal{{Code: "file_truncated", Subject: "/opt/libfoo.so", Detail: "4096 of 8192 bytes are left", Remedy: "restart the program"}}},
	}},
	"foreign": {programs: []api.Program{foreignProgram(70, notRead32), foreignProgram(71, notRead32), foreignProgram(72, "memory: input/output error")}},
	"unsealed": {verifications: []api.Verification{
		{PID: 811, Program: "nginx", Module: "libz.so.1", Path: "/usr/lib/libz.so.1", Pages: 3, Unchecked: []api.Refusal{{Code: "relro_writable", Subject: "libz.so.1", Detail: "its relocated constants are writable", Remedy: "verify again"}}},
	}},
	"part-verified": {verifications: []api.Verification{
		{PID: 811, Program: "nginx", Module: "libfoo.so", Path: "/opt/libfoo.so", Refusals: []api.Refusal{tls}},
		{PID: 811, Program: "nginx", Module: "libz.so.1", Pages: 3},
	}},
	"corrupt-and-unverifiable": {verifications: []api.Verification{
		{PID: 812, Program: "nginx", Module: "libz.so.1", Pages: 3, Corrupt: true, Differences: []api.Difference{corruption(812)}},
		{PID: 811, Program: "nginx", Module: "libfoo.so", Path: "/opt/libfoo.so", Refusals: []api.Refusal{tls}},
	}},
	"many-differences": {verifications: []api.Verification{
		{PID: 812, Program: "nginx", Module: "libz.so.1", Pages: 3, Corrupt: true, Differences: repeat(corruption(812), 30)},
	}},
	"redirect-planned": {redirections: []api.Redirection{redirected(811, api.Planned)}},
	"redirect-refused": {redirections: []api.Redirection{redirected(811, api.Refused)}},
	"redirect-failed":  {redirections: []api.Redirection{redirected(811, api.Failed)}},
	"planned":          {operations: []api.Operation{operation(811, "libz.so.1", api.Planned), operation(811, "libc.so.6", api.Clean)}},
	"refused":          {operations: []api.Operation{operation(811, "libfoo.so", api.Refused)}},
	"some-refused":     {operations: []api.Operation{operation(811, "libfoo.so", api.Refused), operation(811, "libz.so.1", api.Refreshed)}},
	"failed":           {operations: []api.Operation{operation(811, "libz.so.1", api.Failed)}},
	"some-failed":      {operations: []api.Operation{operation(811, "libz.so.1", api.Failed), operation(812, "libz.so.1", api.Refreshed)}},
	"mixed-bad":        {operations: []api.Operation{operation(811, "libz.so.1", api.Failed), operation(812, "libfoo.so", api.Refused)}},
	"stopped": {operations: []api.Operation{
		{PID: 811, Program: "nginx", Module: "libc.so.6", Outcome: api.Refreshed, PauseUS: 812, TotalUS: 2_100_000, Pages: 1, Residual: []string{"0x7f0000001000: a breakpoint"}},
	}},
	"alike": {operations: []api.Operation{
		{PID: 811, Program: "nginx", Module: "libz.so.1", Outcome: api.Refused, Refusals: append(gone("inflate", "deflate", "crc32", "adler32", "gzopen"), tls)},
		{PID: 812, Program: "nginx", Module: "libz.so.1", Outcome: api.Refused, Refusals: append(gone("inflate", "deflate", "crc32", "adler32", "gzopen"), tls)},
		{PID: 811, Program: "nginx", Module: "libc.so.6", Outcome: api.Refreshed, Residual: []string{"a: 1", "b: 2", "c: 3", "d: 4", "e: 5"}},
		{PID: 812, Program: "nginx", Module: "libc.so.6", Outcome: api.Refreshed, Residual: []string{"a: 1", "b: 2", "c: 3", "d: 4", "e: 5"}},
	}},
	"whole-refused":    {err: fmt.Errorf("redis-server (900): %w", api.Refusal{Code: "traced", Subject: "thread 901", Detail: "gdb (77) traces it", Remedy: "detach gdb"})},
	"gone":             {err: errGone},
	"gone-midway":      {operations: []api.Operation{operation(812, "libz.so.1", api.Refreshed)}, verifications: []api.Verification{{PID: 812, Program: "nginx", Module: "libz.so.1"}}, err: errGone},
	"not-permitted":    {err: errNotPermitted},
	"many-forbidden":   {verifications: []api.Verification{{PID: 811, Program: "nginx", Module: "libz.so.1", Pages: 3}}, err: joined(repeat(errNotPermitted, 8)...)},
	"not-supported":    {err: fmt.Errorf("scan pages: %w", api.ErrNotSupported)},
	"usage":            {err: fmt.Errorf("%w: --full needs a file", api.ErrUsage)},
	"cancelled-within": {err: fmt.Errorf("stop thread 813: %w", joined(context.Canceled))},
	"expired-within":   {err: fmt.Errorf("stop thread 813: %w", context.DeadlineExceeded)},
	"broken":           {err: errors.New("read /proc/812/maps: input/output error")},
	"interrupted":      {operations: []api.Operation{operation(811, "libz.so.1", api.Refreshed)}, interrupt: true},
	"hangs":            {operations: []api.Operation{operation(811, "libz.so.1", api.Refreshed)}, hang: true},
	"hangs-at-once":    {hang: true},
	"nothing-and-forbidden": {
		progress:   []api.Progress{{Processes: 3, Inspected: 2}},
		currencies: []api.Currency{{PID: 90, Program: "sshd", Modules: 9}, {PID: 91, Program: "sh", Modules: 2}},
		err:        errNotPermitted,
	},
	"refused-and-forbidden": {
		progress:   []api.Progress{{Processes: 3, Inspected: 2}},
		operations: []api.Operation{operation(811, "libfoo.so", api.Refused)},
		err:        errNotPermitted,
	},
	"all-refused": {
		progress:   []api.Progress{{Processes: 3, Inspected: 3}},
		operations: []api.Operation{operation(811, "libfoo.so", api.Refused)},
	},
	"all-forbidden": {
		progress: []api.Progress{{Processes: 2}},
		err:      joined(errNotPermitted, errNotPermitted),
	},
	"finishing": {operations: []api.Operation{
		{PID: 811, Program: "nginx", Module: "libz.so.1", Outcome: api.Refreshed, Finishing: 3, DrainedUS: 12_000},
		{PID: 812, Program: "nginx", Module: "libz.so.1", Outcome: api.Refreshed, Finishing: 3, Remaining: 1},
	}},
	"slow-plan": {
		progress:   []api.Progress{{Processes: 240}, {Processes: 240, Inspected: 1}, {Processes: 240, Inspected: 12, Planned: 3}, {Processes: 240, Inspected: 240, Planned: 4}, {Processes: 240, Inspected: 240, Planned: 4, Settled: 2}},
		operations: []api.Operation{operation(811, "libz.so.1", api.Refreshed)}, slow: 120 * time.Millisecond,
	},
	"slow":             {verifications: repeat(api.Verification{PID: 811, Program: "nginx", Module: hostileName, Pages: 3}, 4), slow: 120 * time.Millisecond},
	"long-list":        {modules: repeat(api.Module{PID: 812, Program: "nginx", Module: "libz.so.1", Kind: "library", File: api.FileSame, Refreshable: true}, 20_000)},
	"refresh-and-pipe": {operations: repeat(operation(811, strings.Repeat("long", 100), api.Refreshed), 2_000)},
	"hostile": {
		programs: []api.Program{{Name: hostileName, PID: 666, Unread: []string{hostileName}, Processes: []api.Process{{PID: 666, Name: hostileName, Executable: hostileName, State: hostileName, OutdatedModules: []string{hostileName}, Unread: []string{hostileName}}}}},
		modules:  []api.Module{{PID: 666, Program: "nginx", Module: hostileName, Path: hostileName, BuildID: hostileName, Base: hostileName, Kind: hostileName, File: hostileName, Refusals: []api.Refusal{{Code: hostileName, Subject: hostileName, Detail: hostileName, Remedy: hostileName}}}},
		verifications: []api.Verification{{PID: 666, Program: "nginx", Module: hostileName, Path: hostileName, Corrupt: true, Unchecked: []api.Refusal{{Code: hostileName, Subject: hostileName, Detail: hostileName, Remedy: hostileName}}, Refusals: []api.Refusal{{Code: hostileName, Subject: hostileName, Detail: hostileName, Remedy: hostileName}},
			Differences: []api.Difference{{PID: 666, Program: "nginx", Module: hostileName, Section: hostileName, Function: hostileName, Address: hostileName, Found: hostileName, Expected: hostileName, Kind: hostileName}}}},
		currencies: []api.Currency{{PID: 666, Program: hostileName, Modules: 2, Unknown: []api.UncomparedModule{{Module: hostileName, Path: hostileName, Refusal: api.Refusal{Code: hostileName, Subject: hostileName, Detail: hostileName, Remedy: hostileName}}},
			Outdated: []api.OutdatedModule{{PID: 666, Program: hostileName, Module: hostileName, Path: hostileName, Package: hostileName, PackageProblem: hostileName, RunningVersion: hostileName, InstalledBuildID: hostileName, Change: hostileName, Verdict: hostileName, Unit: hostileName, UserUnit: true, Container: hostileName, Refusals: []api.Refusal{{Code: hostileName, Detail: hostileName, Remedy: hostileName}}}}}},
		holdings: []api.Holdings{{IDs: api.IDs{PID: 666, Program: hostileName}, Unread: []string{hostileName}, Uncounted: []api.Uncounted{{Module: hostileName, Why: hostileName, Functions: []string{hostileName}}}, Handles: []api.Handle{
			{PID: 666, Program: hostileName, Kind: "file", Name: hostileName, Path: hostileName, RedirectedFrom: hostileName, Access: "read", OpenedBy: []string{hostileName}, Peers: []api.HandleRef{{PID: 1, Program: hostileName}},
				Shared: []api.HandleRef{{PID: 1, Program: hostileName}}, Locks: []api.Lock{{Type: hostileName, Mode: hostileName}}},
			{PID: 666, Kind: "socket", Socket: &api.Socket{Family: hostileName, State: "listen", Local: hostileName}},
			{PID: 666, Kind: "anonymous", Name: hostileName}}}},
		functions: []api.FunctionHandles{{PID: 666, Program: hostileName, Module: hostileName, Path: hostileName,
			Imports: []api.FunctionSlot{{Symbol: hostileName, Module: hostileName}}}},
		redirections: []api.Redirection{{PID: 666, Program: hostileName, From: hostileName, To: hostileName, Outcome: api.Failed, Error: hostileName, Steps: []string{hostileName}, Residual: []string{hostileName},
			Refusals: []api.Refusal{{Code: hostileName, Subject: hostileName, Detail: hostileName, Remedy: hostileName}}}},
		menus:    []api.Menu{{PID: 666, Program: hostileName, Outcome: api.Failed, Mapped: hostileName, Error: hostileName, Steps: []string{hostileName}, Residual: []string{hostileName}, Refusals: []api.Refusal{{Code: hostileName, Detail: hostileName, Remedy: hostileName}}}},
		controls: []api.Control{{PID: 666, Program: hostileName, Outcome: api.Failed, Lines: []string{hostileName}, Unshown: hostileName, Error: hostileName}},
		usageReports: []api.UsageReport{{
			Interceptions: []api.Interception{{PID: 666, Program: hostileName, Outcome: api.Failed, Error: hostileName}},
			Usages:        []api.Usage{{PID: 666, Program: hostileName, Module: hostileName, Base: hostileName, ForUS: 1, Grows: true, Functions: []api.FunctionUsage{{Function: hostileName, Calls: 1}}, Uncounted: []api.Uncounted{{Module: hostileName, Why: hostileName, Functions: []string{hostileName}}}}},
			Samples:       []api.SampledBlocks{{Program: hostileName, Module: hostileName, Caller: hostileName, Function: hostileName}},
		}},
		interceptions: []api.Interception{{PID: 666, Program: hostileName, Outcome: api.Failed, Error: hostileName, Steps: []string{hostileName}, Residual: []string{hostileName},
			Refusals: []api.Refusal{{Code: hostileName, Subject: hostileName, Detail: hostileName, Remedy: hostileName}}, Uncounted: []api.Uncounted{{Module: hostileName, Why: hostileName, Functions: []string{hostileName}}}}},
		operations: []api.Operation{{PID: 666, Program: "nginx", Module: hostileName, Path: hostileName, Outcome: api.Failed, Error: hostileName, Steps: []string{hostileName}, Residual: []string{hostileName}}},
		err:        fmt.Errorf("open %s: %w", hostileName, api.Refusal{Code: hostileName, Detail: hostileName}),
	},
}

// redirected is what became of an access log.
func redirected(pid int, outcome api.Outcome) api.Redirection {
	o := api.Redirection{PID: pid, Program: "nginx", FD: 5, From: "/var/log/nginx/access.log", To: "append:/mnt/access.log", Outcome: outcome,
		PauseUS: 640, TotalUS: 9000, Descriptors: []int{5, 7}, Registrations: 1, Kept: 63}
	switch outcome {
	case api.Planned:
		o.PauseUS, o.Kept = 0, -1
		o.Steps = []string{"open /mnt/access.log", "bind 5, 7 to append:/mnt/access.log instead of /var/log/nginx/access.log"}
		o.Residual = []string{"other processes have it open as well and keep it as it is: logger (99)"}
	case api.Refused:
		o.PauseUS, o.Kept = 0, -1
		o.Refusals = []api.Refusal{{Code: "unreachable", Subject: "db:6379", Detail: "connection refused", Remedy: "try again"}}
	case api.Failed:
		o.Kept, o.Error = -1, "the tracer was lost"
	}
	return o
}

// usage is what a module of a process has called; for_us is the time of its rates.
func usage(pid int, module string, forUS int64) api.Usage {
	u := api.Usage{
		PID: pid, Program: "nginx", Module: module, Base: "0x7f0000000000", Imported: 30, Used: 7, Calls: 12_345, Opens: 3, Closes: 2,
		Memory: true, AllocatedBytes: 5 << 20, FreedBytes: 6 << 20, HeldBytes: -1 << 20, OwnedBytes: 3 << 20,
		Functions: []api.FunctionUsage{{Function: "malloc@GLIBC_2.2.5", Of: "libc.so.6", Calls: 12_000, AllocatedBytes: 5 << 20}, {Function: "close@GLIBC_2.2.5", Calls: 345}},
	}
	if forUS > 0 {
		u.ForUS, u.CallsPerSecond, u.OwnedBytesPerSecond, u.OwnedErrorBytes, u.Grows = forUS, 1234.5, 300_000, 1<<20, true
		u.Functions[0].CallsPerSecond = 1200
	}
	return u
}

var notCounted = []api.Uncounted{
	{Module: "libcrypto.so.3", Why: "its address is used as a pointer", Functions: []string{"free@GLIBC_2.2.5", "malloc@GLIBC_2.2.5"}},
	{Module: "nginx", Why: "its address is used as a pointer", Functions: []string{"close@GLIBC_2.2.5"}},
}

// gone is the refusals of a build that lacks exports.
func gone(names ...string) (all []api.Refusal) {
	for _, name := range names {
		all = append(all, api.Refusal{Code: "export_gone", Subject: name, Detail: "the new build doesn't export it", Remedy: "restart the program"})
	}
	return all
}

const notRead32 = "modules: it runs 32-bit code"

func foreignProgram(pid int, unread string) api.Program {
	p := api.Program{Name: "old", PID: pid, Threads: 1, Partial: true, Unread: []string{unread}}
	if unread == notRead32 {
		p.Refusals = []api.Refusal{{Code: "not_64_bit", Subject: fmt.Sprintf("process %d", pid), Detail: "it runs 32-bit code", Remedy: "none is known"}}
	}
	return p
}

func manyWorkers(n int) (all []api.Currency) {
	for i := range n {
		all = append(all, api.Currency{PID: 811 + i, Program: "nginx", Modules: 9, Outdated: []api.OutdatedModule{upgraded(811 + i)}})
	}
	return all
}

func repeat[T any](v T, n int) []T {
	s := make([]T, n)
	for i := range s {
		s[i] = v
	}
	return s
}
