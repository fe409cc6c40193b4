/* Throws and catches through libraising.so (raising_lib.cc). SIGUSR1 ends a call
 * that is within the library: what it throws passes through the frames of the
 * build that was called. */
extern "C" {
#include "report.h"
}
#include <stdexcept>
#include <string>

struct Thing {
	virtual ~Thing();
	virtual long value() const;
	virtual std::string name() const;
	long n;
};
extern "C" {
int raising_build();
Thing *raising_make(long n);
void raising_drop(Thing *t);
long raising_count();
long raising_once(long n);
void raising_throw(long n);
long raising_through(void (*f)(long), long n);
long raising_catch(void (*f)(long), long n);
}

static struct counter *build, *held, *passed;
static volatile sig_atomic_t go_on;
static void on_signal(int) { go_on++; }

static void own(long n) { throw std::runtime_error("own " + std::to_string(n)); }
static void nothing(long) {}
static void wait_and_throw(long n)
{
	while (!go_on)
		usleep(500);
	throw std::runtime_error("late " + std::to_string(n));
}
static void wait_and_let(long n)
{
	while (!go_on)
		usleep(500);
	raising_throw(n); /* of the build that runs by now */
}

static void check(bool right, const char *what)
{
	if (!right)
		wrong("%s (build %d)", what, raising_build());
}

static Thing *things[20];
static long counted, seen;

static void work()
{
	int b = raising_build();
	std::string text, name = things[3]->name();
	long n = 0, values[2] = {things[2]->value(), things[3]->value()};
	try {
		raising_throw(7);
	} catch (const std::exception &e) {
		text = e.what();
	}
	try {
		raising_through(own, 4);
		check(false, "an exception got lost");
	} catch (const std::runtime_error &e) {
		check(std::string(e.what()) == "own 4", "the text of an exception that passed the library");
	}
	n = raising_catch(raising_throw, 16);
	long o = raising_catch(own, 1), through = raising_through(nothing, 0);
	check(raising_count() == ++counted, "a unique object");
	check(raising_once(1) == ++seen * 100 + 1, "a guarded object");
	Thing *t = raising_make(5);
	check(t->value() / 1000 == 5, "a new object");
	raising_drop(t);
	if (raising_build() == b) {
		char digit = (char)('0' + b);
		check(text == std::string("trouble ") + digit + "x", text.c_str());
		check(n == 160 + b && o == -b && through == b, "an exception caught in the library");
		check(values[0] == 20 + b && values[1] == 3000 + b, "virtual functions of objects from before");
		check(name == std::string("3 special of build ") + digit, name.c_str());
	}
	progressed();
}

static void *worker(void *)
{
	for (;; usleep(200))
		work();
}
static void *late(void *through)
{
	bump(held);
	try {
		if (through)
			raising_through(wait_and_throw, 3);
		else
			check(raising_catch(wait_and_let, 8) == 81, "an exception of a new build, caught in the old one");
	} catch (const std::runtime_error &e) {
		check(std::string(e.what()) == "late 3", "an exception that passed old frames");
	}
	bump(passed);
	return nullptr;
}
static void before_report() { build->n = raising_build(); }
static void at_quit() { exit(0); }

int main()
{
	build = counter("build"), held = counter("held"), passed = counter("passed");
	report_before = before_report;
	report_at_quit = at_quit;
	signal(SIGUSR1, on_signal);
	for (long i = 0; i < 20; i++)
		things[i] = raising_make(i);
	counted = raising_count();
	seen = raising_once(0) / 100;
	spawn(worker, nullptr);
	spawn(late, nullptr);
	spawn(late, const_cast<char *>("through"));
	report_serve();
}
