package fsview

import (
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"rexec/fsview/fsproto"
)

// A kernel that may cache nothing asks for the same thing twice or three
// times within one system call: LOOKUP, then GETATTR and GETXATTR of the
// access ACL to see whether the caller may go on. The later questions are
// answered from the first reply, which is as new as the call itself: to the
// same thread, within justNow, while nobody changes anything in this mount.

const (
	justNow   = 500 * time.Microsecond
	accessACL = "system.posix_acl_access"
)

// told is what the kernel was told of a node last, and for whom.
type told struct {
	by    uint32 // thread; 0: nobody
	at    time.Time
	again bool   // the attributes may be given once more
	when  uint64 // tree.changes before the origin was asked

	acl      []byte
	aclState fuse.Status
	aclAt    fsproto.Time // ctime of the object then: an ACL's change moves it
	aclKnown bool
}

// tell notes that a thread was told the node's attributes, which the origin
// was asked for when the mount's count of changes was at when.
func (m *memory) tell(thread uint32, again bool, when uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.told.by, m.told.again, m.told.at, m.told.when = thread, again, time.Now(), when
}

func (t *told) fresh(thread uint32, now uint64) bool {
	return thread != 0 && t.by == thread && t.when == now && time.Since(t.at) < justNow
}

// justTold gives the attributes that the thread's lookup brought, once.
func (m *memory) justTold(thread uint32, now uint64) (fsproto.Attr, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.told.again || !m.told.fresh(thread, now) {
		return fsproto.Attr{}, false
	}
	m.told.again = false
	return m.attr, true
}

// knownACL gives the access ACL where the attributes that the thread was just
// told show that it is the one known.
func (m *memory) knownACL(thread uint32, now uint64) ([]byte, fuse.Status, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.told.aclKnown || m.told.aclAt != m.attr.Ctime || !m.told.fresh(thread, now) {
		return nil, 0, false
	}
	return m.told.acl, m.told.aclState, true
}

// learnACL notes an ACL, or that there is none. The attributes known are not
// newer than it, so a change in between shows.
func (m *memory) learnACL(value []byte, st fuse.Status) {
	if st != fuse.OK && st != fuse.ENODATA && st != fuse.ENOTSUP {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.told.acl, m.told.aclState, m.told.aclAt, m.told.aclKnown = value, st, m.attr.Ctime, true
}

func (m *memory) forgetACL() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.told.aclKnown, m.told.by = false, 0
}
