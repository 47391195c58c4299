// Package signals knows how a Linux process receives signals, stops, resumes
// and dies: names and numbers, a source of every catchable signal with its
// siginfo, and the two things that the Go runtime makes hard, to stop and to
// die by a given signal exactly as a C program does.
//
// [Catch] puts a handler of its own before the runtime's. The handler is a few
// instructions that write the siginfo to a pipe; faults of this process and the
// runtime's own preemption signals go on to the runtime. So sender, code and
// value arrive, real-time signals are not merged, and signals that os/signal
// does not offer (32 to 34) are seen too.
//
// Numbers are the kernel's; a set of signals is a uint64 with bit n-1 for
// signal n.
package signals
