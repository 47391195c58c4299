package rer

// Channels that every link has from the start.
const (
	ControlChannel uint32 = 0
	RecallsChannel uint32 = 1
	FilesChannel   uint32 = 2
)

// Versions of this protocol that this code speaks.
const (
	VersionMin = 1
	VersionMax = 1
)

// Message is what the control channel carries: exactly one field is set.
type Message struct {
	Hello     *Hello     `cbor:"1,keyasint,omitempty"`
	Launch    *Request   `cbor:"2,keyasint,omitempty"`
	Started   *Started   `cbor:"3,keyasint,omitempty"`
	Refused   *Refused   `cbor:"4,keyasint,omitempty"`
	Signal    *Signal    `cbor:"5,keyasint,omitempty"`
	Kill      *Kill      `cbor:"6,keyasint,omitempty"`
	Stopped   *Stopped   `cbor:"7,keyasint,omitempty"`
	Continued *Continued `cbor:"8,keyasint,omitempty"`
	Ended     *Ended     `cbor:"9,keyasint,omitempty"`
	Ping      *Ping      `cbor:"10,keyasint,omitempty"`
	Pong      *Ping      `cbor:"11,keyasint,omitempty"`
}

// Hello is the first message of each side.
type Hello struct {
	Versions [2]int   `cbor:"1,keyasint"` // lowest and highest spoken
	Features []string `cbor:"2,keyasint,omitempty"`
	Build    string   `cbor:"3,keyasint,omitempty"` // for messages only
	Sysid    string   `cbor:"4,keyasint,omitempty"`
	Hostname string   `cbor:"5,keyasint,omitempty"`
	User     string   `cbor:"6,keyasint,omitempty"`
	UID      uint32   `cbor:"7,keyasint"`
	GID      uint32   `cbor:"8,keyasint"`
	Groups   []uint32 `cbor:"9,keyasint,omitempty"`
	Arch     string   `cbor:"10,keyasint,omitempty"` // GOARCH
	NumCPU   int      `cbor:"11,keyasint,omitempty"`
	Clock    int64    `cbor:"12,keyasint,omitempty"` // Unix nanoseconds when sent

	// Mounts is home's mount table (client's Hello only): one FUSE mount in
	// the views for each.
	Mounts []Mount `cbor:"13,keyasint,omitempty"`
}

// Mount is one file system of home's that views show.
type Mount struct {
	Path     string `cbor:"1,keyasint"` // absolute, clean; the first is "/"
	Root     Handle `cbor:"2,keyasint"` // fsproto node of its root
	Dev      uint64 `cbor:"3,keyasint"`
	Type     string `cbor:"4,keyasint,omitempty"`
	Source   string `cbor:"5,keyasint,omitempty"`
	ReadOnly bool   `cbor:"6,keyasint,omitempty"`
}

// Started says that the command's execve succeeded.
type Started struct {
	ID       [16]byte `cbor:"1,keyasint"`
	Pid      int32    `cbor:"2,keyasint"`           // its number; the agent's unless that was taken
	Taken    []int32  `cbor:"3,keyasint,omitempty"` // home's numbers that could not be had
	Switch   []string `cbor:"4,keyasint,omitempty"` // filtered
	Dropped  []string `cbor:"5,keyasint,omitempty"` // SWITCH elements that the server lacks or forbids
	ServerID int64    `cbor:"6,keyasint,omitempty"` // pid in the server's own numbering
}

// Signal carries one signal to a job (home to session).
type Signal struct {
	ID    [16]byte `cbor:"1,keyasint"`
	Signo int      `cbor:"2,keyasint"`
	Code  int      `cbor:"3,keyasint,omitempty"` // si_code
	Pid   int32    `cbor:"4,keyasint,omitempty"` // si_pid, home's number
	UID   uint32   `cbor:"5,keyasint,omitempty"`
	Value uint64   `cbor:"6,keyasint,omitempty"` // si_value
	Group bool     `cbor:"7,keyasint,omitempty"` // from the terminal: to the job's whole process group
	// Terminal is what changed while the job was stopped, if anything: its
	// Termios and Foreground, where not empty, hold before SIGCONT comes.
	Terminal *Terminal `cbor:"8,keyasint,omitempty"`
}

// Kill ends a job whose agent died: SIGHUP, then SIGKILL.
type Kill struct {
	ID [16]byte `cbor:"1,keyasint"`
}

// Stopped and Continued report job control of the command itself.
type Stopped struct {
	ID        [16]byte   `cbor:"1,keyasint"`
	Signo     int        `cbor:"2,keyasint"`
	Sent      []Sent     `cbor:"3,keyasint,omitempty"`
	Positions []Position `cbor:"4,keyasint,omitempty"`
	Consumed  []Sent     `cbor:"5,keyasint,omitempty"`
	Termios   []byte     `cbor:"6,keyasint,omitempty"` // as in Ended
}

// Continued reports that a stopped command runs again.
type Continued struct {
	ID [16]byte `cbor:"1,keyasint"`
}

// Ended reports the command's end.
type Ended struct {
	ID        [16]byte   `cbor:"1,keyasint"`
	Status    Status     `cbor:"2,keyasint"`
	Sent      []Sent     `cbor:"3,keyasint,omitempty"`
	Positions []Position `cbor:"4,keyasint,omitempty"`
	// Consumed says for each paced channel how many bytes the job has read in
	// all, as the last 'c' message does: that one may come later than this.
	Consumed []Sent `cbor:"5,keyasint,omitempty"`
	// Termios are the settings that the command left its controlling terminal
	// with, as a 't' message has them: that one may come later than this.
	Termios []byte `cbor:"6,keyasint,omitempty"`
}

// Sent says how many data bytes the session has sent on a channel so far.
type Sent struct {
	_       struct{} `cbor:",toarray"`
	Channel uint32
	Bytes   uint64
}

// Position is the file position of a description as the job left it.
type Position struct {
	_      struct{} `cbor:",toarray"`
	Desc   uint64   // Description.ID
	Offset int64
}

// Ping asks for a Pong with the same number.
type Ping struct {
	Seq uint64 `cbor:"1,keyasint"`
}
