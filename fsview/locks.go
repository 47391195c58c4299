package fsview

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"rexec/fsview/fsproto"
)

func (t *tree) lock(cancel <-chan struct{}, in *fuse.LkIn, wait bool) (*fsproto.Lock, fuse.Status) {
	h, st := t.opened(in.Fh)
	if st != fuse.OK {
		return nil, st
	}
	fh, err := t.ownFile(cancel, h)
	if err != nil {
		return nil, t.status(err)
	}
	return &fsproto.Lock{
		Node: h.node.org, FH: fh, Owner: in.Owner, Start: in.Lk.Start, End: in.Lk.End,
		Type: in.Lk.Typ, Pid: int32(in.Lk.Pid), Flock: in.LkFlags&fuse.LK_FLOCK != 0, Wait: wait,
	}, fuse.OK
}

// GetLk answers fcntl(2) F_GETLK.
func (t *tree) GetLk(cancel <-chan struct{}, in *fuse.LkIn, out *fuse.LkOut) fuse.Status {
	l, st := t.lock(cancel, in, false)
	if st != fuse.OK {
		return st
	}
	got, err := t.origin.Getlk(request{cancel}, l)
	if err != nil {
		return t.status(err)
	}
	out.Lk = fuse.FileLock{Start: got.Start, End: got.End, Typ: got.Type, Pid: uint32(got.Pid)}
	return fuse.OK
}

// SetLk answers fcntl(2) F_SETLK and flock(2) with LOCK_NB.
func (t *tree) SetLk(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return t.setLock(cancel, in, false)
}

// SetLkw answers fcntl(2) F_SETLKW and flock(2).
func (t *tree) SetLkw(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return t.setLock(cancel, in, true)
}

func (t *tree) setLock(cancel <-chan struct{}, in *fuse.LkIn, wait bool) fuse.Status {
	l, st := t.lock(cancel, in, wait)
	if st != fuse.OK {
		return st
	}
	if !l.Flock && l.Type != unix.F_UNLCK {
		t.handles.get(in.Fh).node.setLocked() // from now on each close must be told
	}
	return t.status(t.origin.Setlk(request{cancel}, l))
}
