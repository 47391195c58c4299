package fsview

import (
	"context"
	"fmt"
	"path"
	"strconv"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"rexec/fsview/fsproto"
)

// Each mount's root has a directory that no listing shows, of a random name.
// In it "n1" is the origin's node 1, and "a1" the first adopted handle.

// Path is where init, and nobody who does not know it, can open node n of a
// mount: a file, also one without a name, or a directory without one. A
// directory that has a name cannot be opened so: it would move here.
func (v *View) Path(mount int, n fsproto.Node) string {
	return path.Join(v.cfg.Mounts[mount].Path, v.secret, "n"+strconv.FormatUint(uint64(n), 10))
}

// Adoption is an open file description of home's that is to be opened in the
// view.
type Adoption struct {
	Append bool // O_APPEND: every write goes to home's end of file
	// Stream has a write at the description's own position go to home's
	// position, as write(2), so that both sides can write one log. The
	// position here begins with Offset.
	Stream  bool
	Offset  int64
	Release func() // the view needs fh no more; nil: the origin's Release
}

// Adopt returns a path whose first open is fh of home's own; opens of what
// that gave (by /proc/self/fd) are new ones. An open of the node itself, by
// any name, with [AdoptMark] in its flags is as good, and leaves the file with
// that name.
func (v *View) Adopt(mount int, n fsproto.Node, fh fsproto.FH, a Adoption) string {
	name := v.adopt.add(&adopted{mount: mount, org: n, fh: fh, Adoption: a, pos: a.Offset,
		writing: make(chan struct{}, 1), origin: v.trees[mount].origin})
	return path.Join(v.cfg.Mounts[mount].Path, v.secret, name)
}

// AdoptMark are the flags of open(2) by which init asks for an adopted handle:
// two that fcntl(2) can take off again and that nobody gives together.
// Whoever did would only get what he may open anyway.
const AdoptMark = unix.O_NONBLOCK | unix.O_DIRECT

// adoptions are handles by name.
type adoptions struct {
	mu   sync.Mutex
	all  map[string]*adopted
	last uint64
}

// adopted is a handle of home's.
type adopted struct {
	Adoption
	name   string
	number uint64
	mount  int
	org    fsproto.Node
	fh     fsproto.FH
	origin fsproto.Origin

	finding sync.Mutex // one LOOKUP at a time makes the node
	mu      sync.Mutex
	node    *node // the alias, nil before the first LOOKUP
	taken   bool
	gone    bool
	writing chan struct{} // capacity 1: held by who writes; keeps pos right
	pos     int64         // where the next write of a stream is expected
}

func (as *adoptions) add(a *adopted) string {
	as.mu.Lock()
	defer as.mu.Unlock()
	if as.all == nil {
		as.all = make(map[string]*adopted)
	}
	as.last++
	a.number = as.last
	a.name = "a" + strconv.FormatUint(as.last, 10)
	as.all[a.name] = a
	return a.name
}

func (as *adoptions) get(name string, mount int) *adopted {
	as.mu.Lock()
	defer as.mu.Unlock()
	if a := as.all[name]; a != nil && a.mount == mount {
		return a
	}
	return nil
}

// marked takes the oldest handle that waits for an open of a node.
func (as *adoptions) marked(mount int, n fsproto.Node) *adopted {
	as.mu.Lock()
	defer as.mu.Unlock()
	var first *adopted
	for _, a := range as.all {
		if a.mount == mount && a.org == n && !a.isTaken() && (first == nil || a.number < first.number) {
			first = a
		}
	}
	if first == nil || !first.take() {
		return nil
	}
	delete(as.all, first.name)
	return first
}

// drop forgets an adoption whose alias the kernel has forgotten. One that was
// not opened yet stays, without a node.
func (as *adoptions) drop(n *node) {
	a := n.use
	a.mu.Lock()
	if a.node != n {
		a.mu.Unlock()
		return
	}
	a.node = nil
	taken := a.taken
	a.mu.Unlock()
	if taken {
		as.mu.Lock()
		delete(as.all, a.name)
		as.mu.Unlock()
	}
}

// clear releases what was never opened.
func (as *adoptions) clear() {
	as.mu.Lock()
	all := as.all
	as.all = nil
	as.mu.Unlock()
	for _, a := range all {
		if a.take() {
			a.released()
		}
	}
}

// take says whether this open is the first.
func (a *adopted) take() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	first := !a.taken
	a.taken = true
	return first
}

func (a *adopted) isTaken() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.taken
}

func (a *adopted) released() {
	a.mu.Lock()
	gone := a.gone
	a.gone = true
	a.mu.Unlock()
	switch {
	case gone:
	case a.Release != nil:
		a.Release()
	default:
		a.origin.Release(a.fh, 0, false)
	}
}

// write writes as home's description would: at its own position, at the end,
// or elsewhere.
func (a *adopted) write(ctx context.Context, o fsproto.Origin, w *fsproto.WriteIn) (int, error) {
	select {
	case a.writing <- struct{}{}:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	defer func() { <-a.writing }()
	switch {
	case a.Append:
		w.Append = true
	case a.Stream && w.Off == a.pos:
		w.Stream = true
	}
	n, err := o.Write(ctx, w)
	if w.Stream && n > 0 {
		a.pos += int64(n)
	}
	return n, err
}

// openAdopted hands home's handle to the kernel. Writes go past the page
// cache: their offsets and sizes must be the caller's.
func (t *tree) openAdopted(n *node, a *adopted, flags uint32, out *fuse.OpenOut) {
	out.Fh = t.handles.add(&handle{fh: a.fh, node: n, use: a})
	if writes(flags) {
		out.OpenFlags = fuse.FOPEN_DIRECT_IO
	}
}

// secretDir is the node of the directory.
func (t *tree) secretDir() *node {
	t.secretOnce.Do(func() {
		t.secret = t.nodes.addPinned(0, 0, nil)
		a := t.view.synthetic(t.secret.id, true)
		a.Mode = unix.S_IFDIR | 0o711
		t.secret.learn(a)
	})
	return t.secret
}

// lookupSecret finds what a name in a directory of the view's own leads to.
func (t *tree) lookupSecret(cancel <-chan struct{}, dir *node, name string, out *fuse.EntryOut) fuse.Status {
	if dir != t.secretDir() || len(name) < 2 {
		return fuse.ENOENT
	}
	if a := t.view.adopt.get(name, t.index); a != nil {
		return t.lookupAdopted(request{cancel}, a, out)
	}
	number, err := strconv.ParseUint(name[1:], 10, 64)
	if name[0] != 'n' || err != nil || number == 0 {
		return fuse.ENOENT
	}
	e, err := t.ref(request{cancel}, fsproto.Node(number))
	if err != nil {
		return t.status(err)
	}
	n := t.nodes.enter(e.Node, nil)
	n.learn(&e.Attr)
	t.showEntry(out, n, &e.Attr, 0)
	return fuse.OK
}

// ref has the origin hand a node out that may appear here.
func (t *tree) ref(ctx context.Context, number fsproto.Node) (fsproto.Entry, error) {
	e, err := t.origin.Ref(ctx, number)
	if err != nil {
		return e, err
	}
	if isDir(e.Attr.Mode) && e.Attr.Nlink > 0 {
		t.origin.Forget([]fsproto.Forgotten{{Node: e.Node, N: 1}})
		return e, fmt.Errorf("node %d has a name: %w", number, syscall.EISDIR)
	}
	return e, nil
}

// lookupAdopted finds the alias of an adopted handle, the same for as long as
// the kernel knows it.
func (t *tree) lookupAdopted(ctx context.Context, a *adopted, out *fuse.EntryOut) fuse.Status {
	a.finding.Lock()
	defer a.finding.Unlock()
	e, err := t.ref(ctx, a.org)
	if err != nil {
		return t.status(err)
	}
	a.mu.Lock()
	n := a.node
	a.mu.Unlock()
	if n == nil || !t.nodes.again(n, 1) {
		n = t.nodes.addAlias(e.Node, a)
		a.mu.Lock()
		a.node = n
		a.mu.Unlock()
	}
	n.learn(&e.Attr)
	t.showEntry(out, n, &e.Attr, 0)
	return fuse.OK
}
