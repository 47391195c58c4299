package fsview

import (
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"rexec/fsview/fsproto"
)

const (
	// listAhead is how much of a listing is fetched at once, in bytes.
	listAhead = 64 << 10
	// extraOff is the cookie before the entries that the view adds after the
	// origin's, and extraMax how many cookies are theirs. An origin's cookie
	// among them is as good as impossible: cookies that large are hashes.
	extraOff = 1 << 62
	extraMax = 1 << 16
)

// listing is an open directory. The rest is what the origin said after the
// entry with cookie off, and the kernel has not asked for yet.
type listing struct {
	mu     sync.Mutex
	rest   []fsproto.Dirent
	off    uint64
	extras []*pin
}

// OpenDir answers opendir(3).
func (t *tree) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n, st := t.begin(in.NodeId)
	if st != fuse.OK {
		return st
	}
	h := &handle{node: n, dir: &listing{extras: n.pin.Load().extras()}}
	if n.org != 0 {
		op, err := t.origin.Opendir(request{cancel}, n.org)
		if err != nil {
			return t.status(err)
		}
		h.fh = op.FH
		n.noteRead()
	}
	out.Fh = t.handles.add(h)
	return fuse.OK
}

// ReadDir answers getdents(2).
func (t *tree) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	h, st := t.open(in.Fh)
	switch {
	case st != fuse.OK:
		return st
	case h.dir == nil:
		return fuse.ENOTDIR
	}
	h.dir.mu.Lock()
	defer h.dir.mu.Unlock()
	off := in.Offset
	for off-extraOff >= extraMax {
		list, err := t.list(request{cancel}, h, off)
		if err != nil {
			return t.status(err)
		}
		if len(list) == 0 {
			off = extraOff
			break
		}
		off = list[len(list)-1].Off
		if full := h.emit(list, out); full || len(out.Bytes()) > 0 {
			return fuse.OK
		}
	}
	h.emitExtras(off, out)
	return fuse.OK
}

// list gives the entries after cookie off: those at hand, or fetched.
func (t *tree) list(ctx request, h *handle, off uint64) ([]fsproto.Dirent, error) {
	if h.fh == 0 {
		return h.dots(off), nil
	}
	l := h.dir
	if off == 0 || off != l.off || len(l.rest) == 0 {
		list, err := t.origin.Readdir(ctx, h.fh, off, listAhead)
		if err != nil {
			return nil, err
		}
		l.rest, l.off = list, off
	}
	return l.rest, nil
}

// dots is the origin's part of the listing of a directory of the view's.
func (h *handle) dots(off uint64) []fsproto.Dirent {
	a := h.node.last()
	all := []fsproto.Dirent{
		{Ino: a.Ino, Off: 1, Type: unix.S_IFDIR, Name: "."},
		{Ino: a.Ino, Off: 2, Type: unix.S_IFDIR, Name: ".."},
	}
	return all[min(off, 2):]
}

// emit writes entries while they fit, and keeps the others.
func (h *handle) emit(list []fsproto.Dirent, out *fuse.DirEntryList) (full bool) {
	for i := range list {
		e := &list[i]
		mode, ok := h.seen(e)
		if ok && !out.AddDirEntry(fuse.DirEntry{Ino: e.Ino, Off: e.Off, Mode: mode, Name: e.Name}) {
			h.dir.rest = list[i:]
			return true
		}
		h.dir.off = e.Off
	}
	h.dir.rest = nil
	return false
}

// seen says as what the view shows an entry of home's.
func (h *handle) seen(e *fsproto.Dirent) (mode uint32, ok bool) {
	switch p := h.node.child(e.Name); {
	case p == nil:
		return e.Type, true
	case p.absent, p.shown: // it does not exist, or comes with the extras
		return 0, false
	case p.node == nil:
		return e.Type, true
	case p.dir:
		return unix.S_IFDIR, true
	}
	return unix.S_IFREG, true
}

func (h *handle) emitExtras(off uint64, out *fuse.DirEntryList) {
	for i := off - extraOff; i < uint64(len(h.dir.extras)); i++ {
		p := h.dir.extras[i]
		a := p.node.last()
		if !out.AddDirEntry(fuse.DirEntry{Ino: a.Ino, Off: extraOff + i + 1, Mode: a.Mode, Name: p.name}) {
			return
		}
	}
}

// ReleaseDir answers closedir(3).
func (t *tree) ReleaseDir(in *fuse.ReleaseIn) {
	if h := t.handles.take(in.Fh); h != nil {
		h.close(t, 0, false)
	}
}

// FsyncDir answers fsync(2) of a directory.
func (t *tree) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	h, st := t.open(in.Fh)
	if st != fuse.OK || h.fh == 0 {
		return st
	}
	return t.status(t.origin.Fsyncdir(request{cancel}, h.fh, in.FsyncFlags&dataSync != 0))
}
