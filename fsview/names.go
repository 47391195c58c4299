package fsview

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"rexec/fsview/fsproto"
)

// Lookup answers from the view's own table where it can, and asks home else.
func (t *tree) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	parent := t.nodes.get(h.NodeId)
	if parent == nil {
		return fuse.Status(syscall.ESTALE)
	}
	p := parent.child(name)
	if p != nil && p.fixed {
		t.lookupPinned(p.node, out)
		return fuse.OK
	}
	if p != nil && p.absent {
		return fuse.ENOENT
	}
	if t.closed.Load() {
		return fuse.Status(syscall.ENOTCONN)
	}
	if parent.org == 0 {
		return t.lookupSecret(cancel, parent, name, out)
	}
	if parent.id == rootID && name == t.view.secret {
		t.lookupPinned(t.secretDir(), out)
		return fuse.OK
	}
	if err := fsproto.CheckName(name); err != nil {
		return t.status(err)
	}
	e, err := t.origin.Lookup(request{cancel}, parent.org, name)
	if err != nil {
		return t.status(err)
	}
	t.enteredAs(h.Unique, subject{e.Node, parent.org, name}, &e, p, out)
	return fuse.OK
}

// lookupPinned never fails and never waits.
func (t *tree) lookupPinned(n *node, out *fuse.EntryOut) {
	t.nodes.ref(n)
	a := n.last()
	lease := fsproto.LeaseEntry
	if n.org == 0 {
		lease |= fsproto.LeaseAttr
	}
	t.showEntry(out, n, &a, lease)
}

// entered shows the kernel a node that the origin has handed out.
func (t *tree) entered(unique uint64, e *fsproto.Entry, p *pin, out *fuse.EntryOut) {
	t.enteredAs(unique, subject{}, e, p, out)
}

// enteredAs is entered where the name is known.
func (t *tree) enteredAs(unique uint64, about subject, e *fsproto.Entry, p *pin, out *fuse.EntryOut) {
	if e.Node == 0 { // a name that leads to nothing
		lease := t.flights.grant(unique, e.Lease, about)
		*out = fuse.EntryOut{}
		if lease&fsproto.LeaseEntry != 0 {
			out.EntryValid = forever
		}
		return
	}
	n := t.nodes.enter(e.Node, p)
	t.showEntry(out, n, &e.Attr, t.believe(unique, n, &e.Attr, e.Lease, about))
}

// room says whether name may be made in the directory.
func (t *tree) room(id uint64, name string) (*node, fuse.Status) {
	parent, st := t.change(id)
	if st != fuse.OK {
		return nil, st
	}
	switch p := parent.child(name); {
	case p == nil:
	case p.fixed:
		return nil, fuse.Status(syscall.EEXIST)
	case p.absent:
		return nil, fuse.EACCES
	}
	if parent.org == 0 {
		return nil, fuse.EACCES
	}
	return parent, t.status(fsproto.CheckName(name))
}

// loose says whether name may be taken out of the directory.
func (t *tree) loose(id uint64, name string) (*node, fuse.Status) {
	parent, st := t.change(id)
	if st != fuse.OK {
		return nil, st
	}
	switch p := parent.child(name); {
	case p == nil:
	case p.absent:
		return nil, fuse.ENOENT
	default:
		return nil, fuse.EBUSY
	}
	if parent.org == 0 {
		return nil, fuse.ENOENT
	}
	return parent, t.status(fsproto.CheckName(name))
}

// made finishes the making of a new object.
func (t *tree) made(h *fuse.InHeader, parent *node, name string, e fsproto.Entry, err error, out *fuse.EntryOut) fuse.Status {
	if err != nil {
		return t.status(err)
	}
	t.entered(h.Unique, &e, parent.child(name), out)
	return fuse.OK
}

// Mkdir answers mkdir(2).
func (t *tree) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	parent, st := t.room(in.NodeId, name)
	if st != fuse.OK {
		return st
	}
	e, err := t.origin.Mkdir(request{cancel}, &fsproto.MakeIn{
		Parent: parent.org, Name: name, Mode: in.Mode & 0o7777, Umask: in.Umask & 0o777, Caller: caller(&in.InHeader),
	})
	return t.made(&in.InHeader, parent, name, e, err, out)
}

// Mknod answers mknod(2), and open(2) of kernels without CREATE.
func (t *tree) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	parent, st := t.room(in.NodeId, name)
	if st != fuse.OK {
		return st
	}
	e, err := t.origin.Mknod(request{cancel}, &fsproto.MakeIn{
		Parent: parent.org, Name: name, Mode: in.Mode, Umask: in.Umask & 0o777, Rdev: decodeDev(in.Rdev), Caller: caller(&in.InHeader),
	})
	return t.made(&in.InHeader, parent, name, e, err, out)
}

// Symlink answers symlink(2).
func (t *tree) Symlink(cancel <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	parent, st := t.room(h.NodeId, name)
	if st != fuse.OK {
		return st
	}
	e, err := t.origin.Symlink(request{cancel}, &fsproto.MakeIn{
		Parent: parent.org, Name: name, Target: target, Caller: caller(h),
	})
	return t.made(h, parent, name, e, err, out)
}

// Link answers link(2).
func (t *tree) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	parent, st := t.room(in.NodeId, name)
	if st != fuse.OK {
		return st
	}
	n := t.nodes.get(in.Oldnodeid)
	switch {
	case n == nil:
		return fuse.Status(syscall.ESTALE)
	case n.org == 0:
		return fuse.EPERM
	}
	e, err := t.origin.Link(request{cancel}, n.org, parent.org, name)
	return t.made(&in.InHeader, parent, name, e, err, out)
}

// Readlink answers readlink(2).
func (t *tree) Readlink(cancel <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	n, st := t.begin(h.NodeId)
	if st != fuse.OK {
		return nil, st
	}
	if n.org == 0 {
		return nil, fuse.EINVAL
	}
	s, err := t.origin.Readlink(request{cancel}, n.org)
	if err == nil && len(s) >= unix.PathMax {
		err = syscall.ENAMETOOLONG
	}
	return []byte(s), t.status(err)
}

// Unlink answers unlink(2).
func (t *tree) Unlink(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	parent, st := t.loose(h.NodeId, name)
	if st != fuse.OK {
		return st
	}
	return t.status(t.origin.Unlink(request{cancel}, parent.org, name, caller(h)))
}

// Rmdir answers rmdir(2).
func (t *tree) Rmdir(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	parent, st := t.loose(h.NodeId, name)
	if st != fuse.OK {
		return st
	}
	return t.status(t.origin.Rmdir(request{cancel}, parent.org, name, caller(h)))
}

// Rename answers renameat2(2).
func (t *tree) Rename(cancel <-chan struct{}, in *fuse.RenameIn, name, newName string) fuse.Status {
	parent, st := t.loose(in.NodeId, name)
	if st != fuse.OK {
		return st
	}
	newParent, st := t.room(in.Newdir, newName)
	switch {
	case st == fuse.Status(syscall.EEXIST) && in.Flags&unix.RENAME_NOREPLACE == 0:
		return fuse.EBUSY
	case st != fuse.OK:
		return st
	}
	if p := newParent.child(newName); p != nil { // absent names are below it
		return fuse.EBUSY
	}
	return t.status(t.origin.Rename(request{cancel}, &fsproto.RenameIn{
		Parent: parent.org, Name: name, NewParent: newParent.org, NewName: newName,
		Flags: in.Flags, Caller: caller(&in.InHeader),
	}))
}
