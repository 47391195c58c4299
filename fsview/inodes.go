package fsview

import (
	"encoding/binary"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"rexec/fsview/fsproto"
)

// attributes asks for a node's attributes, through an open file where one is
// given.
func (t *tree) attributes(cancel <-chan struct{}, h *fuse.InHeader, file uint64) (fsproto.Attr, fsproto.Lease, fuse.Status) {
	n, st := t.begin(h.NodeId)
	if st != fuse.OK {
		return fsproto.Attr{}, 0, st
	}
	if n.org == 0 {
		return n.last(), fsproto.LeaseAttr, fuse.OK
	}
	if a, ok := n.sure(); ok {
		if l := t.flights.grant(h.Unique, fsproto.LeaseAttr, subject{node: n.org}); l != 0 {
			return a, l, fuse.OK
		}
	}
	r, err := t.origin.Getattr(request{cancel}, n.org, t.handles.fh(file))
	if err != nil {
		return fsproto.Attr{}, 0, t.status(err)
	}
	return r.Attr, t.grant(h.Unique, n, &r), fuse.OK
}

// grant learns a node's attributes and says what is left of their lease. An
// alias has none: a recall finds only the node that it stands for.
func (t *tree) grant(unique uint64, n *node, r *fsproto.AttrReply) fsproto.Lease {
	if n.use != nil {
		n.learn(&r.Attr)
		return 0
	}
	return t.believe(unique, n, &r.Attr, r.Lease, subject{node: n.org})
}

// GetAttr answers stat(2).
func (t *tree) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	var file uint64
	if in.Flags()&fuse.FUSE_GETATTR_FH != 0 {
		file = in.Fh()
	}
	a, lease, st := t.attributes(cancel, &in.InHeader, file)
	if st == fuse.OK {
		t.showAttr(out, &a, lease)
	}
	return st
}

// Statx answers statx(2) where the time of birth is asked for.
func (t *tree) Statx(cancel <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	var file uint64
	if in.GetattrFlags&fuse.FUSE_GETATTR_FH != 0 {
		file = in.Fh
	}
	a, lease, st := t.attributes(cancel, &in.InHeader, file)
	if st != fuse.OK {
		return st
	}
	*out = fuse.StatxOut{Statx: t.view.statx(&a)}
	if lease&fsproto.LeaseAttr != 0 {
		out.AttrValid = forever
	}
	return fuse.OK
}

func (v *View) statx(a *fsproto.Attr) fuse.Statx {
	s := fuse.Statx{
		Mask: unix.STATX_BASIC_STATS, Blksize: a.Blksize, Nlink: a.Nlink, Mode: uint16(a.Mode),
		Ino: a.Ino, Size: a.Size, Blocks: a.Blocks,
		Atime: sxTime(a.Atime), Btime: sxTime(a.Btime), Ctime: sxTime(a.Ctime), Mtime: sxTime(a.Mtime),
		RdevMajor: unix.Major(a.Rdev), RdevMinor: unix.Minor(a.Rdev),
	}
	if a.Btime != (fsproto.Time{}) {
		s.Mask |= unix.STATX_BTIME
	}
	s.Uid, s.Gid = v.owner(a)
	return s
}

func sxTime(t fsproto.Time) fuse.SxTime { return fuse.SxTime{Sec: uint64(t.Sec), Nsec: t.Nsec} }

// setBits are FUSE's bits of SetAttrIn.Valid and the protocol's.
var setBits = []struct{ fuse, proto uint32 }{
	{fuse.FATTR_MODE, fsproto.SetMode},
	{fuse.FATTR_UID, fsproto.SetUID},
	{fuse.FATTR_GID, fsproto.SetGID},
	{fuse.FATTR_SIZE, fsproto.SetSize},
	{fuse.FATTR_ATIME, fsproto.SetAtime},
	{fuse.FATTR_MTIME, fsproto.SetMtime},
	{fuse.FATTR_ATIME_NOW, fsproto.SetAtimeNow},
	{fuse.FATTR_MTIME_NOW, fsproto.SetMtimeNow},
	{fuse.FATTR_CTIME, fsproto.SetCtime},
	{fuse.FATTR_KILL_SUIDGID, fsproto.KillSuid},
}

// SetAttr answers chmod(2), chown(2), truncate(2) and utimensat(2).
func (t *tree) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, st := t.change(in.NodeId)
	switch {
	case st != fuse.OK:
		return st
	case n.org == 0:
		return fuse.EPERM
	}
	s := &fsproto.SetattrIn{
		Node: n.org, Mode: in.Mode & 0o7777, UID: in.Uid, GID: in.Gid, Size: in.Size,
		Atime:  fsproto.Time{Sec: int64(in.Atime), Nsec: in.Atimensec},
		Mtime:  fsproto.Time{Sec: int64(in.Mtime), Nsec: in.Mtimensec},
		Caller: caller(&in.InHeader),
	}
	for _, b := range setBits {
		if in.Valid&b.fuse != 0 {
			s.Valid |= b.proto
		}
	}
	if !killsSuid(&in.InHeader, true) {
		s.Valid &^= fsproto.KillSuid
	}
	if in.Valid&fuse.FATTR_FH != 0 {
		s.FH = t.handles.fh(in.Fh)
	}
	r, err := t.origin.Setattr(request{cancel}, s)
	if err != nil {
		return t.status(err)
	}
	t.showAttr(out, &r.Attr, t.grant(in.Unique, n, &r))
	return fuse.OK
}

// GetXAttr answers getxattr(2).
func (t *tree) GetXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	n, st := t.begin(h.NodeId)
	switch {
	case st != fuse.OK:
		return 0, st
	case n.org == 0:
		return 0, fuse.ENODATA
	case name == "security.capability" && len(dest) == 0 && n.writers.Load() > 0:
		// The kernel asks before writes, to drop it: home's does that with
		// the write.
		return 0, fuse.ENODATA
	}
	value, err := t.origin.Getxattr(request{cancel}, &fsproto.XattrIn{Node: n.org, Name: name})
	if err != nil {
		return 0, t.status(err)
	}
	return fill(dest, value)
}

// ListXAttr answers listxattr(2).
func (t *tree) ListXAttr(cancel <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	n, st := t.begin(h.NodeId)
	if st != fuse.OK || n.org == 0 {
		return 0, st
	}
	names, err := t.origin.Listxattr(request{cancel}, n.org)
	if err != nil {
		return 0, t.status(err)
	}
	return fill(dest, names)
}

// fill copies a value to where it fits; an empty dest asks for its length.
func fill(dest, value []byte) (uint32, fuse.Status) {
	if len(dest) > 0 && len(value) > len(dest) {
		return uint32(len(value)), fuse.ERANGE
	}
	copy(dest, value)
	return uint32(len(value)), fuse.OK
}

// SetXAttr answers setxattr(2).
func (t *tree) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, name string, value []byte) fuse.Status {
	n, st := t.change(in.NodeId)
	switch {
	case st != fuse.OK:
		return st
	case n.org == 0:
		return fuse.EPERM
	}
	if uint64(in.Size) < uint64(len(value)) {
		value = value[:in.Size]
	}
	return t.status(t.origin.Setxattr(request{cancel}, &fsproto.XattrIn{Node: n.org, Name: name, Value: value, Flags: in.Flags}))
}

// RemoveXAttr answers removexattr(2).
func (t *tree) RemoveXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	n, st := t.change(h.NodeId)
	switch {
	case st != fuse.OK:
		return st
	case n.org == 0:
		return fuse.ENODATA
	}
	return t.status(t.origin.Removexattr(request{cancel}, &fsproto.XattrIn{Node: n.org, Name: name}))
}

// fsGetXattr is FS_IOC_FSGETXATTR, whose struct fsxattr has its flags, of
// another kind, in front. The kernel asks it before it passes FS_IOC_SETFLAGS.
const fsGetXattr = 0x801c581f

// extendedFlags are the file flags (FS_x_FL of linux/fs.h) that
// FS_IOC_FSGETXATTR has too (FS_XFLAG_x).
var extendedFlags = []struct{ flag, extended uint32 }{
	{0x8, 0x20},         // SYNC
	{0x10, 0x8},         // IMMUTABLE
	{0x20, 0x10},        // APPEND
	{0x40, 0x80},        // NODUMP
	{0x80, 0x40},        // NOATIME
	{0x20000000, 0x200}, // PROJINHERIT
}

func extended(flags uint32) (x uint32) {
	for _, f := range extendedFlags {
		if flags&f.flag != 0 {
			x |= f.extended
		}
	}
	return x
}

// Ioctl answers FS_IOC_GETFLAGS, FS_IOC_SETFLAGS (chattr(1), lsattr(1)) and,
// without a project, FS_IOC_FSGETXATTR; ENOTTY to all others.
func (t *tree) Ioctl(cancel <-chan struct{}, in *fuse.IoctlIn, arg []byte, out *fuse.IoctlOut, result []byte) fuse.Status {
	notTTY := fuse.Status(syscall.ENOTTY)
	n, st := t.begin(in.NodeId)
	switch {
	case st != fuse.OK:
		return st
	case n.org == 0:
		return notTTY
	}
	switch {
	case in.Cmd == unix.FS_IOC_GETFLAGS && len(result) >= 4:
		flags, err := t.origin.Getflags(request{cancel}, n.org)
		clear(result)
		binary.NativeEndian.PutUint32(result, flags)
		return t.status(err)
	case in.Cmd == fsGetXattr && len(result) >= 4:
		flags, err := t.origin.Getflags(request{cancel}, n.org)
		clear(result)
		binary.NativeEndian.PutUint32(result, extended(flags))
		return t.status(err)
	case in.Cmd == unix.FS_IOC_SETFLAGS && len(arg) >= 4:
		if t.mount.ReadOnly {
			return fuse.EROFS
		}
		return t.status(t.origin.Setflags(request{cancel}, n.org, binary.NativeEndian.Uint32(arg)))
	}
	return notTTY
}
