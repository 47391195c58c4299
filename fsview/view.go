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
