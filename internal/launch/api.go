// Package launch runs jobs: it starts a session's init process (PID 1 of the
// session's PID namespace), has it build views, and launches commands there
// under home's process numbers, through ghosts.
//
// The session calls [Start] and then methods of [Init]; the init process runs
// [Main]. They talk over a SEQPACKET socket pair, descriptors by SCM_RIGHTS.
// Init dies with the session, and every process and mount of the session dies
// with init.
//
// Methods of Init may be called at once from several goroutines.
package launch

import (
	"os"
	"rexec/fsview/mounts"
	"rexec/rer"
)

// Config describes the session whose init is started.
type Config struct {
	Program  string   // path of rexecd; run with the argument "init"
	UID, GID uint32   // home's ids, which jobs see
	Groups   []uint32 // home's supplementary groups
	Hostname string   // home's
	// Privileged says that the session runs as the server's root: several
	// ids are mapped (home's one to one) and set_id system calls work.
	Privileged bool
	FuseDevice string                           // "": /dev/fuse
	Verbose    func(format string, args ...any) // never nil after Start
}

// View is a view that init holds: a mount namespace.
type View int

// Job is what init needs to run one command. Strings hold no NUL bytes.
type Job struct {
	ID   [16]byte
	View View

	Argv  [][]byte
	Paths [][]byte // programs to try in order, absolute or relative to Cwd; as execvpe(3) has them
	Env   [][]byte
	Cwd   []byte // absolute path in the view
	// CwdIno and CwdDev, where not 0, must be those of Cwd when entered;
	// else CwdElse (an absolute path) is entered.
	CwdIno  uint64
	CwdElse []byte

	Umask       uint32
	Nice        int
	Rlimits     []rer.Rlimit
	Mask        uint64
	Ignored     uint64
	UID, GID    uint32
	Groups      []uint32
	Personality uint32

	Pid, Ppid, Pgrp, Sid int32 // home's; 0: not to be reproduced

	FDs      []FD
	Terminal TerminalKey // zero: none
	// Foreground makes the job's group the terminal's foreground group before
	// the program runs: later it might have been stopped for reading.
	Foreground bool
}

// TerminalKey names a terminal of a session: a pty that was made by
// [Init.Terminal]. Its session leader's ghost has it as controlling terminal.
type TerminalKey struct {
	Dev uint64
	Sid int32
}

// Source says what a descriptor of the job is made of.
type Source int

const (
	SourceFile     Source = 1 // a descriptor passed along: FD.File indexes the files of Launch
	SourceOpen     Source = 2 // Path opened in the view with Flags
	SourceTerminal Source = 3 // the slave of Job.Terminal, with Flags' access mode
)

// FD is one descriptor of the job. FDs with the same Desc (not 0) share one
// open file description, also between jobs of the session while any of them
// or init holds it.
type FD struct {
	Num    int32
	Desc   uint64
	Source Source
	File   int
	Path   []byte // absolute, in the view
	Flags  int    // open(2) flags, without O_CREAT
	Offset int64  // SourceOpen of a regular file: lseek(2) before the job has it
	// Ino, where not 0, must be the inode number of what Path opens, else
	// Else (absolute) is opened.
	Ino  uint64
	Else []byte
	// Mark are flags of open(2) that are given for Path and taken off the
	// description again by F_SETFL; 0: none. Else is opened without it.
	Mark int
	// Keep has init report the file position when the job stops and ends.
	Keep bool
}

// Failure is a launch that did not happen: the step that failed and its
// errno.
type Failure struct {
	Step  string // "fork", "cwd", "open N", "exec", ...
	Errno int
}

// Launched says how a launch went.
type Launched struct {
	Pid   int32 // the job's number in the session's PID namespace
	Taken []int32
	Outer int // the job's number in the session's (outer) PID namespace, 0 if unknown
}

// Event is what became of a job, in order for each job.
type Event struct {
	ID        [16]byte
	Kind      EventKind
	Signo     int            // EventStopped
	Status    rer.Status     // EventEnded
	Positions []rer.Position // EventStopped, EventEnded: of FDs with Keep
}

// EventKind tells events apart.
type EventKind int

const (
	EventStopped   EventKind = 1
	EventContinued EventKind = 2
	EventEnded     EventKind = 3
	EventGone      EventKind = 4 // the last descendant has ended too; init forgets the job
)

// ViewSpec is a view as init builds it; see package mounts.
type ViewSpec = mounts.Spec

// Service serves one FUSE mount of a view being built: dev is the opened
// /dev/fuse descriptor of the spec's mount with that index, now the
// service's own. It may be called before mount(2)'s INIT was read.
type Service func(index int, dev *os.File) error
