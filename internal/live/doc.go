// Package live holds the tests that run the built binary on real programs, under
// load and in the worst moments: killed at any instant, a thousand times over,
// on programs of every kind, with all that can be wrong with a target.
package live
