package origin

import (
	"context"
	"math"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"rexec/fsview/fsproto"
)

// lockKey is whose locks one description holds.
type lockKey struct {
	node  fsproto.Node
	owner uint64
	flock bool
}

// span is a locked range, both ends included.
type span struct {
	start, end uint64
	kind       int16
}

// holder holds the locks of one owner on one node, by a description of its
// own: record locks as F_OFD locks, which conflict with POSIX locks of other
// processes, and flock(2).
type holder struct {
	fd   int
	pid  int32
	file fsproto.FH // through which it last locked
	held []span     // record locks
	gone bool
	mu   sync.Mutex // one call on fd at a time; before lockTable.mu
}

type lockTable struct {
	mu      sync.Mutex // guards what follows and every holder's fields but fd
	holders map[lockKey]*holder
	freed   chan struct{} // closed and made anew whenever a lock is given up
}

func (t *lockTable) init() {
	t.holders = make(map[lockKey]*holder)
	t.freed = make(chan struct{})
}

// wake lets waiting calls try again. mu is held.
func (t *lockTable) wake() {
	close(t.freed)
	t.freed = make(chan struct{})
}

// remove ends a holder. mu is held; h.mu is not needed: closing the
// descriptor is left to whoever is inside.
func (t *lockTable) remove(k lockKey, h *holder) {
	if t.holders[k] == h {
		delete(t.holders, k)
	}
	h.gone = true
	t.wake()
}

// shut closes a removed holder once no call is inside.
func (h *holder) shut() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fd >= 0 {
		unix.Close(h.fd)
		h.fd = -1
	}
}

// drop gives up all locks of one owner on a node.
func (t *lockTable) drop(k lockKey) {
	t.mu.Lock()
	h := t.holders[k]
	t.mu.Unlock()
	if h != nil {
		t.end(k, h)
	}
}

// end closes first and wakes then, so that who waits finds the lock free.
func (t *lockTable) end(k lockKey, h *holder) {
	h.shut()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.remove(k, h)
}

// dropFile gives up all locks that were last taken through an open file.
func (t *lockTable) dropFile(fh fsproto.FH) {
	t.dropAll(func(h *holder) bool { return h.file == fh })
}

func (t *lockTable) close() { t.dropAll(func(*holder) bool { return true }) }

func (t *lockTable) dropAll(match func(*holder) bool) {
	t.mu.Lock()
	found := make(map[lockKey]*holder)
	for k, h := range t.holders {
		if match(h) {
			found[k] = h
		}
	}
	t.mu.Unlock()
	for k, h := range found {
		t.end(k, h)
	}
}

// holder finds the owner's holder or makes one, where make is given.
func (t *lockTable) holder(k lockKey, make func() (int, error)) (*holder, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if h := t.holders[k]; h != nil || make == nil {
		return h, nil
	}
	fd, err := make()
	if err != nil {
		return nil, err
	}
	h := &holder{fd: fd}
	t.holders[k] = h
	return h, nil
}

// lockFD opens a description to lock with: with all rights that can be had,
// since a read lock may become a write lock.
func lockFD(n *node, flock bool) (int, error) {
	if n.fmt != unix.S_IFREG && !(flock && n.isDir()) {
		return -1, unix.EBADF
	}
	modes := []int{unix.O_RDWR, unix.O_RDONLY, unix.O_WRONLY}
	if flock {
		modes = modes[1:]
	}
	var first error
	for _, mode := range modes {
		fd, err := reopenPath(n.fd, mode|unix.O_NONBLOCK)
		if err == nil {
			return fd, nil
		}
		if first == nil {
			first = err
		}
	}
	return -1, first
}

func recordLock(l *fsproto.Lock) (unix.Flock_t, error) {
	fl := unix.Flock_t{Type: int16(l.Type), Start: int64(l.Start)}
	if l.Type > unix.F_UNLCK || l.Start > math.MaxInt64 || l.End < l.Start {
		return fl, unix.EINVAL
	}
	if l.End < math.MaxInt64 {
		fl.Len = int64(l.End-l.Start) + 1
	}
	return fl, nil
}

func (o *Origin) Setlk(ctx context.Context, l *fsproto.Lock) error {
	n, err := o.hold(l.Node)
	if err != nil {
		return err
	}
	defer o.drop(n)
	k := lockKey{n.id, l.Owner, l.Flock}
	if l.Type == unix.F_UNLCK {
		return o.locks.unlock(k, l)
	}
	wait := time.Millisecond
	for {
		freed := o.locks.next()
		err := o.locks.try(k, l, func() (int, error) { return lockFD(n, l.Flock) })
		if err != unix.EAGAIN || !l.Wait {
			return err
		}
		// The kernel's own waiting cannot be interrupted from Go, whose
		// signal handlers restart calls. Locks given up through this origin
		// wake us; for other processes' we look again.
		select {
		case <-ctx.Done():
			return unix.EINTR
		case <-freed:
		case <-time.After(wait):
			wait = min(2*wait, 20*time.Millisecond)
		}
	}
}

func (t *lockTable) next() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.freed
}

// try takes a lock without waiting: EAGAIN where another holds it.
func (t *lockTable) try(k lockKey, l *fsproto.Lock, open func() (int, error)) error {
	for {
		h, err := t.holder(k, open)
		if err != nil {
			return err
		}
		h.mu.Lock()
		if h.fd >= 0 {
			err := t.lock(k, h, l)
			h.mu.Unlock()
			return err
		}
		h.mu.Unlock()
		t.end(k, h) // it ended between the two locks
	}
}

// lock does the system call; h.mu is held.
func (t *lockTable) lock(k lockKey, h *holder, l *fsproto.Lock) error {
	err := lockCall(h.fd, l)
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case err == nil:
		h.pid, h.file = l.Pid, l.FH
		h.set(span{l.Start, l.End, int16(l.Type)})
	case len(h.held) == 0: // it holds nothing: no reason to keep it
		unix.Close(h.fd)
		h.fd = -1
		t.remove2(k, h)
	}
	return err
}

// remove2 is remove for a holder that held nothing: nobody to wake.
func (t *lockTable) remove2(k lockKey, h *holder) {
	if t.holders[k] == h {
		delete(t.holders, k)
	}
	h.gone = true
}

func lockCall(fd int, l *fsproto.Lock) error {
	if l.Flock {
		how := map[uint32]int{unix.F_RDLCK: unix.LOCK_SH, unix.F_WRLCK: unix.LOCK_EX, unix.F_UNLCK: unix.LOCK_UN}[l.Type]
		return retry(func() error { return unix.Flock(fd, how|unix.LOCK_NB) })
	}
	fl, err := recordLock(l)
	if err != nil {
		return err
	}
	err = retry(func() error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &fl) })
	if err == unix.EACCES { // what fcntl(2) allows for EAGAIN
		return unix.EAGAIN
	}
	return err
}

func (t *lockTable) unlock(k lockKey, l *fsproto.Lock) error {
	if _, err := recordLock(l); err != nil && !l.Flock {
		return err
	}
	h, _ := t.holder(k, nil)
	if h == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fd < 0 {
		return nil
	}
	if err := lockCall(h.fd, l); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	h.set(span{l.Start, l.End, unix.F_UNLCK})
	if len(h.held) == 0 || l.Flock {
		unix.Close(h.fd)
		h.fd = -1
		t.remove2(k, h)
	}
	t.wake()
	return nil
}

// set notes a lock as the kernel does: it replaces what it overlaps.
func (h *holder) set(s span) {
	var kept []span
	for _, old := range h.held {
		if old.end < s.start || old.start > s.end {
			kept = append(kept, old)
			continue
		}
		if old.start < s.start {
			kept = append(kept, span{old.start, s.start - 1, old.kind})
		}
		if old.end > s.end {
			kept = append(kept, span{s.end + 1, old.end, old.kind})
		}
	}
	if s.kind != unix.F_UNLCK {
		kept = append(kept, s)
	}
	h.held = kept
}

func (o *Origin) Getlk(ctx context.Context, l *fsproto.Lock) (fsproto.Lock, error) {
	n, err := o.hold(l.Node)
	if err != nil {
		return fsproto.Lock{}, err
	}
	defer o.drop(n)
	fl, err := recordLock(l)
	if err != nil || l.Flock {
		return fsproto.Lock{}, unix.EINVAL
	}
	free := *l
	free.Type = unix.F_UNLCK
	k := lockKey{n.id, l.Owner, false}
	if err := o.getlk(n, k, &fl); err != nil {
		return fsproto.Lock{}, err
	}
	if fl.Type == unix.F_UNLCK {
		return free, nil
	}
	return o.locks.blocker(k, l, &fl), nil
}

// getlk asks the kernel with the owner's own description, whose locks are no
// hindrance to it, or with a fresh one.
func (o *Origin) getlk(n *node, k lockKey, fl *unix.Flock_t) error {
	if h, _ := o.locks.holder(k, nil); h != nil {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.fd >= 0 {
			return unix.FcntlFlock(uintptr(h.fd), unix.F_OFD_GETLK, fl)
		}
	}
	fd, err := lockFD(n, false)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, fl)
}

// blocker tells whose lock fl is. The kernel has no process for OFD locks (pid
// -1), but those of this origin's other owners are known.
func (t *lockTable) blocker(k lockKey, l *fsproto.Lock, fl *unix.Flock_t) fsproto.Lock {
	found := *l
	found.Type, found.Pid, found.Start, found.End = uint32(fl.Type), fl.Pid, uint64(fl.Start), math.MaxInt64
	if fl.Len != 0 {
		found.End = uint64(fl.Start + fl.Len - 1)
	}
	if fl.Pid > 0 {
		return found
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for other, h := range t.holders {
		hit := func(s span) bool { return s.start <= found.End && s.end >= found.Start }
		if other.node == k.node && other.owner != k.owner && !other.flock && slices.ContainsFunc(h.held, hit) {
			found.Pid = h.pid
		}
	}
	return found
}
