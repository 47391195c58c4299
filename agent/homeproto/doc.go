// Package homeproto is what an agent (the rexec process) and rexec home say
// to each other over a local stream socket.
//
// The agent sends one [Ask] with the descriptors that belong to it, then
// [Relay] messages; home sends [Answer] messages, the last of which is Refused
// or Ended. Each message is a 4-byte big endian length and a CBOR map with
// integer keys; descriptors travel by SCM_RIGHTS, at most 250 to a byte, right
// after the Ask: root, cwd, the controlling terminal where Ask.Tty is set, and
// one for each of Request.Descriptions, in that order.
//
// Either side's end of the connection means that the process died: home then
// kills the job, the agent ends with 255.
package homeproto

import "rexec/rer"

// Ask is a command to run somewhere. In Request the agent leaves channels,
// handles and description numbers 0: home fills them in.
type Ask struct {
	Target  string      `cbor:"1,keyasint"` // "loopback", "ssh://user@host:port", "unix:/path"
	Name    string      `cbor:"2,keyasint"` // as the user wrote it, for messages
	Request rer.Request `cbor:"3,keyasint"`
	Tty     bool        `cbor:"4,keyasint,omitempty"`
	Verbose int         `cbor:"5,keyasint,omitempty"`
	Stats   bool        `cbor:"6,keyasint,omitempty"`
	NoCache bool        `cbor:"7,keyasint,omitempty"`
	Rexecd  string      `cbor:"8,keyasint,omitempty"`  // path of rexecd for loopback
	SSH     string      `cbor:"9,keyasint,omitempty"`  // REXEC_SSH
	Env     [][]byte    `cbor:"10,keyasint,omitempty"` // the caller's environment, for ssh (agent socket)
	List    bool        `cbor:"11,keyasint,omitempty"` // no command: answer with Jobs and Links
	Stop    bool        `cbor:"12,keyasint,omitempty"` // no command: end when no job is left
}

// Relay is what the agent sends later.
type Relay struct {
	Signal *rer.Signal `cbor:"1,keyasint,omitempty"`
	// Resumed: the agent did not stop as Answer.Stopped asked, since its group
	// is orphaned. An end of a stop is told by Signal alone.
	Resumed bool `cbor:"2,keyasint,omitempty"`
}

// Answer is one event of home's; exactly one field is set.
type Answer struct {
	Started   *rer.Started   `cbor:"1,keyasint,omitempty"`
	Refused   *rer.Refused   `cbor:"2,keyasint,omitempty"`
	Stopped   *rer.Stopped   `cbor:"3,keyasint,omitempty"` // the terminal is restored already; stop yourself
	Continued *rer.Continued `cbor:"4,keyasint,omitempty"`
	Ended     *rer.Ended     `cbor:"5,keyasint,omitempty"` // everything is delivered and the terminal restored
	Note      string         `cbor:"6,keyasint,omitempty"` // a line for standard error (asked for by -v, or a fault)
	Stats     *Stats         `cbor:"7,keyasint,omitempty"` // before Ended, where asked
	Listing   *Listing       `cbor:"8,keyasint,omitempty"`
}

// Stats is what --stats prints.
type Stats struct {
	BytesOut uint64            `cbor:"1,keyasint"` // on the link, home to server
	BytesIn  uint64            `cbor:"2,keyasint"`
	Requests map[string]uint64 `cbor:"3,keyasint,omitempty"` // file requests by name
	Launch   int64             `cbor:"4,keyasint"`           // microseconds from Ask to Started
	Total    int64             `cbor:"5,keyasint"`           // microseconds from Ask to Ended
}

// Listing is what rexec ps and rexec home status show.
type Listing struct {
	Pid   int    `cbor:"1,keyasint"`
	Jobs  []Job  `cbor:"2,keyasint,omitempty"`
	Links []Link `cbor:"3,keyasint,omitempty"`
}

// Job is one running command.
type Job struct {
	Agent   int32  `cbor:"1,keyasint"` // home's number: "sysid:pid" with Sysid
	Sysid   string `cbor:"2,keyasint"`
	Server  string `cbor:"3,keyasint"`
	Remote  int64  `cbor:"4,keyasint"` // the server's own number for it
	Peer    string `cbor:"5,keyasint"` // the server's sysid
	Command string `cbor:"6,keyasint"`
	Since   int64  `cbor:"7,keyasint"` // Unix nanoseconds
	State   string `cbor:"8,keyasint"` // running, stopped
}

// Link is one link to a server.
type Link struct {
	Target   string `cbor:"1,keyasint"`
	Peer     string `cbor:"2,keyasint"`
	BytesIn  uint64 `cbor:"3,keyasint"`
	BytesOut uint64 `cbor:"4,keyasint"`
	Jobs     int    `cbor:"5,keyasint"`
}
