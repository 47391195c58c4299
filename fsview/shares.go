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
	over bool   // not the node's share any more: data may be stale
	data []byte // content from base on that the kernel has not asked for yet
	base uint64
	next uint64 // where the last read ended
	size uint64

	place *list.Element // shares.mu
}

// shares are a mount's shared files, the least lately opened first.
//
// Lock order: shares.mu, memory.mu, shared.mu; shares.aheadMu, shared.mu.
type shares struct {
	mu   sync.Mutex
	list list.List // of *shared

	aheadMu sync.Mutex
	ahead   []*shared // that hold what was read ahead, oldest first
}

// maxAhead bounds the files of a mount that hold what was read ahead, each
// less than fsproto.MaxIO.
const maxAhead = 32

// holds notes that s holds content, and has the oldest that does let go.
func (l *shares) holds(s *shared) {
	l.aheadMu.Lock()
	defer l.aheadMu.Unlock()
	l.ahead = append(l.ahead, s)
	if len(l.ahead) > maxAhead {
		l.ahead[0].keep(0, nil)
		l.ahead = append(l.ahead[:0], l.ahead[1:]...)
	}
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
	s := &shared{fh: op.FH, node: n, refs: 2, data: op.Data, size: op.Attr.Size}
	t.shares.mu.Lock()
	defer t.shares.mu.Unlock()
	n.mu.Lock()
	granted := n.shared == nil && t.flights.grant(unique, op.Lease, subject{node: n.org})&fsproto.LeaseData != 0
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
	s.data, s.over = nil, true
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

// read answers from what is here already. Content is given away once the
// kernel, which keeps it, has the end of it.
func (s *shared) read(off uint64, size int) (data []byte, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	have := s.base + uint64(len(s.data))
	end := min(off+uint64(size), s.size)
	if len(s.data) == 0 || off < s.base || off > end || end > have {
		return nil, false
	}
	data = s.data[off-s.base : end-s.base]
	if end == have {
		s.data = nil
	}
	s.next = end
	return data, true
}

// ahead says how much to ask home for: all that one answer can bring, where
// the file is being read through.
func (s *shared) ahead(off uint64, size int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	through := off > 0 && off == s.next
	s.next = off + uint64(size)
	if through {
		return fsproto.MaxIO
	}
	return size
}

// keep takes what home sent beyond what was asked for.
func (s *shared) keep(base uint64, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.over {
		s.base, s.data = base, data
	}
}

// readShared reads for a handle of a shared file.
func (t *tree) readShared(cancel <-chan struct{}, s *shared, off uint64, size int) ([]byte, error) {
	if data, ok := s.read(off, size); ok {
		return data, nil
	}
	data, err := t.origin.Read(request{cancel}, s.fh, int64(off), s.ahead(off, size))
	if len(data) > size {
		s.keep(off+uint64(size), data[size:])
		t.shares.holds(s)
		data = data[:size]
	}
	return data, err
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
