package fsview

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"rexec/fsview/fsproto"
)

// handle is an open file or directory of a mount.
type handle struct {
	fh     fsproto.FH // 0: of an object that the view made
	node   *node
	dir    *listing // of a directory
	use    *adopted // of a description that home had open
	shared *shared  // fh is not this handle's alone
	wrote  atomic.Bool
	writer bool // counts among the node's writers

	mu  sync.Mutex
	own fsproto.FH // beside shared: of this handle alone, for its locks
}

// newHandle is an open file of one handle.
func newHandle(n *node, fh fsproto.FH, flags uint32) *handle {
	h := &handle{fh: fh, node: n, writer: writes(flags)}
	if h.writer {
		n.writers.Add(1)
	}
	return h
}

// handles are the open files of one mount by FUSE's number.
type handles struct {
	mu   sync.RWMutex
	all  map[uint64]*handle
	last uint64
}

func (hs *handles) add(h *handle) uint64 {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if hs.all == nil {
		hs.all = make(map[uint64]*handle)
	}
	hs.last++
	hs.all[hs.last] = h
	return hs.last
}

func (hs *handles) get(id uint64) *handle {
	hs.mu.RLock()
	defer hs.mu.RUnlock()
	return hs.all[id]
}

func (hs *handles) take(id uint64) *handle {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	h := hs.all[id]
	delete(hs.all, id)
	return h
}

// origin's number of an open file, 0 if there is none.
func (hs *handles) fh(id uint64) fsproto.FH {
	if h := hs.get(id); h != nil {
		return h.fh
	}
	return 0
}

// clear closes all of them at the origin.
func (hs *handles) clear(t *tree) {
	hs.mu.Lock()
	all := hs.all
	hs.all = nil
	hs.mu.Unlock()
	for _, h := range all {
		h.close(t, 0, false)
	}
}

// ownFile is a file at home that no other handle has: home drops locks with
// the file through which they were taken.
func (t *tree) ownFile(cancel <-chan struct{}, h *handle) (fsproto.FH, error) {
	if h.shared == nil {
		return h.fh, nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.own == 0 {
		op, err := t.origin.Open(request{cancel}, h.node.org, unix.O_RDONLY)
		if err != nil {
			return 0, err
		}
		h.own = op.FH
	}
	return h.own, nil
}

// close gives a handle back to whom it came from.
func (h *handle) close(t *tree, owner uint64, flock bool) {
	if h.writer {
		h.node.writers.Add(-1)
	}
	switch {
	case h.use != nil:
		h.use.released()
	case h.shared != nil:
		if h.own != 0 {
			t.origin.Release(h.own, owner, flock)
		}
		t.leave(h.shared)
	case h.fh == 0:
	case h.dir != nil:
		t.origin.Releasedir(h.fh)
	default:
		t.origin.Release(h.fh, owner, flock)
	}
}
