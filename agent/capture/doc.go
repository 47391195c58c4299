// Package capture finds out what the calling process inherited: everything
// that a command run from it would inherit in turn, as it was before the Go
// runtime changed any of it.
//
// What the runtime changes and where the truth is kept: it puts its handlers
// in the place of ignored signals (runtime.fwdSig), unblocks the synchronous
// signals (runtime.initSigmask) and raises the soft limit of open files
// (syscall.origRlimitNofile). These variables are found by the symbol table of
// the running program, so a program that uses this package must not be
// stripped (-ldflags=-s); where it is, [Captured.Notes] says what is not known.
// The runtime also opens /dev/null where descriptor 0, 1 or 2 was closed, which
// leaves no trace. A program linked with
//
//	-ldflags=-E=rexec/agent/capture.entry
//
// begins with a few instructions of this package that look first (on amd64). In
// any other such a descriptor counts as one of /dev/null, open for reading and
// writing.
//
// Call [Capture] before the program opens anything that is not close-on-exec
// and before it handles signals.
package capture
