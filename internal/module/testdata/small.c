// A library of less than a page, with relocated constants.
static const char *const names[] = {"one", "two"};
const char *const *volatile small_names = names;
int guest_idle(int n) { return *small_names[n & 1]; }
