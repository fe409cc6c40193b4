// A program that maps a vIN beside itself, puts veneers into its own functions
// and calls them in generations 0 and 1.
//
//	calls FILE BASE TABLE CODE SELECTOR GENERATION0 GENERATION1 STUB VENEER...
//
// Numbers are hexadecimal; a veneer is 5 bytes in hexadecimal.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define COUNT 13

__asm__(
".data\n.balign 16\n"
"vector: .quad 0x1122334455667788, 2\n"
"datum: .quad 0x1234\n"
"zero: .long 0\n"
"scratch: .quad 0\n"
"sp: .quad 0\n"
"pointer: .quad tail\n"
".globl dump\n"
"dump: .fill 40, 8, 0\n"
".globl slot\n"
"slot: .quad old_12\n"
".text\n"
".macro old n\n .balign 32\n .globl old_\\n\n .type old_\\n, @function\n old_\\n:\n .endm\n"

// What overwrites one, two and three instructions, relative to RIP and not.
"old 0\n push %rbp\n mov %rsp, %rbp\n sub $16, %rsp\n mov %rdi, -8(%rbp)\n mov -8(%rbp), %rax\n inc %rax\n leave\n ret\n"
"old 1\n sub $8, %rsp\n lea datum(%rip), %rax\n mov (%rax), %rax\n add %rdi, %rax\n add $8, %rsp\n ret\n"
"old 2\n cmpl $0, zero(%rip)\n jne 1f\n lea 7(%rdi), %rax\n ret\n1: mov $-1, %rax\n ret\n"
"old 3\n test %rdi, %rdi\n je 1f\n mov $31, %eax\n ret\n1: mov $32, %eax\n ret\n"
"old 4\n sub $8, %rsp\n call tail\n inc %rax\n add $8, %rsp\n ret\n"
"old 5\n .byte 0xe9\n .long tail - . - 4\n"
"old 6\n movabs $0x1122334455667788, %rax\n add %rdi, %rax\n ret\n"
"old 7\n test %rdi, %rdi\n .byte 0x0f, 0x84\n .long tail - . - 4\n mov $71, %eax\n ret\n"
"old 8\n movl $81, scratch(%rip)\n mov scratch(%rip), %eax\n add %edi, %eax\n ret\n"
"old 9\n movups vector(%rip), %xmm0\n movq %xmm0, %rax\n add %rdi, %rax\n ret\n"
"old 10\n jmp *pointer(%rip)\n"
"old 11\n endbr64\n push %rbp\n pop %rbp\n jmp capture\n"
"old 12\n mov $121, %eax\n add %rdi, %rax\n ret\n" // by a slot
"tail: lea 0x77(%rdi), %rax\n ret\n"

".macro new n\n .balign 16\n .globl new_\\n\n .type new_\\n, @function\n new_\\n: lea 1000+\\n(%rdi), %rax\n ret\n .endm\n"
".globl new_start\nnew_start:\n"
"new 0\n new 1\n new 2\n new 3\n new 4\n new 5\n new 6\n new 7\n new 8\n new 9\n new 10\n"
".globl new_11\nnew_11: jmp capture\n"
"new 12\n"
".globl new_end\nnew_end:\n"

// capture stores what a function finds at its entry.
"capture: pushfq\n pop dump+144(%rip)\n mov %rax, dump(%rip)\n mov %rdi, dump+8(%rip)\n mov %rsi, dump+16(%rip)\n mov %rdx, dump+24(%rip)\n"
" mov %rcx, dump+32(%rip)\n mov %r8, dump+40(%rip)\n mov %r9, dump+48(%rip)\n mov %r10, dump+56(%rip)\n"
" mov %rbx, dump+64(%rip)\n mov %rbp, dump+72(%rip)\n mov %r12, dump+80(%rip)\n mov %r13, dump+88(%rip)\n"
" mov %r14, dump+96(%rip)\n mov %r15, dump+104(%rip)\n mov %rsp, %rax\n sub sp(%rip), %rax\n mov %rax, dump+112(%rip)\n"
" mov (%rsp), %rax\n mov %rax, dump+120(%rip)\n mov 8(%rsp), %rax\n mov %rax, dump+128(%rip)\n"
" mov 16(%rsp), %rax\n mov %rax, dump+136(%rip)\n mov -128(%rsp), %rax\n mov %rax, dump+152(%rip)\n"
" movups %xmm0, dump+160(%rip)\n movups %xmm1, dump+176(%rip)\n movups %xmm2, dump+192(%rip)\n movups %xmm3, dump+208(%rip)\n"
" movups %xmm4, dump+224(%rip)\n movups %xmm5, dump+240(%rip)\n movups %xmm6, dump+256(%rip)\n movups %xmm7, dump+272(%rip)\n"
" mov $0x99, %eax\n ret\n"

// probe calls a function with all registers and two words of stack set, and CF.
".globl probe\nprobe: push %rbx\n push %rbp\n push %r12\n push %r13\n push %r14\n push %r15\n sub $24, %rsp\n"
" mov %rsp, sp(%rip)\n movq $0x5151, (%rsp)\n movq $0x5252, 8(%rsp)\n movq $0x5353, -136(%rsp)\n mov %rdi, %r11\n"
" mov $0x101, %ebx\n mov $0x102, %ebp\n mov $0x103, %r12d\n mov $0x104, %r13d\n mov $0x105, %r14d\n mov $0x106, %r15d\n"
" mov $0x201, %edi\n mov $0x202, %esi\n mov $0x203, %edx\n mov $0x204, %ecx\n mov $0x205, %r8d\n mov $0x206, %r9d\n mov $0x207, %r10d\n"
" mov $8, %eax\n movq %rbx, %xmm0\n movq %rbp, %xmm1\n movq %r12, %xmm2\n movq %r13, %xmm3\n movq %r14, %xmm4\n movq %r15, %xmm5\n"
" movq %rdi, %xmm6\n movq %rsi, %xmm7\n cmp %rax, %rax\n stc\n call *%r11\n"
" add $24, %rsp\n pop %r15\n pop %r14\n pop %r13\n pop %r12\n pop %rbp\n pop %rbx\n ret\n");

typedef uint64_t function(uint64_t);

#define EACH(f) f(0) f(1) f(2) f(3) f(4) f(5) f(6) f(7) f(8) f(9) f(10) f(11) f(12)
#define DECLARE(n) extern function old_##n;
#define NAME(n) old_##n,
EACH(DECLARE)
static function *const functions[COUNT] = {EACH(NAME)};

extern uint64_t probe(function *);
extern uint64_t dump[40];
extern function *slot;

static void fail(const char *what, int n, uint64_t got, uint64_t want) {
	printf("%s, %d: %#lx, not %#lx\n", what, n, got, want);
	exit(1);
}

static uint64_t call(int n, uint64_t argument) { return n == 12 ? slot(argument) : functions[n](argument); }

static uint64_t first[COUNT][2], registers[40];

static void expect_old(const char *what) {
	for (int n = 0; n < COUNT; n++)
		for (int k = 0; k < 2; k++) {
			uint64_t got = call(n, k * 5);
			if (got != first[n][k]) fail(what, n, got, first[n][k]);
		}
}

static void expect_registers(const char *what) {
	memset(dump, 0, sizeof dump);
	if (probe(old_11) != 0x99) fail(what, -1, 0, 0x99);
	for (int i = 0; i < 40; i++)
		if (dump[i] != registers[i]) fail(what, i, dump[i], registers[i]);
}

static void expect_new(const char *what) {
	for (int n = 0; n < COUNT; n++)
		if (n != 11 && call(n, 5) != 1005 + n) fail(what, n, call(n, 5), 1005 + n);
}

int main(int argc, char **argv) {
	if (argc != 9 + COUNT - 1) return 2;
	for (int n = 0; n < COUNT; n++)
		for (int k = 0; k < 2; k++) first[n][k] = call(n, k * 5);
	probe(old_11);
	memcpy(registers, dump, sizeof dump);
	if (registers[0] != 8 || registers[1] != 0x201 || registers[16] != 0x5151 || registers[17] != 0x5252 || registers[34] != 0x202)
		fail("probe", 0, registers[0], 8);

	uint64_t base = strtoul(argv[2], 0, 16), table = strtoul(argv[3], 0, 16), code = strtoul(argv[4], 0, 16);
	volatile uint64_t *selector = (uint64_t *)strtoul(argv[5], 0, 16);
	uint64_t generation[2] = {strtoul(argv[6], 0, 16), strtoul(argv[7], 0, 16)};
	int fd = open(argv[1], O_RDONLY);
	if (fd < 0 ||
	    mmap((void *)base, table, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED_NOREPLACE, fd, 0) != (void *)base ||
	    mmap((void *)(base + table), code, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_FIXED_NOREPLACE, fd, table) != (void *)(base + table)) {
		perror("map");
		return 2;
	}
	expect_old("mapped");

	for (int n = 0; n < COUNT - 1; n++) {
		uintptr_t at = (uintptr_t)functions[n];
		if (mprotect((void *)(at & -4096), 8192, PROT_READ | PROT_WRITE | PROT_EXEC)) return 2;
		for (int i = 0; i < 5; i++) {
			char hex[3] = {argv[9 + n][2 * i], argv[9 + n][2 * i + 1], 0};
			((volatile uint8_t *)at)[i] = strtoul(hex, 0, 16);
		}
	}
	slot = (function *)strtoul(argv[8], 0, 16);
	expect_old("generation 0");
	expect_registers("registers in generation 0");

	for (int round = 0; round < 3; round++) {
		*selector = generation[1];
		expect_new("generation 1");
		expect_registers("registers in generation 1");
		*selector = generation[0];
		expect_old("generation 0 again");
	}
	puts("done");
	return 0;
}
