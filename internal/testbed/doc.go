// Package testbed runs the real programs that tests, the demo and the
// benchmarks work on, and tells whether they were harmed.
//
// There are four kinds of program:
//
//   - servers from the distribution ([Nginx], [Apache], [HAProxy], [Redis], [Memcached],
//     [Postgres]), each in a folder of its own, on a free loopback port, in the
//     foreground;
//   - clients from the distribution in the middle of one long piece of work: curl
//     ([Transfer]), python3 ([StartStream]) and gst-launch-1.0 ([Sound]);
//   - fixtures, small C, C++ and Go programs embedded in this package and
//     compiled on demand into a cache ([Compile], [Source]); each watches one
//     thing that a careless stop would break (EINTR, vector registers, the red
//     zone, pending signals, …) and reports what it saw ([Fixture]);
//   - whatever else a test compiles from its own source.
//
// All of them may run with chosen builds of their libraries, from a private
// folder ([Libraries]) where an upgrade replaces them: builds that the package
// mirror serves ([LibraryBuilds]), or one that is built from the distribution's
// source with a change that clients see ([LibrarySource]).
//
// Loads ([Nginx.Load], [Redis.Load], [Memcached.Load], …) are verified: a client
// knows the bytes that it must get, so that "0 failed" means that every answer
// was right, not only that there was one.
//
// The rest watches from outside: [Inventory] counts what a process holds,
// [Disturbance] names threads that are traced or stopped, [TakeSnapshot] finds
// what a test run itself left behind, and [Corrupt] does the damage that vOS is
// to heal.
//
// Everything here ends by itself: servers get a death signal when the process
// that started them dies, fixtures end when their stdin does, loads are bounded
// by their context. Nothing here imports vOS's floors, so each of them may be
// tested with it. A [TB] is accepted where a testing.TB would do, so that
// programs which are no tests need not link package testing.
package testbed

import "context"

// TB is the part of testing.TB that is used here.
type TB interface {
	Helper()
	Cleanup(func())
	Context() context.Context
	Logf(format string, args ...any)
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
}
