// Package fsview is a job's file name space: it serves the FUSE mounts of
// views and answers them from origins.
//
// One [View] holds all FUSE mounts of one mount namespace. It is told the
// names on which other mounts will lie; those and their ancestors are pinned:
// always there, the same node for ever, never renamed or removed (EBUSY).
//
// The process that serves a view never opens, executes or enters anything in
// it.
package fsview

import "rexec/fsview/fsproto"

// Mount is one FUSE mount of a view.
type Mount struct {
	Path     string // absolute, clean; parents before children, the first is "/"
	Origin   fsproto.Origin
	Root     fsproto.Node
	ReadOnly bool // EROFS, whatever the origin would say
}

// Point is a name on which something other than a FUSE mount of the view will
// be mounted: a directory or file of the server's, /proc, /dev.
type Point struct {
	Path string
	Dir  bool
}

// Config is a view to serve.
type Config struct {
	Mounts []Mount
	Points []Point
	// Absent are names that do not exist in the view and cannot be made,
	// whatever their origin holds.
	Absent []string
	// OneID says that only one user id is mapped: every owner is shown as
	// UID and GID, and the origin's own rights decide.
	OneID    bool
	UID, GID uint32
	Logf     func(format string, args ...any) // nil: silent
}

// What the rest of the package offers (bodies elsewhere):
//
//	func New(cfg Config) (*View, error)
//	func (v *View) Serve(index int, dev *os.File) error  // dev: an open /dev/fuse, from then the view's; returns at once
//	func (v *View) Close() error                         // ends serving; pending requests get ENOTCONN or EINTR
//	func (v *View) Path(mount int, n fsproto.Node) string // absolute path at which init, and nobody who does not know it, can open node n (a file, also an unlinked one)
//	func (v *View) Adopt(mount int, n fsproto.Node, fh fsproto.FH, append, stream bool, release func()) // the next open of n through Path is fh of home's own, not a new one
//	func (v *View) Recall(origin fsproto.Origin, list []fsproto.Recall) // must not block: queues
//	func (v *View) Settle()                              // returns when all recalls queued so far are in force
