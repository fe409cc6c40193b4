/*
 * Calls functions that a uprobe is set on: one that begins with a usual
 * instruction, and one that begins with a nop of five bytes, which newer
 * kernels replace by a call.
 */
#include "report.h"

static struct counter *calls;

__attribute__((noinline, aligned(64))) int usual(int n)
{
	__asm__ volatile("" ::: "memory");
	return n * 3 + 1;
}

int nop5(int n);
__asm__(".text\n.p2align 6\n.globl nop5\n.type nop5,@function\nnop5:\n"
	"  .byte 0x0f, 0x1f, 0x44, 0x00, 0x00\n"
	"  lea 7(%rdi), %eax\n"
	"  ret\n"
	".size nop5, .-nop5\n.p2align 6\n");

static void *work(void *arg)
{
	for (int n = 0;; n++) {
		if (usual(n) != (int)((unsigned)n * 3 + 1) || nop5(n) != (int)((unsigned)n + 7))
			wrong("a function returned something else");
		bump(calls);
		progressed();
		if (n % 16 == 0)
			sleep_ms(1);
	}
	return arg;
}

int main(void)
{
	calls = counter("calls");
	spawn(work, 0);
	spawn(work, 0);
	report_serve();
}
