/* An executable: imports only, and waits to be looked at. */
#include <stdio.h>
#include <stdlib.h>

extern int value;
int value = 5;
int *pointer = &value;

int main(void) {
    puts("ready");
    fflush(stdout);
    char *line = malloc(16);
    fgets(line, 16, stdin);
    free(line);
    return *pointer - 5;
}
