/* A small library with one of each thing that an ELF object can have. */

__thread int fixture_thread_local = 7;
__thread int fixture_thread_zero;

extern int imported(int);

int fixture_data = 42;
int *fixture_pointer = &fixture_data;
static int table[4];
int *fixture_table[4] = {&table[0], &table[1], &table[2], &table[3]};
const int *const fixture_constant = &fixture_data;

int fixture_old(int x) { return x + 1; }
int fixture_new(int x) { return x + 2; }
__asm__(".symver fixture_old,fixture_call@FIXTURE_1");
__asm__(".symver fixture_new,fixture_call@@FIXTURE_2");

static int one(void) { return 1; }
static int two(void) { return 2; }
static int (*choose(void))(void) { return fixture_data ? one : two; }
int fixture_ifunc(void) __attribute__((ifunc("choose")));

static void closed(int *p) { imported(*p); }

__attribute__((noinline)) static int local(int x) {
    int held __attribute__((cleanup(closed))) = x;
    return imported(held) + fixture_thread_local;
}

int fixture_function(int x) { return local(x) + fixture_ifunc() + fixture_thread_zero; }

__attribute__((weak)) int fixture_weak(void) { return 3; }
__attribute__((constructor)) static void begin(void) { table[0] = 1; }
