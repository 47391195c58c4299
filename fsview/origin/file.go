package origin

import (
	"bytes"
	"context"
	"sync"

	"golang.org/x/sys/unix"

	"rexec/fsview/fsproto"
)

// file is an open file or directory. users and gone are guarded by Origin.mu.
type file struct {
	id      fsproto.FH
	fd      int
	flags   int   // as opened: access mode and O_APPEND count
	node    *node // has this file as a user; nil for an adopted description
	adopted bool  // a description of home's own: its position is not ours
	dir     bool

	users int
	gone  bool

	pos    sync.Mutex // dir: the description's position
	cookie uint64     // dir: where that is
}

// addFile puts a new file into the table. Its node, if any, gains a user.
func (o *Origin) addFile(f *file) fsproto.FH {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.lastFH++
	f.id = o.lastFH
	if f.node != nil {
		f.node.users++
	}
	if o.closed {
		f.gone = true
		o.settleFile(f)
	} else {
		o.files[f.id] = f
	}
	return f.id
}

// open finds an open file and keeps it open until done.
func (o *Origin) open(fh fsproto.FH) (*file, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f := o.files[fh]
	if f == nil {
		return nil, unix.EBADF
	}
	f.users++
	return f, nil
}

func (o *Origin) done(f *file) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f.users--
	o.settleFile(f)
}

// settleFile closes a released file that nobody uses. mu is held.
func (o *Origin) settleFile(f *file) {
	if !f.gone || f.users != 0 || f.fd < 0 {
		return
	}
	unix.Close(f.fd)
	f.fd = -1
	if f.node != nil {
		f.node.users--
		o.settle(f.node)
	}
}

// on runs f with a file of the wanted kind.
func (o *Origin) on(fh fsproto.FH, f func(*file) error) error {
	file, err := o.open(fh)
	if err != nil {
		return err
	}
	defer o.done(file)
	if file.dir {
		return unix.EISDIR
	}
	return f(file)
}

func (o *Origin) Open(ctx context.Context, id fsproto.Node, flags uint32) (opened fsproto.Opened, err error) {
	n, err := o.hold(id)
	if err != nil {
		return opened, err
	}
	defer o.drop(n)
	if err := openable(n.fmt); err != nil {
		return opened, err
	}
	if err := o.exposed(n.fd); err != nil {
		return opened, err
	}
	fd, err := reopenPath(n.fd, int(flags&(openFlags|unix.O_TRUNC)))
	if err != nil {
		return opened, err
	}
	opened, err = o.opened(&file{fd: fd, flags: int(flags), node: n})
	if err != nil || flags&unix.O_ACCMODE != unix.O_RDONLY || flags&unix.O_TRUNC != 0 {
		return opened, err
	}
	o.promiseContent(n, fd, flags, &opened)
	return opened, nil
}

// promiseContent leases the content of a file that was opened for reading,
// and adds it where it is small and wanted. Who changes it from then on shows
// in an event that recalls the lease.
func (o *Origin) promiseContent(n *node, fd int, flags uint32, opened *fsproto.Opened) {
	var st unix.Statx_t
	if stat(fd, "", &st) != nil {
		return
	}
	lease, err := o.lease(n, &st)
	if err != nil || lease&fsproto.LeaseAttr == 0 {
		return
	}
	opened.Attr, opened.Lease = attrOf(&st, n.gen), lease|fsproto.LeaseData
	if flags&fsproto.OpenData == 0 || st.Size > fsproto.SmallFile {
		return
	}
	data := make([]byte, st.Size)
	if got, err := unix.Pread(fd, data, 0); err == nil && uint64(got) == st.Size {
		opened.Data = data
	}
}

// openable refuses what only the machine that owns it can open. Devices are
// EACCES, as on a mount with nodev.
func openable(fmt uint32) error {
	switch fmt {
	case unix.S_IFREG:
		return nil
	case unix.S_IFDIR:
		return unix.EISDIR
	case unix.S_IFLNK:
		return unix.ELOOP
	case unix.S_IFCHR, unix.S_IFBLK:
		return unix.EACCES
	}
	return unix.ENXIO
}

// reopenPath makes a new description of what fd refers to.
func reopenPath(fd, flags int) (got int, err error) {
	err = retry(func() (err error) {
		got, err = unix.Open(fdPath(fd), flags|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
		return err
	})
	return got, err
}

func (o *Origin) opened(f *file) (opened fsproto.Opened, err error) {
	var st unix.Statx_t
	if err := stat(f.fd, "", &st); err != nil {
		unix.Close(f.fd)
		return opened, err
	}
	opened.Attr = attrOf(&st, f.node.gen)
	opened.FH = o.addFile(f)
	return opened, nil
}

// Buffers hold what a read fills: most reads give much less than was asked
// for.
var (
	smallBuffers = sync.Pool{New: func() any { b := make([]byte, smallRead); return &b }}
	largeBuffers = sync.Pool{New: func() any { b := make([]byte, fsproto.MaxIO); return &b }}
)

const smallRead = 128 << 10 // the kernel's usual read-ahead

func buffersFor(size int) *sync.Pool {
	if size <= smallRead {
		return &smallBuffers
	}
	return &largeBuffers
}

func (o *Origin) Read(ctx context.Context, fh fsproto.FH, off int64, size int) (data []byte, err error) {
	if size < 0 || off < 0 {
		return nil, unix.EINVAL
	}
	size = min(size, fsproto.MaxIO)
	err = o.on(fh, func(f *file) error {
		pool := buffersFor(size)
		buf := pool.Get().(*[]byte)
		n, err := pread(f.fd, (*buf)[:size], off)
		if n > len(*buf)/2 {
			data = (*buf)[:n:n] // handed over: cheaper than a copy
			return nil
		}
		data = bytes.Clone((*buf)[:n])
		pool.Put(buf)
		if n > 0 {
			return nil
		}
		return err
	})
	return data, err
}

// pread reads until b is full, the file ends or fails.
func pread(fd int, b []byte, off int64) (n int, err error) {
	for n < len(b) {
		m, err := unix.Pread(fd, b[n:], off+int64(n))
		switch {
		case err == unix.EINTR:
		case err != nil || m == 0:
			return n, err
		default:
			n += m
		}
	}
	return n, nil
}

func (o *Origin) Write(ctx context.Context, in *fsproto.WriteIn) (n int, err error) {
	if in.Off < 0 && !in.Append && !in.Stream || len(in.Data) > fsproto.MaxIO {
		return 0, unix.EINVAL
	}
	err = o.on(in.FH, func(f *file) error {
		if in.Stream && !f.adopted {
			return unix.EINVAL
		}
		if n, err = writeAll(f, in); n > 0 {
			err = nil
		}
		if err == nil && in.KillSuid {
			killSuid(f.fd)
		}
		return err
	})
	return n, err
}

// writeAll writes until all is written or a write fails.
func writeAll(f *file, in *fsproto.WriteIn) (n int, err error) {
	for {
		m, err := writeOnce(f, in, in.Data[n:], in.Off+int64(n))
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return n, err
		}
		if n += m; n >= len(in.Data) || m == 0 {
			return n, nil
		}
	}
}

func writeOnce(f *file, in *fsproto.WriteIn, b []byte, off int64) (int, error) {
	appends := f.flags&unix.O_APPEND != 0
	switch {
	case in.Stream, in.Append && appends && !f.adopted:
		return unix.Write(f.fd, b)
	case in.Append && !appends: // the job set O_APPEND later
		return unix.Pwritev2(f.fd, [][]byte{b}, 0, unix.RWF_APPEND)
	case !in.Append && appends && !f.adopted: // the job took O_APPEND away
		n, err := unix.Pwritev2(f.fd, [][]byte{b}, off, rwfNoAppend)
		if err != unix.EOPNOTSUPP { // before Linux 6.9
			return n, err
		}
	}
	return unix.Pwrite(f.fd, b, off) // appends where the description does
}

const rwfNoAppend = 0x20 // RWF_NOAPPEND

func (o *Origin) Flush(ctx context.Context, fh fsproto.FH, owner uint64) error {
	return o.on(fh, func(f *file) error {
		if f.node != nil {
			o.locks.drop(lockKey{f.node.id, owner, false})
		}
		if f.flags&unix.O_ACCMODE == unix.O_RDONLY {
			return nil
		}
		// close(2) is where some file systems report failed writes.
		dup, err := unix.FcntlInt(uintptr(f.fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return unix.Close(dup)
	})
}

func (o *Origin) Release(fh fsproto.FH, owner uint64, flock bool) {
	o.mu.Lock()
	f := o.files[fh]
	o.mu.Unlock()
	if f == nil {
		return
	}
	if f.node != nil {
		if flock {
			o.locks.drop(lockKey{f.node.id, owner, true})
		}
		// Open file description locks have no other sign of their end.
		o.locks.dropFile(fh)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.files, fh)
	f.gone = true
	o.settleFile(f)
}

func (o *Origin) Fsync(ctx context.Context, fh fsproto.FH, dataOnly bool) error {
	return o.on(fh, func(f *file) error { return sync1(f.fd, dataOnly) })
}

func sync1(fd int, dataOnly bool) error {
	return retry(func() error {
		if dataOnly {
			return unix.Fdatasync(fd)
		}
		return unix.Fsync(fd)
	})
}

func (o *Origin) Fallocate(ctx context.Context, fh fsproto.FH, mode uint32, off, n int64) error {
	return o.on(fh, func(f *file) error {
		return retry(func() error { return unix.Fallocate(f.fd, mode, off, n) })
	})
}

// Lseek finds data and holes; it moves no position that anyone relies on.
func (o *Origin) Lseek(ctx context.Context, fh fsproto.FH, off int64, whence uint32) (pos int64, err error) {
	if whence != unix.SEEK_DATA && whence != unix.SEEK_HOLE {
		return 0, unix.EINVAL
	}
	err = o.on(fh, func(f *file) error {
		fd := f.fd
		if f.adopted {
			if fd, err = reopenPath(f.fd, unix.O_RDONLY|unix.O_NONBLOCK); err != nil {
				return err
			}
			defer unix.Close(fd)
		}
		pos, err = unix.Seek(fd, off, int(whence))
		return err
	})
	return pos, err
}

// maxCopy bounds one CopyRange, in bytes: the caller asks again.
const maxCopy = 1 << 30

func (o *Origin) CopyRange(ctx context.Context, in *fsproto.CopyIn) (n int, err error) {
	if in.InOff < 0 || in.OutOff < 0 {
		return 0, unix.EINVAL
	}
	err = o.on(in.In, func(from *file) error {
		return o.on(in.Out, func(to *file) error {
			inOff, outOff := in.InOff, in.OutOff
			return retry(func() error {
				n, err = unix.CopyFileRange(from.fd, &inOff, to.fd, &outOff, int(min(in.Len, maxCopy)), int(in.Flags))
				return err
			})
		})
	})
	return n, err
}

// Getflags opens the object for a moment: ioctls need a real descriptor.
func (o *Origin) Getflags(ctx context.Context, id fsproto.Node) (flags uint32, err error) {
	err = o.ioctl(id, func(fd int) error {
		flags, err = unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
		return err
	})
	return flags, err
}

func (o *Origin) Setflags(ctx context.Context, id fsproto.Node, flags uint32) error {
	return o.ioctl(id, func(fd int) error {
		return unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(flags))
	})
}

func (o *Origin) ioctl(id fsproto.Node, f func(fd int) error) error {
	n, err := o.hold(id)
	if err != nil {
		return err
	}
	defer o.drop(n)
	if n.fmt != unix.S_IFREG && !n.isDir() {
		return unix.ENOTTY
	}
	fd, err := reopenPath(n.fd, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return f(fd)
}
