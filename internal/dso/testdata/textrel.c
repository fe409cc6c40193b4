/* With absolute addresses in code, which the loader must relocate there. */
int textrel_value = 3;
int textrel_read(void) { return textrel_value; }
