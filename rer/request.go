package rer

// Handle names a file object of home's origin: the number that package
// fsproto calls a node. 0 is none.
type Handle uint64

// Request is the remote execution request (RER): all that a process inherits
// and that the command on the server must find as if it had been started at
// home. Byte strings are exact: no encoding is assumed.
type Request struct {
	ID [16]byte `cbor:"1,keyasint"` // random; launched at most once

	// The command. Exactly one of Argv and Shell is set, or Login.
	Argv  [][]byte `cbor:"2,keyasint,omitempty"` // exact argv; Argv[0] is looked up in the job's PATH
	Shell []byte   `cbor:"3,keyasint,omitempty"` // text for /bin/sh -c
	Login bool     `cbor:"4,keyasint,omitempty"` // $SHELL -l

	Env     [][]byte `cbor:"5,keyasint,omitempty"` // "NAME=value" as found, odd ones too
	Root    Handle   `cbor:"6,keyasint"`
	Cwd     Handle   `cbor:"7,keyasint"`
	CwdPath []byte   `cbor:"8,keyasint,omitempty"` // where Cwd is now; empty when unlinked
	Switch  []string `cbor:"9,keyasint,omitempty"` // SWITCH as asked, unfiltered

	Umask   uint32   `cbor:"10,keyasint"`
	Nice    int      `cbor:"11,keyasint"`
	Rlimits []Rlimit `cbor:"12,keyasint,omitempty"`
	Mask    uint64   `cbor:"13,keyasint"` // blocked signals, bit n-1 for signal n
	Ignored uint64   `cbor:"14,keyasint"` // ignored signals, likewise

	UID      uint32   `cbor:"15,keyasint"`
	GID      uint32   `cbor:"16,keyasint"`
	Groups   []uint32 `cbor:"17,keyasint,omitempty"`
	User     string   `cbor:"18,keyasint"` // login name; accounting and logs only
	Hostname string   `cbor:"19,keyasint"`

	// Home's numbers. 0 for a parent, group or session that home's own PID
	// namespace does not show.
	Sysid string `cbor:"20,keyasint"` // home's machine id
	Pid   int32  `cbor:"21,keyasint"` // the agent's, therefore the command's
	Ppid  int32  `cbor:"22,keyasint"`
	Pgrp  int32  `cbor:"23,keyasint"`
	Sid   int32  `cbor:"24,keyasint"`

	FDs          []FD          `cbor:"25,keyasint,omitempty"`
	Descriptions []Description `cbor:"26,keyasint,omitempty"`
	Terminal     *Terminal     `cbor:"27,keyasint,omitempty"` // the controlling terminal

	Account     string `cbor:"28,keyasint,omitempty"`
	Personality uint32 `cbor:"29,keyasint,omitempty"` // personality(2)

	// Critical lists keys of this map that the server must understand.
	Critical []uint64 `cbor:"30,keyasint,omitempty"`
}

// Rlimit is one resource limit as prlimit(2) gives it.
type Rlimit struct {
	_        struct{} `cbor:",toarray"`
	Resource int
	Cur, Max uint64
}

// FD is one descriptor number of the command.
type FD struct {
	_       struct{} `cbor:",toarray"`
	Num     int32
	Desc    uint32 // index into Request.Descriptions
	CloExec bool   // always false today: a close-on-exec descriptor is not inherited
}

// Kind says what an open file description is.
type Kind uint8

const (
	KindRegular  Kind = 1 // a file of home's, opened in the view by Handle
	KindDir      Kind = 2 // a directory, likewise
	KindPath     Kind = 3 // an O_PATH descriptor, likewise
	KindPipe     Kind = 4 // pipe or FIFO, one direction
	KindSocket   Kind = 5 // connected socket, both directions
	KindTerminal Kind = 6 // the controlling terminal (Request.Terminal) or another one
	KindDevice   Kind = 7 // a kernel-bound device, opened in the view by Path
	KindRelay    Kind = 8 // anything else that can honestly be read or written: a pipe there
)

// Description is one open file description of home's, whatever the number of
// descriptors that refer to it.
type Description struct {
	ID      uint64 `cbor:"1,keyasint"` // the same for the same description in all requests of a session
	Kind    Kind   `cbor:"2,keyasint"`
	Flags   uint32 `cbor:"3,keyasint"` // F_GETFL: access mode and status flags
	Offset  int64  `cbor:"4,keyasint,omitempty"`
	Channel uint32 `cbor:"5,keyasint,omitempty"` // where its bytes cross; 0: none
	Paced   bool   `cbor:"6,keyasint,omitempty"` // input is consumed at home only when the job has read it
	Handle  Handle `cbor:"7,keyasint,omitempty"` // regular files, directories, O_PATH
	File    uint64 `cbor:"8,keyasint,omitempty"` // fsproto.FH of home's own description (KindRegular)
	Path    []byte `cbor:"9,keyasint,omitempty"` // where it is now, for /proc/self/fd and devices
	SockTyp int32  `cbor:"10,keyasint,omitempty"`
	PipeLen int32  `cbor:"11,keyasint,omitempty"` // F_GETPIPE_SZ
}

// Terminal is the command's controlling terminal.
type Terminal struct {
	Channel    uint32 `cbor:"1,keyasint"` // open for as long as home knows the terminal
	Dev        uint64 `cbor:"2,keyasint"` // home's rdev: with Sid the terminal's identity
	Termios    []byte `cbor:"3,keyasint"` // as the 't' message
	Rows       uint16 `cbor:"4,keyasint"`
	Cols       uint16 `cbor:"5,keyasint"`
	X          uint16 `cbor:"6,keyasint"`
	Y          uint16 `cbor:"7,keyasint"`
	Foreground int32  `cbor:"8,keyasint"` // home's foreground process group
	Path       []byte `cbor:"9,keyasint,omitempty"`
}
