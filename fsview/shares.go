package fsview

import (
	"container/list"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"rexec/fsview/fsproto"
)

// maxShares bounds the files that one mount keeps open at home for opens to
// come.
const maxShares = 1024

// shared is a file that is open at home for reading, and leased: until its
// node is recalled every open for reading is this one, and home is not asked.
type shared struct {
	fh   fsproto.FH
	node *node

	mu   sync.Mutex
	refs int    // handles, and one for being the node's share
	data []byte // the content, until the kernel has it
	all  bool   // data is all there is
	size uint64

	place *list.Element // shares.mu
}

// shares are a mount's shared files, the least lately opened first.
//
// Lock order: shares.mu, memory.mu, shared.mu.
type shares struct {
	mu   sync.Mutex
	list list.List // of *shared
}

// shareable says whether an open for these flags is like any other such.
func shareable(flags uint32) bool {
	const (
		largeFile = 0o100000 // the kernel's own; unix.O_LARGEFILE is 0 here
		forExec   = 0x20     // FMODE_EXEC
	)
	const same = largeFile | forExec | unix.O_NONBLOCK | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	return flags&^same == unix.O_RDONLY
}

// take returns the node's share with one more user, nil if there is none.
func (m *memory) take() *shared {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.shared
	if s != nil {
		s.mu.Lock()
		s.refs++
		s.mu.Unlock()
	}
	return s
}

// offer makes an opened file its node's share where the reply's lease still
// holds: a recall after this finds it.
func (t *tree) offer(unique uint64, n *node, op *fsproto.Opened) *shared {
	s := &shared{fh: op.FH, node: n, refs: 2, data: op.Data, all: op.Whole, size: op.Attr.Size}
	t.shares.mu.Lock()
	defer t.shares.mu.Unlock()
	n.mu.Lock()
	granted := n.shared == nil && t.flights.grant(unique, op.Lease)&fsproto.LeaseData != 0
	if granted {
		n.shared = s
	}
	n.mu.Unlock()
	if !granted {
		return nil
	}
	s.place = t.shares.list.PushBack(s)
	if t.shares.list.Len() > maxShares {
		t.unshareLocked(t.shares.list.Front().Value.(*shared).node)
	}
	return s
}

// unshare ends the sharing of a node's file; those who have it open keep it.
func (t *tree) unshare(n *node) {
	t.shares.mu.Lock()
	defer t.shares.mu.Unlock()
	t.unshareLocked(n)
}

func (t *tree) unshareLocked(n *node) {
	n.mu.Lock()
	s := n.shared
	n.shared = nil
	n.mu.Unlock()
	if s == nil {
		return
	}
	t.shares.list.Remove(s.place)
	s.mu.Lock()
	s.data, s.all = nil, false
	s.mu.Unlock()
	t.leave(s)
}

// leave gives one use of a shared file up; the last one closes it.
func (t *tree) leave(s *shared) {
	s.mu.Lock()
	s.refs--
	last := s.refs == 0
	s.mu.Unlock()
	if last {
		t.origin.Release(s.fh, 0, false)
	}
}

// unshareAll is for the end of a mount.
func (t *tree) unshareAll() {
	t.shares.mu.Lock()
	defer t.shares.mu.Unlock()
	for e := t.shares.list.Front(); e != nil; e = t.shares.list.Front() {
		t.unshareLocked(e.Value.(*shared).node)
	}
}

// read answers from the content that came with the open. It is given away
// once the kernel, which keeps it, has all of it.
func (s *shared) read(off uint64, size int) (data []byte, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.all || off > s.size {
		return nil, false
	}
	end := min(off+uint64(size), s.size)
	data = s.data[off:end]
	if off == 0 && end == s.size {
		s.data, s.all = nil, false
	}
	return data, true
}

// openShared opens a file for reading: as the share of its node, or at home,
// which may make it that.
func (t *tree) openShared(cancel <-chan struct{}, in *fuse.OpenIn, n *node, out *fuse.OpenOut) fuse.Status {
	if s := n.take(); s != nil {
		out.Fh = t.handles.add(&handle{fh: s.fh, node: n, shared: s})
		out.OpenFlags = fuse.FOPEN_KEEP_CACHE
		return fuse.OK
	}
	flags := in.Flags & openFlags
	if !n.isWarm() {
		flags |= fsproto.OpenData
	}
	op, err := t.origin.Open(request{cancel}, n.org, flags)
	if err != nil {
		return t.status(err)
	}
	h := &handle{fh: op.FH, node: n}
	if op.Lease&fsproto.LeaseData != 0 {
		h.shared = t.offer(in.Unique, n, &op)
	}
	out.Fh = t.handles.add(h)
	out.OpenFlags = t.cacheFlags(n, in.Flags, &op.Attr)
	return fuse.OK
}
