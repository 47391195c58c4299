package origin

import (
	"bytes"
	"context"
	"encoding/binary"

	"golang.org/x/sys/unix"

	"rexec/fsview/fsproto"
)

func (o *Origin) Opendir(ctx context.Context, id fsproto.Node) (opened fsproto.Opened, err error) {
	n, err := o.enter(id)
	if err != nil {
		return opened, err
	}
	defer o.drop(n)
	if !n.isDir() {
		return opened, unix.ENOTDIR
	}
	fd, err := reopenPath(n.fd, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return opened, err
	}
	return o.opened(&file{fd: fd, node: n, dir: true})
}

func (o *Origin) onDir(fh fsproto.FH, f func(*file) error) error {
	d, err := o.open(fh)
	if err != nil {
		return err
	}
	defer o.done(d)
	if !d.dir {
		return unix.ENOTDIR
	}
	return f(d)
}

// Bounds of the buffer for getdents64(2), in bytes. The lower one holds the
// longest entry.
const (
	minListing = 512
	maxListing = 256 << 10
)

func (o *Origin) Readdir(ctx context.Context, fh fsproto.FH, off uint64, size int) (list []fsproto.Dirent, err error) {
	buf := make([]byte, min(maxListing, max(minListing, size)))
	err = o.onDir(fh, func(d *file) error {
		for len(list) == 0 {
			if err := ended(ctx); err != nil {
				return err
			}
			n, err := d.getdents(off, buf)
			if err != nil || n == 0 {
				return err
			}
			list, off = parseDirents(buf[:n])
			list = o.visible(d.node, list)
		}
		return nil
	})
	return list, err
}

// getdents reads entries from the given cookie.
func (f *file) getdents(off uint64, buf []byte) (n int, err error) {
	f.pos.Lock()
	defer f.pos.Unlock()
	if off == 0 || off != f.cookie { // from the start always anew, as rewinddir(3)
		if _, err := unix.Seek(f.fd, int64(off), unix.SEEK_SET); err != nil {
			return 0, err
		}
		f.cookie = off
	}
	err = retry(func() (err error) { n, err = unix.Getdents(f.fd, buf); return err })
	if err != nil {
		return 0, err
	}
	if list, last := parseDirents(buf[:n]); len(list) > 0 {
		f.cookie = last
	}
	return n, nil
}

// parseDirents reads struct linux_dirent64 (getdents64(2)) and gives the
// cookie after the last one.
func parseDirents(b []byte) (list []fsproto.Dirent, last uint64) {
	const header = 19
	for len(b) >= header {
		size := int(binary.NativeEndian.Uint16(b[16:]))
		if size < header || size > len(b) {
			break
		}
		name, _, _ := bytes.Cut(b[header:size], []byte{0})
		last = binary.NativeEndian.Uint64(b[8:])
		list = append(list, fsproto.Dirent{
			Ino:  binary.NativeEndian.Uint64(b),
			Off:  last,
			Type: uint32(b[18]) << 12, // DT_* are the S_IFMT bits
			Name: string(name),
		})
		b = b[size:]
	}
	return list, last
}

func (o *Origin) Releasedir(fh fsproto.FH) { o.Release(fh, 0, false) }

func (o *Origin) Fsyncdir(ctx context.Context, fh fsproto.FH, dataOnly bool) error {
	return o.onDir(fh, func(d *file) error { return sync1(d.fd, dataOnly) })
}
