/* lib.c: a library whose every function differs between builds (BUILD). */
#define STEP(n) __attribute__((noinline)) unsigned long lib_step##n(unsigned long x) \
	{ for (int i = 0; i < 2000; i++) x = x * 6364136223846793005ul + (unsigned long)n * 64 + BUILD; return x; }
#define EIGHT(n) STEP(n##0) STEP(n##1) STEP(n##2) STEP(n##3) STEP(n##4) STEP(n##5) STEP(n##6) STEP(n##7)
EIGHT(1) EIGHT(2) EIGHT(3) EIGHT(4)

unsigned long lib_build(void) { return BUILD; }
