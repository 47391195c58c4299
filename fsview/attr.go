package fsview

import (
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"rexec/fsview/fsproto"
)

// forever is a timeout that never comes, in seconds.
const forever = 10 * 365 * 24 * 3600

func isDir(mode uint32) bool     { return mode&unix.S_IFMT == unix.S_IFDIR }
func isRegular(mode uint32) bool { return mode&unix.S_IFMT == unix.S_IFREG }

func sortPins(list []*pin) {
	sort.Slice(list, func(i, j int) bool { return list[i].name < list[j].name })
}

// stamp tells versions of a file's content apart. ctime cannot be set back.
type stamp struct {
	size         uint64
	mtime, ctime fsproto.Time
}

func stampOf(a *fsproto.Attr) stamp { return stamp{a.Size, a.Mtime, a.Ctime} }

// memory is what a mount remembers of a node.
type memory struct {
	mu       sync.Mutex
	attr     fsproto.Attr // last heard
	sureAttr bool         // attr is true until recalled
	read     bool         // opened since attr was heard: atime may be another
	opened   stamp        // at the last open: what the page cache began with
	warm     bool         // opened is set
	locked   bool         // a record lock was asked for
	shared   *shared      // an open file that further opens for reading share

	writers atomic.Int32 // handles that can write
}

func (m *memory) learn(a *fsproto.Attr) {
	m.mu.Lock()
	m.attr, m.sureAttr, m.read = *a, false, false
	m.mu.Unlock()
}

// believe learns attributes that came with a lease, and returns what is left
// of it. A recall after this finds them.
func (t *tree) believe(unique uint64, n *node, a *fsproto.Attr, l fsproto.Lease, about subject) fsproto.Lease {
	n.mu.Lock()
	defer n.mu.Unlock()
	l = t.flights.grant(unique, l, about)
	n.attr, n.sureAttr, n.read = *a, l&fsproto.LeaseAttr != 0, false
	return l
}

// doubt ends the trust in what is remembered.
func (m *memory) doubt() {
	m.mu.Lock()
	m.sureAttr = false
	m.mu.Unlock()
}

// noteRead says that home's time of access may change.
func (m *memory) noteRead() {
	m.mu.Lock()
	m.read = true
	m.mu.Unlock()
}

// sure gives the attributes if home would say the same.
func (m *memory) sure() (fsproto.Attr, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.attr, m.sureAttr && !(m.read && atimeMoves(&m.attr))
}

// atimeMoves says whether a read changes the time of access of a file system
// mounted relatime, mount(8).
func atimeMoves(a *fsproto.Attr) bool {
	const day = 24 * 3600
	return !later(a.Atime, a.Mtime) || !later(a.Atime, a.Ctime) || time.Now().Unix()-a.Atime.Sec >= day
}

func later(a, b fsproto.Time) bool {
	return a.Sec > b.Sec || a.Sec == b.Sec && a.Nsec > b.Nsec
}

func (m *memory) last() fsproto.Attr {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.attr
}

// keep says whether pages that the kernel has of a file are still true.
func (m *memory) keep(a *fsproto.Attr) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.sureAttr {
		m.attr = *a
	}
	m.read = true
	now := stampOf(a)
	same := m.warm && m.opened == now
	m.opened, m.warm = now, true
	return same
}

// isWarm says whether the kernel may have pages of the file.
func (m *memory) isWarm() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.warm
}

func (m *memory) setLocked() {
	m.mu.Lock()
	m.locked = true
	m.mu.Unlock()
}

func (m *memory) wasLocked() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.locked
}

// synthetic are the attributes of an object that the view makes.
func (v *View) synthetic(id uint64, dir bool) *fsproto.Attr {
	a := &fsproto.Attr{
		Ino: 1<<47 | id, Mode: unix.S_IFREG | 0o444, Nlink: 1, Blksize: 4096,
		Atime: v.born, Mtime: v.born, Ctime: v.born, Btime: v.born,
	}
	if dir {
		a.Mode, a.Nlink = unix.S_IFDIR|0o555, 2
	}
	return a
}

func timeOf(t time.Time) fsproto.Time {
	return fsproto.Time{Sec: t.Unix(), Nsec: uint32(t.Nanosecond())}
}

// show writes attributes for the kernel.
func (v *View) show(out *fuse.Attr, a *fsproto.Attr) {
	*out = fuse.Attr{
		Ino: a.Ino, Size: a.Size, Blocks: a.Blocks,
		Atime: uint64(a.Atime.Sec), Mtime: uint64(a.Mtime.Sec), Ctime: uint64(a.Ctime.Sec),
		Atimensec: a.Atime.Nsec, Mtimensec: a.Mtime.Nsec, Ctimensec: a.Ctime.Nsec,
		Mode: a.Mode, Nlink: a.Nlink, Rdev: encodeDev(a.Rdev), Blksize: a.Blksize,
	}
	out.Uid, out.Gid = v.owner(a)
}

func (v *View) owner(a *fsproto.Attr) (uid, gid uint32) {
	if v.cfg.OneID {
		return v.cfg.UID, v.cfg.GID
	}
	return a.UID, a.GID
}

// encodeDev is the kernel's new_encode_dev: FUSE has 32 bits for a device.
func encodeDev(rdev uint64) uint32 {
	major, minor := unix.Major(rdev), unix.Minor(rdev)
	return minor&0xff | major<<8 | (minor&^0xff)<<12
}

func decodeDev(dev uint32) uint64 {
	return unix.Mkdev(dev>>8&0xfff, dev&0xff|dev>>12&0xfff00)
}

// showEntry writes the reply to a lookup.
func (t *tree) showEntry(out *fuse.EntryOut, n *node, a *fsproto.Attr, l fsproto.Lease) {
	*out = fuse.EntryOut{NodeId: n.id, Generation: 1}
	if l&fsproto.LeaseEntry != 0 {
		out.EntryValid = forever
	}
	if l&fsproto.LeaseAttr != 0 {
		out.AttrValid = forever
	}
	t.view.show(&out.Attr, a)
}

func (t *tree) showAttr(out *fuse.AttrOut, a *fsproto.Attr, l fsproto.Lease) {
	*out = fuse.AttrOut{}
	if l&fsproto.LeaseAttr != 0 {
		out.AttrValid = forever
	}
	t.view.show(&out.Attr, a)
}
