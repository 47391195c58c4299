// Package exercise tests that the view cannot be told from the real file
// system, with processes at work on both sides: a job, by `rexec loopback`, and
// a local process, which do the same operations on the same files.
//
// Both are testdata/worker.c, which does what it is told line by line, so that
// a test knows the order of all that is done. What is right comes from a third
// worker, the twin, which does the operations of both sides in a directory of
// its own that no view shows.
//
// REXEC_TEST_LONG=1 asks for the long counts, and REXEC_TEST_SEED (or -seed)
// for a sequence of operations that was seen before.
package exercise
