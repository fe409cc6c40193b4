/* A small library with what a match has to tell apart: static data, tables of
   pointers, strings, switches, twins. Macros make the variants. */
#include <stdlib.h>
#include <string.h>
#define EXPORT __attribute__((visibility("default"))) __attribute__((noinline))
#define EXPORT_DATA __attribute__((visibility("default")))
#define LOCAL static __attribute__((noinline))

#ifndef STEP
#define STEP 1
#endif
#ifndef GREETING
#define GREETING "hello from the small library"
#endif
#ifndef EXTRA
#define EXTRA
#endif

#ifndef ALIGN
#define ALIGN 8
#endif

static int calls;
static __attribute__((aligned(ALIGN))) long total;
static char last[64];
static unsigned crc_table[256];
static int ready;
EXPORT_DATA __attribute__((aligned(ALIGN))) int small_level = 3;
#ifdef LARGE_EXPORT
EXPORT_DATA int small_limits[8] = {1, 2, 3, 4, 5, 6, 7, 8};
#else
EXPORT_DATA int small_limits[4] = {1, 2, 3, 4};
#endif
#ifdef NEW_STATIC
static int newcount;
#endif
#ifdef TLS_VALUE
__thread int small_local = TLS_VALUE;
EXPORT int small_local_get(void) { return small_local++; }
#endif
#ifdef TLS_STATIC
static __thread __attribute__((tls_model("initial-exec"))) int fixed;
EXPORT int small_fixed(void) { return fixed++; }
#endif

struct handle {
#ifdef FIELD_FIRST
  long generation;
#endif
  long id;
#ifdef SWAPPED
  int flags;
  int used;
#else
  int used;
  int flags;
#endif
  char name[32];
  int (*on)(int);
  int (*const *table)(int);
#ifdef FIELD_LAST
  long generation;
#endif
};

LOCAL void fill(void) {
  for (unsigned i = 0; i < 256; i++) {
    unsigned c = i;
    for (int k = 0; k < 8; k++)
      c = c & 1 ? 0xedb88320u ^ (c >> 1) : c >> 1;
    crc_table[i] = c;
  }
  ready = 1;
}

EXPORT unsigned small_crc(unsigned crc, const unsigned char *p, size_t n) {
  if (!ready)
    fill();
  crc = ~crc;
  while (n--)
    crc = crc_table[(crc ^ *p++) & 0xff] ^ (crc >> 8);
  return ~crc;
}

EXPORT int small_count(int by) {
  calls += STEP;
  total += by;
#ifdef NEW_STATIC
  newcount += 2;
#endif
  return calls EXTRA;
}

EXPORT long small_total(void) { return total; }
EXPORT int small_calls(void) { return calls; }
#ifdef NEW_STATIC
EXPORT int small_newcount(void) { return newcount; }
#endif

EXPORT const char *small_greeting(void) { return GREETING; }

EXPORT int small_kind(int c) {
  switch (c) {
  case 1: return small_count(2) + 11;
  case 2: return small_count(3) * 7;
  case 3: return small_count(5) - 1;
  case 4: return small_count(7) ^ 9;
  case 5: return small_count(c) | 64;
  case 6: return 1000 / (small_level + 1);
#ifdef MORE_KINDS
  case 7: return 77;
#endif
  default: return -1;
  }
}

LOCAL int op_add(int x) { return x + calls * 3; }
LOCAL int op_sub(int x) { return x - (int)total * 5; }
#ifdef OP_CHANGED
LOCAL int op_mix(int x) { return x * 31 + ready * 7 + calls; }
#else
LOCAL int op_mix(int x) { return x * 33 + ready; }
#endif
#ifdef MORE_OPS
LOCAL int op_more(int x) { return x * 17 - ready; }
#endif

static int (*const ops[])(int) = {op_add, op_sub, op_mix
#ifdef MORE_OPS
  , op_more
#endif
};

EXPORT int small_op(unsigned i, int x) {
  if (i >= sizeof ops / sizeof ops[0])
    return -1;
  return ops[i](x);
}

static const struct { int id; double weight; char tag[8]; } weights[] = {
  {1, 1.5, "one"}, {2,
#ifdef WEIGHT
  WEIGHT
#else
  2.5
#endif
  , "two"}, {3, 3.5, "three"}, {4, 4.5, "four"},
};

EXPORT double small_weight(int id) {
  for (unsigned i = 0; i < sizeof weights / sizeof weights[0]; i++)
    if (weights[i].id == id)
      return weights[i].weight * small_level;
  return 0;
}

EXPORT struct handle *small_open(const char *name) {
  struct handle *h = calloc(1, sizeof *h);
  if (!h)
    return 0;
  strncpy(h->name, name, sizeof h->name - 1);
  strncpy(last, name, sizeof last - 1);
  h->id = ++total;
  h->on = ops[0];
  h->table = ops;
  return h;
}
EXPORT int small_use(struct handle *h, int x) { h->used++; h->flags |= x; return h->on(x) EXTRA; }
EXPORT int small_used(struct handle *h) { return h->used * STEP + h->flags; }
EXPORT long small_id(struct handle *h) { h->flags++; h->used += STEP; return h->id; }
EXPORT void small_close(struct handle *h) { h->on = 0; free(h); }
EXPORT const char *small_last(void) { return last; }

#ifndef GONE
EXPORT int small_old(int x) { return x * small_limits[1]; }
#endif
#ifdef MORE_EXPORTS
EXPORT int small_more(int x) { return x * small_limits[2] + calls; }
#endif

#ifdef IFUNC
static int fast(int x) { return x; }
static void *choose(void) { return (void *)fast; }
EXPORT int small_fast(int x) __attribute__((ifunc("choose")));
#endif

/* Helpers that are called directly: a change of one reaches its callers. */
LOCAL int helper(int x) { return x * STEP + 12345; }
EXPORT int small_helped(int x) { return helper(x) * 3 + helper(x + 1); }

/* A branch back into the first bytes. */
EXPORT __attribute__((naked)) void small_loop(void) {
#ifdef EXTRA_LOOP
  __asm__("1: dec %rdi\n jnz 1b\n xor %eax, %eax\n ret");
#else
  __asm__("1: dec %rdi\n jnz 1b\n ret");
#endif
}
EXPORT __attribute__((naked)) void small_short(void) {
#ifdef EXTRA_LOOP
  __asm__("nop\n ret");
#else
  __asm__("ret");
#endif
}

__attribute__((constructor)) static void begin(void) { small_level = 2; }
