package origin

import (
	"context"

	"golang.org/x/sys/unix"

	"rexec/fsview/fsproto"
)

// target is what a request is about: an open file where it names one, else
// the node's O_PATH descriptor.
type target struct {
	o    *Origin
	node *node
	file *file
}

func (o *Origin) target(id fsproto.Node, fh fsproto.FH) (t target, err error) {
	t.o = o
	if fh != 0 {
		if t.file, err = o.open(fh); err == nil {
			return t, nil
		}
	}
	t.node, err = o.hold(id)
	return t, err
}

func (t target) release() {
	if t.file != nil {
		t.o.done(t.file)
	} else {
		t.o.drop(t.node)
	}
}

func (t target) fd() int {
	if t.file != nil {
		return t.file.fd
	}
	return t.node.fd
}

func (t target) gen() uint32 {
	switch {
	case t.node != nil:
		return t.node.gen
	case t.file.node != nil:
		return t.file.node.gen
	}
	return 0
}

func (t target) attr() (fsproto.AttrReply, error) {
	var st unix.Statx_t
	if err := stat(t.fd(), "", &st); err != nil {
		return fsproto.AttrReply{}, err
	}
	return fsproto.AttrReply{Attr: attrOf(&st, t.gen())}, nil
}

func (o *Origin) Getattr(ctx context.Context, id fsproto.Node, fh fsproto.FH) (fsproto.AttrReply, error) {
	t, err := o.target(id, fh)
	if err != nil {
		return fsproto.AttrReply{}, err
	}
	defer t.release()
	if t.file != nil {
		return t.attr() // it may be one that is written to
	}
	var st unix.Statx_t
	if err := stat(t.fd(), "", &st); err != nil {
		return fsproto.AttrReply{}, err
	}
	lease, err := o.lease(t.node, &st)
	return fsproto.AttrReply{Attr: attrOf(&st, t.gen()), Lease: lease}, err
}

func (o *Origin) Setattr(ctx context.Context, in *fsproto.SetattrIn) (fsproto.AttrReply, error) {
	t, err := o.target(in.Node, in.FH)
	if err != nil {
		return fsproto.AttrReply{}, err
	}
	defer t.release()
	// chown clears set-id bits, so the mode comes after it; every other
	// change moves times, so they come last.
	for _, step := range []func(*fsproto.SetattrIn) error{t.truncate, t.chown, t.chmod, t.utimes} {
		if err := step(in); err != nil {
			return fsproto.AttrReply{}, err
		}
	}
	return t.attr()
}

func (t target) truncate(in *fsproto.SetattrIn) error {
	if in.Valid&fsproto.SetSize == 0 {
		return nil
	}
	if in.Size > 1<<63-1 {
		return unix.EFBIG
	}
	size := int64(in.Size)
	err := retry(func() error {
		if t.file != nil && t.file.flags&unix.O_ACCMODE != unix.O_RDONLY {
			return unix.Ftruncate(t.file.fd, size)
		}
		return unix.Truncate(fdPath(t.fd()), size)
	})
	if err == nil && in.Valid&fsproto.KillSuid != 0 {
		killSuid(t.fd())
	}
	return err
}

// killSuid clears set-id bits as the kernel does after a write by a process
// without CAP_FSETID, which this one may have. A failure is nobody's concern:
// the write is done.
func killSuid(fd int) {
	var st unix.Statx_t
	if stat(fd, "", &st) != nil {
		return
	}
	mode := uint32(st.Mode) & 07777
	kill := mode & unix.S_ISUID
	if mode&unix.S_IXGRP != 0 {
		kill |= mode & unix.S_ISGID
	}
	if kill != 0 {
		_ = unix.Fchmodat(unix.AT_FDCWD, fdPath(fd), mode&^kill, 0)
	}
}

func (t target) chown(in *fsproto.SetattrIn) error {
	if in.Valid&(fsproto.SetUID|fsproto.SetGID) == 0 {
		return nil
	}
	uid, gid := -1, -1
	if in.Valid&fsproto.SetUID != 0 {
		uid = int(in.UID)
	}
	if in.Valid&fsproto.SetGID != 0 {
		gid = int(in.GID)
	}
	return unix.Fchownat(t.fd(), "", uid, gid, unix.AT_EMPTY_PATH)
}

func (t target) chmod(in *fsproto.SetattrIn) error {
	if in.Valid&fsproto.SetMode == 0 {
		return nil
	}
	return unix.Fchmodat(unix.AT_FDCWD, fdPath(t.fd()), in.Mode&07777, 0)
}

func (t target) utimes(in *fsproto.SetattrIn) error {
	const any = fsproto.SetAtime | fsproto.SetMtime | fsproto.SetAtimeNow | fsproto.SetMtimeNow
	if in.Valid&any == 0 {
		return nil
	}
	atime, err := timespec(in.Valid, fsproto.SetAtime, fsproto.SetAtimeNow, in.Atime)
	if err != nil {
		return err
	}
	mtime, err := timespec(in.Valid, fsproto.SetMtime, fsproto.SetMtimeNow, in.Mtime)
	if err != nil {
		return err
	}
	return unix.UtimesNanoAt(t.fd(), "", []unix.Timespec{atime, mtime}, unix.AT_EMPTY_PATH)
}

func timespec(valid, set, now uint32, t fsproto.Time) (unix.Timespec, error) {
	switch {
	case valid&now != 0:
		return unix.Timespec{Nsec: unix.UTIME_NOW}, nil
	case valid&set == 0:
		return unix.Timespec{Nsec: unix.UTIME_OMIT}, nil
	case t.Nsec >= 1e9:
		return unix.Timespec{}, unix.EINVAL
	}
	return unix.Timespec{Sec: t.Sec, Nsec: int64(t.Nsec)}, nil
}

func (o *Origin) Access(ctx context.Context, id fsproto.Node, mask uint32) error {
	n, err := o.hold(id)
	if err != nil {
		return err
	}
	defer o.drop(n)
	return unix.Faccessat2(n.fd, "", mask&7, unix.AT_EACCESS|unix.AT_EMPTY_PATH)
}

func (o *Origin) Readlink(ctx context.Context, id fsproto.Node) (string, error) {
	n, err := o.hold(id)
	if err != nil {
		return "", err
	}
	defer o.drop(n)
	if n.fmt != unix.S_IFLNK {
		return "", unix.EINVAL // readlinkat(2) on an empty name says ENOENT
	}
	buf := make([]byte, unix.PathMax)
	got, err := unix.Readlinkat(n.fd, "", buf)
	if err != nil {
		return "", err
	}
	return string(buf[:got]), nil
}

func (o *Origin) Statfs(ctx context.Context, id fsproto.Node) (fsproto.Statfs, error) {
	n, err := o.hold(id)
	if err != nil {
		return fsproto.Statfs{}, err
	}
	defer o.drop(n)
	var st unix.Statfs_t
	if err := retry(func() error { return unix.Fstatfs(n.fd, &st) }); err != nil {
		return fsproto.Statfs{}, err
	}
	return fsproto.Statfs{
		Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail, Files: st.Files, Ffree: st.Ffree,
		Bsize: uint32(st.Bsize), Namelen: uint32(st.Namelen), Frsize: uint32(st.Frsize), Type: st.Type,
	}, nil
}
