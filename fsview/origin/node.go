package origin

import (
	"container/list"
	"context"
	"hash/fnv"

	"golang.org/x/sys/unix"

	"rexec/fsview/fsproto"
)

// key tells live objects apart. The mount is part of it because a link or
// rename across two mounts of one file system is refused (EXDEV), and because
// one of them may be read-only.
type key struct {
	mnt      uint64
	dev, ino uint64
}

// identity of an object beyond its key, for when nothing pins the inode.
type ident struct {
	handle string // of name_to_handle_at, type included; empty where there is none
	btime  unix.StatxTimestamp
}

// node is one object. All but the constant fields are guarded by Origin.mu.
type node struct {
	id    fsproto.Node
	key   key
	ident ident
	gen   uint32
	fmt   uint32 // S_IFMT bits
	bound bool   // on a file system that is bound to the kernel

	fd     int           // O_PATH; -1 where given up
	elem   *list.Element // in Origin.idle while fd is not -1
	users  int           // who uses fd now, open files included
	count  uint64        // hand-outs
	kids   int           // nodes whose parent this is
	parent *node         // with name: where it was last seen; may be nil
	name   string
}

func (n *node) isDir() bool { return n.fmt == unix.S_IFDIR }

const statxMask = unix.STATX_BASIC_STATS | unix.STATX_BTIME | unix.STATX_MNT_ID

// stat fills st for name in fd, or for fd itself where name is empty.
func stat(fd int, name string, st *unix.Statx_t) error {
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT | unix.AT_STATX_SYNC_AS_STAT
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	return retry(func() error { return unix.Statx(fd, name, flags, statxMask, st) })
}

func keyOf(st *unix.Statx_t) key {
	return key{st.Mnt_id, unix.Mkdev(st.Dev_major, st.Dev_minor), st.Ino}
}

func attrOf(st *unix.Statx_t, gen uint32) fsproto.Attr {
	when := func(t unix.StatxTimestamp) fsproto.Time { return fsproto.Time{Sec: t.Sec, Nsec: t.Nsec} }
	return fsproto.Attr{
		Dev: unix.Mkdev(st.Dev_major, st.Dev_minor), Ino: st.Ino, Gen: gen,
		Mode: uint32(st.Mode), Nlink: st.Nlink, UID: st.Uid, GID: st.Gid,
		Rdev: unix.Mkdev(st.Rdev_major, st.Rdev_minor),
		Size: st.Size, Blocks: st.Blocks, Blksize: st.Blksize,
		Atime: when(st.Atime), Mtime: when(st.Mtime), Ctime: when(st.Ctime), Btime: when(st.Btime),
	}
}

// identOf asks for the file handle of an O_PATH descriptor.
func identOf(fd int, st *unix.Statx_t) (id ident, gen uint32) {
	id.btime = st.Btime
	h, _, err := unix.NameToHandleAt(fd, "", unix.AT_EMPTY_PATH)
	if err != nil {
		return id, 0
	}
	b := h.Bytes()
	t := uint32(h.Type())
	id.handle = string([]byte{byte(t), byte(t >> 8), byte(t >> 16), byte(t >> 24)}) + string(b)
	const ino32gen = 1 // FILEID_INO32_GEN
	if t == ino32gen && len(b) == 8 {
		return id, uint32(b[4]) | uint32(b[5])<<8 | uint32(b[6])<<16 | uint32(b[7])<<24
	}
	sum := fnv.New32a()
	sum.Write(b)
	return id, sum.Sum32()
}

func (id ident) fileHandle() unix.FileHandle {
	t := int32(id.handle[0]) | int32(id.handle[1])<<8 | int32(id.handle[2])<<16 | int32(id.handle[3])<<24
	return unix.NewFileHandle(t, []byte(id.handle[4:]))
}

// hold finds a node and makes sure that it has a descriptor until drop.
func (o *Origin) hold(id fsproto.Node) (*node, error) {
	o.mu.Lock()
	n := o.nodes[id]
	if n == nil {
		o.mu.Unlock()
		return nil, unix.ESTALE
	}
	err := o.use(n)
	o.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return n, nil
}

// enter holds a directory, to look into it or to make something there. What is
// bound to the kernel is closed: below /proc lie the memory, descriptors and
// roots of this user's processes, this one among them.
func (o *Origin) enter(id fsproto.Node) (*node, error) {
	n, err := o.hold(id)
	if err == nil && n.bound {
		o.drop(n)
		return nil, unix.EACCES
	}
	return n, err
}

// use adds a user to n, with mu held; mu is released while n's descriptor is
// found again.
func (o *Origin) use(n *node) error {
	n.users++
	if n.fd >= 0 {
		o.idle.MoveToFront(n.elem)
		return nil
	}
	fd, err := o.reopen(n)
	switch {
	case err != nil:
		n.users--
		o.settle(n)
		return err
	case n.fd >= 0: // someone was faster
		unix.Close(fd)
	default:
		o.attach(n, fd)
	}
	return nil
}

func (o *Origin) drop(n *node) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n.users--
	o.settle(n)
}

// settle removes a node that nobody needs, and then its parent likewise. mu is
// held.
func (o *Origin) settle(n *node) {
	for n != nil && n.users == 0 && n.count == 0 && n.kids == 0 && o.nodes[n.id] == n {
		delete(o.nodes, n.id)
		o.leases.forget(n.id)
		if o.byKey[n.key] == n {
			delete(o.byKey, n.key)
		}
		if n.fd >= 0 {
			o.detach(n)
		} else {
			o.evicted--
		}
		parent := n.parent
		n.parent = nil
		if parent != nil {
			parent.kids--
		}
		n = parent
	}
}

func (o *Origin) attach(n *node, fd int) {
	n.fd, n.elem = fd, o.idle.PushFront(n)
	o.evicted--
}

func (o *Origin) detach(n *node) {
	unix.Close(n.fd)
	o.idle.Remove(n.elem)
	n.fd, n.elem = -1, nil
}

// moved notes where n was seen. mu is held.
func (o *Origin) moved(n, parent *node, name string) {
	if parent == nil || parent == n || n.parent == parent && n.name == name {
		return
	}
	for up := parent; up != nil; up = up.parent {
		if up == n {
			return // an old name of an ancestor: no cycles
		}
	}
	old := n.parent
	parent.kids++
	n.parent, n.name = parent, name
	if old != nil {
		old.kids--
		o.settle(old)
	}
}

// intern hands out the node of fd, an O_PATH descriptor that it takes over.
// parent, which may be nil, is where name led to it.
func (o *Origin) intern(fd int, parent *node, name string) (*node, *unix.Statx_t, error) {
	st := new(unix.Statx_t)
	if err := stat(fd, "", st); err != nil {
		unix.Close(fd)
		return nil, nil, err
	}
	id, gen := identOf(fd, st)
	k := keyOf(st)
	bound := isBound(fd, st, parent)
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		unix.Close(fd)
		return nil, nil, unix.ESTALE
	}
	n := o.byKey[k]
	switch {
	case n != nil && n.fd >= 0:
		unix.Close(fd)
		o.idle.MoveToFront(n.elem)
	case n != nil && n.ident == id:
		o.attach(n, fd)
	default: // new, or the inode number was used again
		o.lastNode++
		n = &node{id: o.lastNode, key: k, ident: id, gen: gen, fmt: uint32(st.Mode) & unix.S_IFMT, bound: bound, fd: -1}
		o.nodes[n.id], o.byKey[k] = n, n
		o.evicted++ // until attach
		o.attach(n, fd)
	}
	n.count++
	o.moved(n, parent, name)
	o.makeRoom()
	return n, st, nil
}

// known hands out a node that st describes, if it is pinned now.
func (o *Origin) known(st *unix.Statx_t, parent *node, name string) *node {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := o.byKey[keyOf(st)]
	if n == nil || n.fd < 0 {
		return nil
	}
	n.count++
	o.idle.MoveToFront(n.elem)
	o.moved(n, parent, name)
	return n
}

// Lookup is part of [fsproto.Origin], as are the methods of the same names
// below and in the other files.
func (o *Origin) Lookup(ctx context.Context, parent fsproto.Node, name string) (fsproto.Entry, error) {
	if err := fsproto.CheckName(name); err != nil {
		return fsproto.Entry{}, err
	}
	p, err := o.enter(parent)
	if err != nil {
		return fsproto.Entry{}, err
	}
	defer o.drop(p)
	if o.hidden(p, name) {
		return fsproto.Entry{}, unix.ENOENT
	}
	e, err := o.lookup(p, name)
	if err == unix.ENOENT && e.Lease != 0 {
		return e, nil
	}
	return e, err
}

// lookup fails with ENOENT for a name that leads to nothing, and says even
// then whether that is leased.
func (o *Origin) lookup(p *node, name string) (fsproto.Entry, error) {
	var lease fsproto.Lease
	if o.leases.name(p, name) {
		lease = fsproto.LeaseEntry
	}
	st := new(unix.Statx_t)
	if err := stat(p.fd, name, st); err != nil {
		return fsproto.Entry{Lease: lease}, err
	}
	if n := o.known(st, p, name); n != nil {
		return o.entry(n, st, lease)
	}
	var fd int
	err := retry(func() (err error) {
		fd, err = unix.Openat(p.fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return fsproto.Entry{}, err
	}
	n, st, err := o.intern(fd, p, name)
	if err != nil {
		return fsproto.Entry{}, err
	}
	return o.entry(n, st, lease)
}

// entry is the answer for a node that was just handed out.
func (o *Origin) entry(n *node, st *unix.Statx_t, lease fsproto.Lease) (fsproto.Entry, error) {
	if o.leases != nil {
		attr, err := o.leaseHeld(n, st)
		if err != nil {
			o.Drop(n.id)
			return fsproto.Entry{}, err
		}
		lease |= attr
	}
	return fsproto.Entry{Node: n.id, Attr: attrOf(st, n.gen), Lease: lease}, nil
}

func (o *Origin) leaseHeld(n *node, st *unix.Statx_t) (fsproto.Lease, error) {
	n, err := o.hold(n.id)
	if err != nil {
		return 0, err
	}
	defer o.drop(n)
	return o.lease(n, st)
}

func (o *Origin) Forget(list []fsproto.Forgotten) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, f := range list {
		if n := o.nodes[f.Node]; n != nil {
			n.count -= min(n.count, f.N)
			o.settle(n)
		}
	}
}

func (o *Origin) Ref(ctx context.Context, id fsproto.Node) (fsproto.Entry, error) {
	n, err := o.hold(id)
	if err != nil {
		return fsproto.Entry{}, err
	}
	defer o.drop(n)
	var st unix.Statx_t
	if err := stat(n.fd, "", &st); err != nil {
		return fsproto.Entry{}, err
	}
	o.mu.Lock()
	n.count++
	o.mu.Unlock()
	return fsproto.Entry{Node: n.id, Attr: attrOf(&st, n.gen)}, nil
}
