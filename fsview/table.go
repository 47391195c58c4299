package fsview

import (
	"sync"
	"sync/atomic"

	"rexec/fsview/fsproto"
)

const rootID = 1 // FUSE's number of a mount's root

// node is one inode of a mount as the kernel knows it.
type node struct {
	id    uint64              // FUSE's number, never used again
	org   fsproto.Node        // the origin's; 0: made by the view
	pin   atomic.Pointer[pin] // what is known of the names below, nil: nothing
	fixed bool                // never forgotten
	use   *adopted            // nil unless the node is an alias for an adopted handle

	refs uint64 // lookups that the kernel has not forgotten; table.mu
	held uint64 // hand-outs that the origin has not got back; table.mu

	memory
}

// table maps a mount's FUSE numbers to the origin's nodes. The same node of
// the origin has the same number while the kernel knows it, whatever its
// names. Two sorts are apart: pinned directories, which would else move when
// home renames them, and aliases of adopted handles.
type table struct {
	mu     sync.RWMutex
	ids    map[uint64]*node
	org    map[fsproto.Node]*node
	pinned map[fsproto.Node][]*node
	last   uint64

	give  []fsproto.Forgotten // to be given back to the origin
	ready chan struct{}       // capacity 1: give is not empty
}

func newTable() *table {
	return &table{
		ids:    make(map[uint64]*node),
		org:    make(map[fsproto.Node]*node),
		pinned: make(map[fsproto.Node][]*node),
		last:   rootID,
		ready:  make(chan struct{}, 1),
	}
}

func (t *table) get(id uint64) *node {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.ids[id]
}

// enter counts a node that the origin handed out as looked up by the kernel,
// in the place p (nil: nowhere special).
func (t *table) enter(org fsproto.Node, p *pin) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.org[org]
	if n == nil {
		n = t.add(org)
		t.org[org] = n
	}
	if p != nil {
		n.pin.Store(p)
	}
	n.refs++
	n.held++
	return n
}

// add makes a node with a number of its own; mu is held.
func (t *table) add(org fsproto.Node) *node {
	t.last++
	n := &node{id: t.last, org: org}
	t.ids[n.id] = n
	return n
}

// addAlias makes another inode of a node that the origin handed out once.
func (t *table) addAlias(org fsproto.Node, use *adopted) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.add(org)
	n.use = use
	n.refs, n.held = 1, 1
	return n
}

// again counts one more lookup of an alias, and its hand-outs. False: the
// kernel has forgotten it.
func (t *table) again(n *node, held uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ids[n.id] != n {
		return false
	}
	n.refs++
	n.held += held
	return true
}

// addPinned makes the node of a pinned place. It stays.
func (t *table) addPinned(id uint64, org fsproto.Node, p *pin) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := &node{id: id, org: org, fixed: true}
	n.pin.Store(p)
	if id == 0 {
		t.last++
		n.id = t.last
	}
	t.ids[n.id] = n
	if org != 0 {
		t.pinned[org] = append(t.pinned[org], n)
		if n.id != rootID { // the root is the mount's, not ours
			n.held = 1
		}
	}
	return n
}

// ref counts one more lookup of a node that the origin was not asked for.
func (t *table) ref(n *node) {
	t.mu.Lock()
	n.refs++
	t.mu.Unlock()
}

// known lists the inodes of one node of the origin's.
func (t *table) known(org fsproto.Node) []*node {
	if org == 0 {
		return nil
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	list := append([]*node(nil), t.pinned[org]...)
	if n := t.org[org]; n != nil {
		list = append(list, n)
	}
	return list
}

// forget takes lookups back, and returns the node if that was the last.
func (t *table) forget(id, lookups uint64) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.ids[id]
	if n == nil {
		return nil
	}
	n.refs -= min(lookups, n.refs)
	if n.refs > 0 || n.fixed {
		return nil
	}
	delete(t.ids, id)
	if t.org[n.org] == n {
		delete(t.org, n.org)
	}
	t.giveBack(n)
	return n
}

func (t *table) giveBack(n *node) {
	if n.org == 0 || n.held == 0 {
		return
	}
	t.give = append(t.give, fsproto.Forgotten{Node: n.org, N: n.held})
	n.held = 0
	select {
	case t.ready <- struct{}{}:
	default:
	}
}

// taken returns what is to be given back.
func (t *table) taken() []fsproto.Forgotten {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := t.give
	t.give = nil
	return list
}

// clear gives everything back.
func (t *table) clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, n := range t.ids {
		t.giveBack(n)
	}
}
