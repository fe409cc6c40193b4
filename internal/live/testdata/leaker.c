/* One module gets blocks, and another one frees them; a plugin that is opened on
 * request loses some. Which it is, is said when it is compiled: holder, releaser,
 * plugin, or the program. */
#include <stdlib.h>

#define SIZE 4000

#if defined HOLDER
void *holder_get(void) {
	char *block = malloc(SIZE);
	if (!block) abort();
	*block = 1;
	return block;
}
#elif defined RELEASER
void releaser_put(void *block) { free(block); }
#elif defined PLUGIN
void *plugin_lost;
void plugin_lose(void) {
	for (int i = 0; i < 4; i++)
		if (!(plugin_lost = malloc(SIZE))) abort();
}
#else
#include <dlfcn.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

void *holder_get(void);
void releaser_put(void *);

int main(void) {
	static void *ring[1000];
	void (*lose)(void) = NULL;
	unsigned n = 0;
	puts("ready");
	fflush(stdout);
	for (;;) {
		struct pollfd in = {0, POLLIN, 0};
		if (poll(&in, 1, 2) > 0) {
			char path[4096];
			if (!fgets(path, sizeof path, stdin)) return 0;
			path[strcspn(path, "\n")] = 0;
			void *plugin = dlopen(path, RTLD_NOW);
			if (!plugin || !(lose = (void (*)(void))dlsym(plugin, "plugin_lose"))) {
				puts(dlerror());
				return 1;
			}
			puts("opened");
			fflush(stdout);
		}
		for (int i = 0; i < 100; i++, n++) {
			void **at = &ring[n % 1000];
			if (*at) releaser_put(*at);
			*at = holder_get();
		}
		if (lose) lose();
	}
}
#endif
