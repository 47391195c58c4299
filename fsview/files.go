package fsview

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"rexec/fsview/fsproto"
)

const (
	flushOwner   = 1 << 0 // ReleaseIn.ReleaseFlags: LockOwner is set
	releaseFlock = 1 << 1 // ReleaseIn.ReleaseFlags: drop the owner's flock(2)
	dataSync     = 1 << 0 // FsyncIn.FsyncFlags: fdatasync(2)
)

// openFlags are the open(2) flags that mean something to home. O_DIRECT would
// demand home's alignment. O_APPEND is there for files that allow nothing else
// (chattr +a); each write says for itself whether it appends.
const openFlags = unix.O_ACCMODE | unix.O_APPEND | unix.O_TRUNC | unix.O_SYNC | unix.O_DSYNC | unix.O_NOATIME | unix.O_LARGEFILE | unix.O_NONBLOCK

func writes(flags uint32) bool {
	return flags&unix.O_ACCMODE != unix.O_RDONLY || flags&unix.O_TRUNC != 0
}

// Open answers open(2).
func (t *tree) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n, st := t.begin(in.NodeId)
	switch {
	case st != fuse.OK:
		return st
	case writes(in.Flags) && t.mount.ReadOnly:
		return fuse.EROFS
	case n.org == 0 && writes(in.Flags):
		return fuse.EACCES
	case n.org == 0:
		out.Fh = t.handles.add(&handle{node: n})
		return fuse.OK
	}
	if a := t.adopted(n, in.Flags); a != nil {
		t.openAdopted(n, a, in.Flags, out)
		return fuse.OK
	}
	if n.use == nil && shareable(in.Flags) {
		return t.openShared(cancel, in, n, out)
	}
	op, err := t.origin.Open(request{cancel}, n.org, in.Flags&openFlags)
	if err != nil {
		return t.status(err)
	}
	if killsSuid(&in.InHeader, in.Mode&fuse.OPEN_KILL_SUIDGID != 0) && in.Flags&unix.O_TRUNC != 0 {
		t.killSuid(cancel, &in.InHeader, n, &op)
	}
	out.Fh = t.handles.add(newHandle(n, op.FH, in.Flags))
	out.OpenFlags = t.cacheFlags(n, in.Flags, &op.Attr)
	return fuse.OK
}

// killsSuid says whether an operation that the kernel has marked so clears
// set-id bits. The kernel marks all of a job's, whose CAP_FSETID is its own
// user namespace's only; home's root keeps them.
func killsSuid(h *fuse.InHeader, marked bool) bool { return marked && h.Uid != 0 }

// adopted says whether an open is for a handle of home's own.
func (t *tree) adopted(n *node, flags uint32) *adopted {
	switch {
	case n.use != nil && n.use.take():
		return n.use
	case n.use == nil && flags&AdoptMark == AdoptMark:
		return t.view.adopt.marked(t.index, n.org)
	}
	return nil
}

// killSuid drops set-id bits of a file truncated by someone who may not keep
// them, where home's kernel did not.
func (t *tree) killSuid(cancel <-chan struct{}, h *fuse.InHeader, n *node, op *fsproto.Opened) {
	if op.Attr.Mode&(unix.S_ISUID|unix.S_ISGID) == 0 {
		return
	}
	r, err := t.origin.Setattr(request{cancel}, &fsproto.SetattrIn{Node: n.org, FH: op.FH, Valid: fsproto.KillSuid, Caller: caller(h)})
	if err == nil {
		op.Attr = r.Attr
	}
}

// cacheFlags says how the kernel may use its page cache for an open file:
// pages of earlier opens are kept where the content is the same. Appending
// goes past it, as only home knows where the end is.
func (t *tree) cacheFlags(n *node, flags uint32, a *fsproto.Attr) uint32 {
	keep := n.keep(a)
	if flags&unix.O_ACCMODE == unix.O_WRONLY && flags&unix.O_APPEND != 0 {
		return fuse.FOPEN_DIRECT_IO
	}
	if keep {
		return fuse.FOPEN_KEEP_CACHE
	}
	return 0
}

// Create answers open(2) with O_CREAT for a name that was not there.
func (t *tree) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	parent, st := t.room(in.NodeId, name)
	if st != fuse.OK {
		return st
	}
	c, err := t.origin.Create(request{cancel}, makeFile(in, parent.org, name, unix.O_CREAT|unix.O_EXCL))
	if err != nil {
		return t.status(err)
	}
	t.created(in, &c, parent.child(name), out)
	return fuse.OK
}

// Tmpfile answers open(2) with O_TMPFILE.
func (t *tree) Tmpfile(cancel <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	parent, st := t.change(in.NodeId)
	switch {
	case st != fuse.OK:
		return st
	case parent.org == 0:
		return fuse.EACCES
	}
	c, err := t.origin.Tmpfile(request{cancel}, makeFile(in, parent.org, "", unix.O_EXCL))
	if err != nil {
		return t.status(err)
	}
	t.created(in, &c, nil, out)
	return fuse.OK
}

func makeFile(in *fuse.CreateIn, parent fsproto.Node, name string, more uint32) *fsproto.MakeIn {
	return &fsproto.MakeIn{
		Parent: parent, Name: name, Mode: in.Mode & 0o7777, Umask: in.Umask & 0o777,
		Flags: in.Flags & (openFlags | more), Caller: caller(&in.InHeader),
	}
}

func (t *tree) created(in *fuse.CreateIn, c *fsproto.Created, p *pin, out *fuse.CreateOut) {
	t.entered(in.Unique, &c.Entry, p, &out.EntryOut)
	n := t.nodes.get(out.NodeId)
	out.OpenOut = fuse.OpenOut{
		Fh:        t.handles.add(newHandle(n, c.FH, in.Flags)),
		OpenFlags: t.cacheFlags(n, in.Flags, &c.Entry.Attr),
	}
}

// Read answers read(2) and page faults.
func (t *tree) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	h, st := t.open(in.Fh)
	if st != fuse.OK {
		return nil, st
	}
	if h.fh == 0 {
		return fuse.ReadResultData(nil), fuse.OK
	}
	var data []byte
	var err error
	if h.shared != nil {
		data, err = t.readShared(cancel, h.shared, in.Offset, len(buf))
	} else {
		data, err = t.origin.Read(request{cancel}, h.fh, int64(in.Offset), len(buf))
	}
	if err != nil {
		return nil, t.status(err)
	}
	if len(data) > len(buf) {
		return nil, fuse.EIO
	}
	return fuse.ReadResultData(data), fuse.OK
}

// open finds the handle of a request.
func (t *tree) open(id uint64) (*handle, fuse.Status) {
	if t.closed.Load() {
		return nil, fuse.Status(syscall.ENOTCONN)
	}
	if h := t.handles.get(id); h != nil {
		return h, fuse.OK
	}
	return nil, fuse.EBADF
}

// opened is open for what only home's files can do.
func (t *tree) opened(id uint64) (*handle, fuse.Status) {
	h, st := t.open(id)
	if st == fuse.OK && h.fh == 0 {
		st = fuse.EINVAL
	}
	return h, st
}

// Write answers write(2).
func (t *tree) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	h, st := t.opened(in.Fh)
	if st != fuse.OK {
		return 0, st
	}
	h.wrote.Store(true)
	w := &fsproto.WriteIn{
		FH: h.fh, Off: int64(in.Offset), Data: data,
		Append:   in.Flags&unix.O_APPEND != 0 && in.WriteFlags&fuse.WRITE_CACHE == 0,
		KillSuid: killsSuid(&in.InHeader, in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0),
		Caller:   caller(&in.InHeader),
	}
	var n int
	var err error
	if h.use != nil {
		n, err = h.use.write(request{cancel}, t.origin, w)
	} else {
		n, err = t.origin.Write(request{cancel}, w)
	}
	if err == nil && (n < 0 || n > len(data)) {
		return 0, fuse.EIO
	}
	return uint32(n), t.status(err)
}

// Flush answers close(2) of one descriptor. Home is asked where that can
// mean something: an error that a write left behind, locks to drop.
func (t *tree) Flush(cancel <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	h, st := t.open(in.Fh)
	if st != fuse.OK {
		return st
	}
	if h.fh == 0 || !h.wrote.Swap(false) && !h.node.wasLocked() {
		return fuse.OK
	}
	return t.status(t.origin.Flush(request{cancel}, h.fh, in.LockOwner))
}

// Release answers the last close(2) of an open file; nobody waits for it.
func (t *tree) Release(cancel <-chan struct{}, in *fuse.ReleaseIn) {
	if h := t.handles.take(in.Fh); h != nil {
		h.close(t, in.LockOwner, in.ReleaseFlags&releaseFlock != 0)
	}
}

// Fsync answers fsync(2) and fdatasync(2).
func (t *tree) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	h, st := t.open(in.Fh)
	if st != fuse.OK || h.fh == 0 {
		return st
	}
	return t.status(t.origin.Fsync(request{cancel}, h.fh, in.FsyncFlags&dataSync != 0))
}

// Fallocate answers fallocate(2).
func (t *tree) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	h, st := t.opened(in.Fh)
	if st != fuse.OK {
		return st
	}
	h.wrote.Store(true)
	return t.status(t.origin.Fallocate(request{cancel}, h.fh, in.Mode, int64(in.Offset), int64(in.Length)))
}

// Lseek answers lseek(2) with SEEK_DATA and SEEK_HOLE.
func (t *tree) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	h, st := t.opened(in.Fh)
	if st != fuse.OK {
		return st
	}
	off, err := t.origin.Lseek(request{cancel}, h.fh, int64(in.Offset), in.Whence)
	out.Offset = uint64(off)
	return t.status(err)
}

// maxCopy bounds one copy_file_range(2), so that it can be interrupted.
const maxCopy = 1 << 30

// CopyFileRange answers copy_file_range(2) within one mount.
func (t *tree) CopyFileRange(cancel <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	from, st := t.opened(in.FhIn)
	if st != fuse.OK {
		return 0, st
	}
	to, st := t.opened(in.FhOut)
	if st != fuse.OK {
		return 0, st
	}
	to.wrote.Store(true)
	n, err := t.origin.CopyRange(request{cancel}, &fsproto.CopyIn{
		In: from.fh, Out: to.fh, InOff: int64(in.OffIn), OutOff: int64(in.OffOut),
		Len: min(in.Len, maxCopy), Flags: uint32(in.Flags),
	})
	if n < 0 || n > maxCopy {
		return 0, fuse.EIO
	}
	return uint32(n), t.status(err)
}
