/*
 * windows: windows of GTK 3, without its headers. Progress is the main loop's; a
 * thread adds sources to it meanwhile, which have to come in their order.
 *
 *   windows [bars=N] [plain=N] [deaf]   N with a menu bar, N without one
 *
 * SIGUSR1 opens one more with a menu bar, SIGUSR2 closes the last one. With deaf
 * the main loop waits in poll for something else than its sources, and comes back
 * when it gets SIGHUP.
 *
 * Counters: items is how many items all menu bars have, idles how many sources came.
 */
#include "report.h"
#include <dlfcn.h>

typedef void widget;
typedef int source(void *);

static widget *(*window_new)(int), *(*bar_new)(void), *(*item_new)(const char *), *(*box_new)(int, int);
static void (*add)(widget *, widget *), (*append)(widget *, widget *), (*show)(widget *), (*destroy)(widget *);
static void *(*children)(widget *);
static unsigned (*list_length)(void *);
static void (*list_free)(void *);
static unsigned (*timeout_add)(unsigned, source *, void *), (*idle_add)(source *, void *);

static pthread_t loop;
static widget *windows[64], *bars[64];
static int window_count, deaf;
static volatile sig_atomic_t more, fewer, hear;
static struct counter *items, *idles;

static void *function(void *library, const char *name)
{
	void *f = dlsym(library, name);
	if (!f) {
		fprintf(stderr, "%s\n", dlerror());
		exit(1);
	}
	return f;
}

static void open_window(int with_bar)
{
	widget *window = window_new(0), *box = box_new(1, 0);
	add(window, box);
	bars[window_count] = 0;
	if (with_bar) {
		bars[window_count] = bar_new();
		append(bars[window_count], item_new("File"));
		add(box, bars[window_count]);
	}
	show(window);
	windows[window_count++] = window;
}

static int turn(void *unused)
{
	(void)unused;
	if (!pthread_equal(pthread_self(), loop))
		wrong("the main loop runs in another thread");
	if (more && window_count < 64)
		more = 0, open_window(1);
	if (fewer && window_count)
		fewer = 0, destroy(windows[--window_count]);
	long n = 0;
	for (int i = 0; i < window_count; i++) {
		if (!bars[i])
			continue;
		void *all = children(bars[i]);
		n += list_length(all);
		list_free(all);
	}
	__atomic_store_n(&items->n, n, __ATOMIC_RELAXED);
	progressed();
	while (deaf && !hear)
		poll(0, 0, 100);
	return 1;
}

static int once(void *number)
{
	static long last;
	if ((long)number != ++last)
		wrong("source %ld came as number %ld", (long)number, last);
	bump(idles);
	return 0;
}

static void *adding(void *unused)
{
	(void)unused;
	for (long n = 1;; n++) {
		if (n % 20 == 0)
			sleep_ms(3);
		idle_add(once, (void *)n);
	}
	return 0;
}

static void *serving(void *unused)
{
	(void)unused;
	report_serve();
}

static void on_more(int s) { (void)s; more = 1; }
static void on_fewer(int s) { (void)s; fewer = 1; }
static void on_hear(int s) { (void)s; hear = 1; }

int main(int argc, char **argv)
{
	int with = 0, without = 0;
	for (int i = 1; i < argc; i++)
		if (sscanf(argv[i], "bars=%d", &with) != 1 && sscanf(argv[i], "plain=%d", &without) != 1)
			deaf = !strcmp(argv[i], "deaf");
	void *gtk = dlopen("libgtk-3.so.0", RTLD_NOW | RTLD_GLOBAL);
	if (!gtk)
		return fprintf(stderr, "%s\n", dlerror()), 1;
	window_new = function(gtk, "gtk_window_new"), bar_new = function(gtk, "gtk_menu_bar_new");
	item_new = function(gtk, "gtk_menu_item_new_with_label"), box_new = function(gtk, "gtk_box_new");
	add = function(gtk, "gtk_container_add"), append = function(gtk, "gtk_menu_shell_append");
	show = function(gtk, "gtk_widget_show_all"), destroy = function(gtk, "gtk_widget_destroy");
	children = function(gtk, "gtk_container_get_children");
	list_length = function(gtk, "g_list_length"), list_free = function(gtk, "g_list_free");
	timeout_add = function(gtk, "g_timeout_add"), idle_add = function(gtk, "g_idle_add");
	int (*init)(int *, char ***) = function(gtk, "gtk_init_check");
	void (*run)(void) = function(gtk, "gtk_main");
	if (!init(&argc, &argv))
		return fprintf(stderr, "no display\n"), 1;

	items = counter("items"), idles = counter("idles");
	loop = pthread_self();
	while (with--)
		open_window(1);
	while (without--)
		open_window(0);
	struct sigaction action = {.sa_handler = on_more, .sa_flags = SA_RESTART};
	sigaction(SIGUSR1, &action, 0);
	action.sa_handler = on_fewer, sigaction(SIGUSR2, &action, 0);
	action.sa_handler = on_hear, sigaction(SIGHUP, &action, 0);
	timeout_add(5, turn, 0);
	if (!deaf)
		spawn(adding, 0);
	spawn(serving, 0);
	run();
	return 0;
}
