package rer

// Status is how a command ended, as wait4(2) tells it.
type Status struct {
	Code   int    `cbor:"1,keyasint"`           // exit code, where Signal is 0
	Signal int    `cbor:"2,keyasint,omitempty"` // fatal signal
	Core   bool   `cbor:"3,keyasint,omitempty"`
	Usage  Rusage `cbor:"4,keyasint"`
}

// Rusage is what getrusage(2) tells of the command and the children that it
// waited for.
type Rusage struct {
	UserUsec   int64 `cbor:"1,keyasint"` // microseconds
	SysUsec    int64 `cbor:"2,keyasint"`
	MaxRSS     int64 `cbor:"3,keyasint"` // KiB
	MinorFault int64 `cbor:"4,keyasint"`
	MajorFault int64 `cbor:"5,keyasint"`
	InBlocks   int64 `cbor:"6,keyasint"`
	OutBlocks  int64 `cbor:"7,keyasint"`
	Voluntary  int64 `cbor:"8,keyasint"`
	Forced     int64 `cbor:"9,keyasint"`
}

// Reason tells refusals apart, on --status-fd too. The numbers are part of
// the protocol.
type Reason int

const (
	ReasonUnknownHost  Reason = 1  // in no server database; nothing was sent
	ReasonNotAllowed   Reason = 2  // the database or the server forbids it
	ReasonWithdrawn    Reason = 3  // the server takes no new jobs
	ReasonUnreachable  Reason = 4  // no link
	ReasonVersion      Reason = 5  // no common version, or an unknown critical field
	ReasonNotFound     Reason = 6  // command not found: exit 127
	ReasonCannotExec   Reason = 7  // found but cannot execute: exit 126
	ReasonCwd          Reason = 8  // the working directory cannot be entered there
	ReasonDescriptor   Reason = 9  // a descriptor that cannot cross
	ReasonResources    Reason = 10 // limits, memory, E2BIG
	ReasonNoFUSE       Reason = 11 // the server lacks FUSE or user namespaces
	ReasonLost         Reason = 12 // the link or a process of ours died
	ReasonTwice        Reason = 13 // the request id was seen before
	ReasonInternal     Reason = 14
	ReasonBadRequest   Reason = 15
	ReasonWrongProgram Reason = 16 // another architecture's program
)

// Refused says that a request was not run and will not be.
type Refused struct {
	ID     [16]byte `cbor:"1,keyasint"`
	Reason Reason   `cbor:"2,keyasint"`
	Errno  int      `cbor:"3,keyasint,omitempty"` // of the call that failed, 0 if none
	Text   string   `cbor:"4,keyasint"`           // one line, lower case
	Hint   string   `cbor:"5,keyasint,omitempty"` // what mends it
}

// Error makes a refusal an error: its one line.
func (r *Refused) Error() string { return r.Text }

// ExitCode is what the agent ends with for a refusal: 127 not found, 126
// cannot execute, else 255.
func (r *Refused) ExitCode() int {
	switch r.Reason {
	case ReasonNotFound:
		return 127
	case ReasonCannotExec, ReasonWrongProgram:
		return 126
	}
	return 255
}
