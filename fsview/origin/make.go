package origin

import (
	"context"

	"golang.org/x/sys/unix"

	"rexec/fsview/fsproto"
)

// within runs f with the directory held, after name was checked.
func (o *Origin) within(parent fsproto.Node, name string, f func(p *node) error) error {
	if err := fsproto.CheckName(name); err != nil {
		return err
	}
	p, err := o.enter(parent)
	if err != nil {
		return err
	}
	defer o.drop(p)
	if o.hidden(p, name) {
		return unix.EACCES
	}
	return f(p)
}

// mode applies the caller's umask, unless a default ACL takes its place
// (acl(5), "object creation and default ACLs").
func (p *node) mode(in *fsproto.MakeIn) uint32 {
	mode := in.Mode & 07777
	if in.Umask&mode == 0 {
		return mode
	}
	if n, err := unix.Getxattr(fdPath(p.fd), "system.posix_acl_default", nil); err == nil && n > 0 {
		return mode
	}
	return mode &^ (in.Umask & 0777)
}

// make runs f as the caller and looks up what it made.
func (o *Origin) make(in *fsproto.MakeIn, f func(p *node) error) (e fsproto.Entry, err error) {
	err = o.within(in.Parent, in.Name, func(p *node) error {
		if err := o.as.do(in.Caller, func() error { return f(p) }); err != nil {
			return err
		}
		o.Settle() // or what f did would take the new entry's lease back
		e, err = o.lookup(p, in.Name)
		return err
	})
	return e, err
}

func (o *Origin) Mknod(ctx context.Context, in *fsproto.MakeIn) (fsproto.Entry, error) {
	return o.make(in, func(p *node) error {
		return unix.Mknodat(p.fd, in.Name, in.Mode&unix.S_IFMT|p.mode(in), int(in.Rdev))
	})
}

func (o *Origin) Mkdir(ctx context.Context, in *fsproto.MakeIn) (fsproto.Entry, error) {
	return o.make(in, func(p *node) error { return unix.Mkdirat(p.fd, in.Name, p.mode(in)) })
}

func (o *Origin) Symlink(ctx context.Context, in *fsproto.MakeIn) (fsproto.Entry, error) {
	return o.make(in, func(p *node) error { return unix.Symlinkat(in.Target, p.fd, in.Name) })
}

// openFlags are the flags of open(2) that have a meaning for a description at
// home. O_DIRECT is not among them: nothing aligns buffers here.
const openFlags = unix.O_ACCMODE | unix.O_APPEND | unix.O_SYNC | unix.O_NOATIME | unix.O_NONBLOCK

func (o *Origin) Create(ctx context.Context, in *fsproto.MakeIn) (c fsproto.Created, err error) {
	err = o.within(in.Parent, in.Name, func(p *node) error {
		c, err = o.create(ctx, p, in)
		return err
	})
	return c, err
}

func (o *Origin) create(ctx context.Context, p *node, in *fsproto.MakeIn) (c fsproto.Created, err error) {
	flags := int(in.Flags&openFlags | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC)
	fd := -1
	err = o.as.do(in.Caller, func() (err error) {
		fd, err = unix.Openat(p.fd, in.Name, flags, p.mode(in))
		return err
	})
	if err == unix.EEXIST && in.Flags&unix.O_EXCL == 0 {
		return o.openExisting(ctx, p, in)
	}
	if err != nil {
		return c, err
	}
	return o.created(fd, in.Flags, p, in.Name)
}

// openExisting is Create of a name that someone else made meanwhile.
func (o *Origin) openExisting(ctx context.Context, p *node, in *fsproto.MakeIn) (c fsproto.Created, err error) {
	if c.Entry, err = o.lookup(p, in.Name); err != nil {
		return c, err
	}
	var opened fsproto.Opened
	if c.Entry.Attr.Mode&unix.S_IFMT == unix.S_IFLNK {
		err = unix.ESTALE // the view's kernel then walks the path anew
	} else {
		opened, err = o.Open(ctx, c.Entry.Node, in.Flags&^uint32(unix.O_CREAT))
	}
	if err != nil {
		o.Forget([]fsproto.Forgotten{{Node: c.Entry.Node, N: 1}})
		return fsproto.Created{}, err
	}
	c.FH, c.Entry.Attr = opened.FH, opened.Attr
	return c, nil
}

// created takes over fd, a description of a new file.
func (o *Origin) created(fd int, flags uint32, parent *node, name string) (c fsproto.Created, err error) {
	path, err := unix.Open(fdPath(fd), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		unix.Close(fd)
		return c, err
	}
	n, st, err := o.intern(path, parent, name)
	if err != nil {
		unix.Close(fd)
		return c, err
	}
	c.Entry = fsproto.Entry{Node: n.id, Attr: attrOf(st, n.gen)}
	c.FH = o.addFile(&file{fd: fd, flags: int(flags), node: n})
	return c, nil
}

func (o *Origin) Tmpfile(ctx context.Context, in *fsproto.MakeIn) (c fsproto.Created, err error) {
	p, err := o.enter(in.Parent)
	if err != nil {
		return c, err
	}
	defer o.drop(p)
	flags := int(in.Flags&(openFlags|unix.O_EXCL) | unix.O_TMPFILE | unix.O_CLOEXEC)
	fd := -1
	err = o.as.do(in.Caller, func() (err error) {
		fd, err = unix.Openat(p.fd, ".", flags, p.mode(in))
		return err
	})
	if err != nil {
		return c, err
	}
	return o.created(fd, in.Flags, nil, "")
}

func (o *Origin) Link(ctx context.Context, id, parent fsproto.Node, name string) (e fsproto.Entry, err error) {
	n, err := o.hold(id)
	if err != nil {
		return e, err
	}
	defer o.drop(n)
	if err := o.exposed(n.fd); err != nil {
		return e, err
	}
	err = o.within(parent, name, func(p *node) error {
		if err := unix.Linkat(unix.AT_FDCWD, fdPath(n.fd), p.fd, name, unix.AT_SYMLINK_FOLLOW); err != nil {
			return err
		}
		o.Settle()
		e, err = o.lookup(p, name)
		return err
	})
	return e, err
}

func (o *Origin) Unlink(ctx context.Context, parent fsproto.Node, name string, _ fsproto.Caller) error {
	return o.within(parent, name, func(p *node) error {
		return retry(func() error { return unix.Unlinkat(p.fd, name, 0) })
	})
}

func (o *Origin) Rmdir(ctx context.Context, parent fsproto.Node, name string, _ fsproto.Caller) error {
	return o.within(parent, name, func(p *node) error {
		return retry(func() error { return unix.Unlinkat(p.fd, name, unix.AT_REMOVEDIR) })
	})
}

func (o *Origin) Rename(ctx context.Context, in *fsproto.RenameIn) error {
	return o.within(in.Parent, in.Name, func(from *node) error {
		return o.within(in.NewParent, in.NewName, func(to *node) error {
			if err := o.exposedName(from, in.Name); err != nil {
				return err
			}
			err := retry(func() error {
				return unix.Renameat2(from.fd, in.Name, to.fd, in.NewName, uint(in.Flags))
			})
			if err == nil {
				o.renamed(to, in.NewName)
				if in.Flags&unix.RENAME_EXCHANGE != 0 {
					o.renamed(from, in.Name)
				}
			}
			return err
		})
	})
}
