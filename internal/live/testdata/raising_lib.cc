/* libraising.so: objects with virtual functions, exceptions that leave it and pass
 * through it, a unique object, guarded ones. What shows the build is BUILD. */
#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#ifndef BUILD
#define BUILD 1
#endif
#define OUT __attribute__((noinline, visibility("default")))

struct Thing {
	virtual ~Thing();
	virtual long value() const;
	virtual std::string name() const;
	long n;
	explicit Thing(long n) : n(n) {}
};
struct Special : Thing {
	std::map<long, std::string> notes;
	explicit Special(long n) : Thing(n) { notes[n] = std::to_string(n); }
	long value() const override;
	std::string name() const override;
};
struct Trouble : std::runtime_error {
	long n;
	Trouble(const std::string &s, long n) : std::runtime_error(s), n(n) {}
	~Trouble() override;
};
Trouble::~Trouble() {}

Thing::~Thing() {}
long Thing::value() const { return n * 10 + BUILD; }
std::string Thing::name() const { return "thing of build " + std::to_string(BUILD); }
long Special::value() const { return n * 1000 + BUILD; }
std::string Special::name() const { return notes.at(n) + " special of build " + std::to_string(BUILD); }

/* STB_GNU_UNIQUE: the same for all that have it. */
template <typename T> struct Shared { static long count; };
template <typename T> long Shared<T>::count = 5;

/* Guarded: made once in a program, whatever build runs. */
static long made;
struct Once {
	std::vector<long> all;
	Once() { made++; all.push_back(42); }
};
static Once &once()
{
	static Once o;
	return o;
}

extern "C" {
OUT int raising_build() { return BUILD; }
OUT Thing *raising_make(long n) { return n % 2 ? new Special(n) : new Thing(n); }
OUT void raising_drop(Thing *t) { delete t; }
OUT long raising_count() { return ++Shared<int>::count; }
OUT long raising_once(long n)
{
	once().all.push_back(n);
	return (long)once().all.size() * 100 + made;
}
OUT void raising_throw(long n)
{
	std::string on_the_way(static_cast<size_t>(40 + n % 8), 'x');
	if (n > 0 && n % 8)
		raising_throw(n - 1);
	throw Trouble("trouble " + std::to_string(BUILD) + on_the_way.substr(0, 1), n);
}
/* What f throws passes through here, and destroys what stands in its way. */
OUT long raising_through(void (*f)(long), long n)
{
	struct Counted {
		long &c;
		~Counted() { c += BUILD; }
	};
	long destroyed = 0;
	try {
		Counted here{destroyed};
		f(n);
	} catch (...) {
		if (destroyed != BUILD)
			abort();
		throw;
	}
	return BUILD;
}
/* And is caught here. */
OUT long raising_catch(void (*f)(long), long n)
{
	try {
		f(n);
	} catch (const Trouble &t) {
		return t.n * 10 + BUILD;
	} catch (const std::exception &e) {
		return -BUILD;
	}
	return 0;
}
}
