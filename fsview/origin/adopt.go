package origin

import (
	"golang.org/x/sys/unix"

	"rexec/fsview/fsproto"
)

// Root hands out the node of an absolute path, symbolic links followed: the
// root of a view's mount.
func (o *Origin) Root(path string) (fsproto.Node, fsproto.Attr, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fsproto.Attr{}, err
	}
	return o.internFD(fd)
}

func (o *Origin) internFD(fd int) (fsproto.Node, fsproto.Attr, error) {
	n, st, err := o.intern(fd, nil, "")
	if err != nil {
		return 0, fsproto.Attr{}, err
	}
	return n.id, attrOf(st, n.gen), nil
}

// AdoptNode hands out the node of what fd refers to; fd stays the caller's.
// Give it back with Drop.
func (o *Origin) AdoptNode(fd int) (fsproto.Node, fsproto.Attr, error) {
	path, err := unix.Open(fdPath(fd), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fsproto.Attr{}, err
	}
	return o.internFD(path)
}

// Drop gives back one hand-out.
func (o *Origin) Drop(n fsproto.Node) {
	o.Forget([]fsproto.Forgotten{{Node: n, N: 1}})
}

// AdoptFile makes an open file of fd's own description: reads, writes, its
// position and its rights are those of home. fd stays the caller's; Release
// closes the origin's duplicate only.
func (o *Origin) AdoptFile(fd int) (fsproto.FH, error) {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return 0, err
	}
	if flags&unix.O_PATH != 0 {
		return 0, unix.EBADF
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	// The node is kept for locks and attributes.
	id, _, err := o.AdoptNode(fd)
	if err != nil {
		unix.Close(dup)
		return 0, err
	}
	defer o.Drop(id)
	n, err := o.hold(id)
	if err != nil {
		unix.Close(dup)
		return 0, err
	}
	defer o.drop(n)
	return o.addFile(&file{fd: dup, flags: flags, node: n, adopted: true, dir: n.isDir()}), nil
}

// Position gives the position of an adopted file's description, in bytes.
func (o *Origin) Position(fh fsproto.FH) (pos int64, err error) {
	err = o.onAdopted(fh, func(fd int) error {
		pos, err = unix.Seek(fd, 0, unix.SEEK_CUR)
		return err
	})
	return pos, err
}

// SetPosition moves the position of an adopted file's description.
func (o *Origin) SetPosition(fh fsproto.FH, off int64) error {
	return o.onAdopted(fh, func(fd int) error {
		_, err := unix.Seek(fd, off, unix.SEEK_SET)
		return err
	})
}

func (o *Origin) onAdopted(fh fsproto.FH, f func(fd int) error) error {
	file, err := o.open(fh)
	if err != nil {
		return err
	}
	defer o.done(file)
	if !file.adopted {
		return unix.EINVAL
	}
	return f(file.fd)
}
