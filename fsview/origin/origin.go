// Package origin answers a view's file requests from this machine's own file
// systems, with the rights of the process that it runs in.
//
// An [Origin] serves one channel (see fsproto.Serve): nodes, open files and
// lock owners are its own. A node is one object (mount, device, inode,
// generation), kept by an O_PATH descriptor, so it outlives its names. When
// descriptors run short those of idle nodes are given up, and found again by
// file handle where the process may do that, else by the name they were last
// seen under; where both fail the node is ESTALE.
//
// Everything is done relative to descriptors, one name at a time, and no
// symbolic link is ever followed. FIFOs, sockets and devices are never opened.
//
// The process must have set its umask to 0 (the origin applies the umask of
// each request), must ignore SIGXFSZ, and needs /proc.
//
// A process with euid 0, CAP_SETUID and CAP_SETGID makes objects with the ids
// of the request's Caller; whether the caller may make them is for the view's
// kernel to judge. Any other process acts as itself.
//
// Lock order: leases.turn, file.pos, Origin.mu, leases.mu; lockTable.mu is never
// held together with them.
package origin

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"rexec/fsview/fsproto"
)

// Options are what New may be told.
type Options struct {
	// Hide says which names do not exist for the view. path is absolute, as
	// this process sees it. Lookup fails with ENOENT, listings leave the
	// name out, and nothing can be made or renamed there (EACCES). nil: none.
	Hide func(path string) bool
	// Expose says whether the file now at path may be opened, linked or
	// renamed. nil: [HidePrivateKeys].
	Expose func(path string) error
	// Leases grants leases of names and attributes; then whoever sends
	// anything to the side of the view must call Settle first. Not together
	// with Hide, whose answers change with names further up.
	Leases bool
	// MaxNodes bounds the descriptors held for nodes. 0: half of
	// RLIMIT_NOFILE (whose soft limit package os raises at start).
	MaxNodes int
}

// Origin is the native origin.
type Origin struct {
	opt    Options
	as     identity
	locks  lockTable
	leases *leases // nil: none are granted

	mu        sync.Mutex // guards what follows
	closed    bool
	lastNode  fsproto.Node
	nodes     map[fsproto.Node]*node
	byKey     map[key]*node
	idle      *list.List // of *node with a descriptor, most recently used first
	evicted   int        // nodes without a descriptor
	noHandles bool       // open_by_handle_at is not for us
	mounts    map[uint64]int
	lastFH    fsproto.FH
	files     map[fsproto.FH]*file
	recall    func([]fsproto.Recall)
}

var _ fsproto.Origin = (*Origin)(nil)

// New makes an origin. Close it.
func New(opt Options) (*Origin, error) {
	if opt.Expose == nil {
		opt.Expose = HidePrivateKeys
	}
	if opt.MaxNodes == 0 {
		var lim unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
			return nil, fmt.Errorf("getrlimit: %w", err)
		}
		opt.MaxNodes = int(min(lim.Cur/2, 1<<20))
	}
	if _, err := os.Readlink("/proc/self/fd"); err != nil && !errors.Is(err, unix.EINVAL) {
		return nil, fmt.Errorf("origin needs /proc: %w", err)
	}
	o := &Origin{
		opt: opt, as: ownIdentity(), idle: list.New(),
		nodes: make(map[fsproto.Node]*node), byKey: make(map[key]*node),
		mounts: make(map[uint64]int), files: make(map[fsproto.FH]*file),
	}
	o.locks.init()
	if opt.Leases && opt.Hide == nil {
		o.leases = newLeases(o)
	}
	return o, nil
}

// Close releases everything that was handed out. Requests still running end
// as they can; later ones fail with ESTALE or EBADF.
func (o *Origin) Close() {
	o.leases.close()
	o.locks.close()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	for fh, f := range o.files {
		delete(o.files, fh)
		f.gone = true
		o.settleFile(f)
	}
	for _, n := range o.nodes {
		n.count, n.kids = 0, 0
		n.parent = nil
		o.settle(n)
	}
	for mnt, fd := range o.mounts {
		delete(o.mounts, mnt)
		unix.Close(fd)
	}
}

// SetRecall is part of [fsproto.Origin].
func (o *Origin) SetRecall(f func([]fsproto.Recall)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.recall = f
}

// fdPath is the name by which the kernel finds what fd refers to. Following it
// ends at that object, even where it is a symbolic link.
func fdPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// retry repeats a call that a signal interrupted.
func retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

// ended is EINTR when ctx has ended.
func ended(ctx context.Context) error {
	if ctx.Err() != nil {
		return unix.EINTR
	}
	return nil
}
