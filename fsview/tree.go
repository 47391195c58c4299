package fsview

import (
	"context"
	"io"
	"log"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"rexec/fsview/fsproto"
)

// tree is one FUSE mount: it answers the kernel's requests from its origin.
type tree struct {
	fuse.RawFileSystem // ENOSYS to what is not here
	view               *View
	index              int
	mount              Mount
	origin             fsproto.Origin

	pins    *pin
	nodes   *table
	handles handles
	flights flights
	device  atomic.Pointer[device]
	closed  atomic.Bool
	shares  shares

	secretOnce sync.Once
	secret     *node
}

func newTree(v *View, index int, m Mount) *tree {
	return &tree{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		view:          v, index: index, mount: m, origin: m.Origin,
		pins: &pin{dir: true, point: true}, nodes: newTable(),
	}
}

// preparing is the number of what prepare does among the requests under way:
// the kernel's are even.
const preparing = 1

// prepare makes the root and the pinned nodes. Recalls that come meanwhile are
// the caller's to pass on.
func (t *tree) prepare(ctx context.Context) error {
	t.pins.node = t.nodes.addPinned(rootID, t.mount.Root, t.pins)
	r, err := t.origin.Getattr(ctx, t.mount.Root, 0)
	if err != nil {
		return err
	}
	t.flights.add(preparing)
	defer t.flights.done(preparing)
	t.believe(preparing, t.pins.node, &r.Attr, r.Lease, subject{node: t.mount.Root})
	return t.bind(ctx, t.pins)
}

// String names the file system.
func (t *tree) String() string { return "rexec" }

// options are what the kernel is asked for. With one id the origin's rights
// decide, which POSIX_ACL would take away from it: it turns
// default_permissions on.
func (t *tree) options() *fuse.MountOptions {
	return &fuse.MountOptions{
		MaxWrite:             fsproto.MaxIO,
		MaxBackground:        64,
		EnableLocks:          true,
		EnableAcl:            !t.view.cfg.OneID,
		DisableReadDirPlus:   true,
		EnableSymlinkCaching: true, // a link never changes: a new target is a new inode
		DisableSplice:        true,
		Logger:               log.New(logWriter{t.view}, "", 0),
		ExtraCapabilities: fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_DONT_MASK | fuse.CAP_HANDLE_KILLPRIV_V2 |
			fuse.CAP_DIRECT_IO_ALLOW_MMAP | fuse.CAP_ASYNC_DIO | fuse.CAP_HAS_EXPIRE_ONLY,
		DisabledCapabilities: fuse.CAP_PASSTHROUGH | fuse.CAP_NO_OPEN_SUPPORT,
		PanicHandler: func(v any) fuse.Status {
			t.view.logf("panic in a file request: %v", v)
			return fuse.EIO
		},
	}
}

type logWriter struct{ v *View }

func (w logWriter) Write(p []byte) (int, error) {
	w.v.logf("%s", p)
	return len(p), nil
}

var _ io.Writer = logWriter{}

// request is the context of one FUSE request: it ends when the kernel
// interrupts it, or the view is closed.
type request struct{ cancel <-chan struct{} }

func (r request) Deadline() (time.Time, bool) { return time.Time{}, false }
func (r request) Done() <-chan struct{}       { return r.cancel }
func (r request) Value(any) any               { return nil }
func (r request) Err() error {
	select {
	case <-r.cancel:
		return context.Canceled
	default:
		return nil
	}
}

// interruptAll ends the contexts of all requests under way.
func (t *tree) interruptAll() {
	d := t.device.Load()
	if d == nil {
		return
	}
	for _, u := range t.flights.uniques() {
		d.interrupt(u)
	}
}

// begin finds the node of a request that the origin is to be asked about:
// ESTALE if there is none, ENOTCONN once the view is closed.
func (t *tree) begin(id uint64) (*node, fuse.Status) {
	if t.closed.Load() {
		return nil, fuse.Status(syscall.ENOTCONN)
	}
	n := t.nodes.get(id)
	if n == nil {
		return nil, fuse.Status(syscall.ESTALE)
	}
	return n, fuse.OK
}

// change is begin for what changes the file system.
func (t *tree) change(id uint64) (*node, fuse.Status) {
	n, st := t.begin(id)
	if st == fuse.OK && t.mount.ReadOnly {
		st = fuse.EROFS
	}
	return n, st
}

// status makes an error the kernel's. ENOSYS would turn the operation off for
// good, and numbers from 512 are the kernel's own.
func (t *tree) status(err error) fuse.Status {
	errno := fsproto.Errno(err)
	switch {
	case errno == syscall.ENOSYS:
		errno = syscall.EOPNOTSUPP
	case errno >= 512:
		errno = syscall.EIO
	case errno == syscall.EINTR && t.closed.Load():
		errno = syscall.ENOTCONN
	}
	return fuse.Status(errno)
}

func caller(h *fuse.InHeader) fsproto.Caller {
	return fsproto.Caller{UID: h.Uid, GID: h.Gid, Pid: int32(h.Pid)}
}

// Init and the rest of what a server calls besides requests.

func (t *tree) Init(*fuse.Server) {}

// Forget takes lookups of a node back.
func (t *tree) Forget(id, lookups uint64) {
	n := t.nodes.forget(id, lookups)
	switch {
	case n == nil:
	case n.use != nil:
		t.view.adopt.drop(n)
	default:
		t.unshare(n)
	}
}

// StatFs answers statfs(2).
func (t *tree) StatFs(cancel <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	n, st := t.begin(h.NodeId)
	if st != fuse.OK {
		return st
	}
	org := n.org
	if org == 0 {
		org = t.mount.Root
	}
	s, err := t.origin.Statfs(request{cancel}, org)
	if err != nil {
		return t.status(err)
	}
	*out = fuse.StatfsOut{
		Blocks: s.Blocks, Bfree: s.Bfree, Bavail: s.Bavail, Files: s.Files, Ffree: s.Ffree,
		Bsize: s.Bsize, NameLen: s.Namelen, Frsize: s.Frsize,
	}
	return fuse.OK
}

const accessWrite = unix.W_OK

// Access answers access(2), where the kernel does not decide itself.
func (t *tree) Access(cancel <-chan struct{}, in *fuse.AccessIn) fuse.Status {
	n, st := t.begin(in.NodeId)
	if st != fuse.OK {
		return st
	}
	if n.org == 0 {
		if in.Mask&accessWrite != 0 {
			return fuse.EACCES
		}
		return fuse.OK
	}
	if t.mount.ReadOnly && in.Mask&accessWrite != 0 {
		return fuse.EROFS
	}
	return t.status(t.origin.Access(request{cancel}, n.org, in.Mask))
}
