/* An executable that exports nothing. */
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    if (argc > 1) puts(argv[1]);
    return getenv("FIXTURE") != NULL;
}
