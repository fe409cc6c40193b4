// The library that calls.c calls.
void nothing(void) { __asm__ volatile(""); }
