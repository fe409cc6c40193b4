// Package floors holds the test of the architecture: a package imports only
// packages of the floors below its own, and unsafe code stays in one place.
// docs/ARCHITECTURE.md draws the floors; this test keeps the drawing true.
package floors
