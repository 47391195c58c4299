package origin

import (
	"encoding/binary"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"rexec/fsview/fsproto"
)

// leases are what this origin has promised to take back: names in directories
// and attributes of objects. A promise needs an inotify watch on the inode
// that it is about, since a change through another hard link shows nowhere
// else. Every event can be read before the system call that caused it
// returns, so that who calls settle before sending a byte has sent the
// recalls of all that happened before.
//
// What no event tells is kept out: the attributes of a regular file are not
// leased while it has a writer or a writable map (probe), and whoever opens
// it is looked at again (IN_OPEN); a change of the mount table recalls all;
// only file systems that nobody but this kernel changes are leased. Access
// times and the ctime that chattr(1) sets are the exceptions.
//
// Lock order: turn, then Origin.mu, then mu.
type leases struct {
	o    *Origin
	turn sync.Mutex // held while events are read and recalls sent
	buf  []byte     // for events; guarded by turn

	mu      sync.Mutex // guards what follows; events of a watch are looked at under it, so a watch is made under it
	fd      int        // inotify; -1 where there are no leases
	events  *os.File   // the same, for waiting
	mounts  int        // /proc/self/mountinfo, to poll
	max     int        // watches
	names   int        // promised in all directories
	kept    int        // files of watches
	watches map[int32]*watch
	nodes   map[fsproto.Node]*leased
	local   map[uint64]bool // by mount: whether only this kernel changes it
	stop    chan struct{}
	ended   sync.WaitGroup
}

// watch is an inotify watch, and the nodes of its inode: one on each mount
// through which it was reached.
type watch struct {
	wd    int32
	nodes map[fsproto.Node]*leased
	busy  bool // has a writer, as far as is known: do not probe

	// A probe opens the file, which other users' homes that lease it see, and
	// probe in turn. So that this ends, only a few opens are looked into in
	// any calm. A file that is opened more often (/etc/ld.so.cache by every
	// program) is kept open, so that a look needs no open; where too many are,
	// the lease ends and is not given before the next calm.
	since time.Time
	looks int
	file  *os.File // open for reading, or nil
}

// maxKept bounds the files kept open.
const maxKept = 256

const (
	calm     = time.Second
	maxLooks = 50
)

// restless counts one look at a file that someone opened, and says whether
// that is one too many.
func (w *watch) restless() bool {
	if now := time.Now(); now.Sub(w.since) > calm {
		w.since, w.looks = now, 0
	}
	w.looks++
	return w.looks > maxLooks
}

// resting says whether a lease of the file ended for want of calm just now.
func (w *watch) resting() bool {
	return w.file == nil && w.looks > maxLooks && time.Since(w.since) <= calm
}

// leased is what is promised of one node.
type leased struct {
	id    fsproto.Node
	watch *watch
	attr  bool
	names map[string]bool // in a directory
}

const (
	// IN_MODIFY of the directory itself is utimensat(2) of its mtime alone.
	dirMask = unix.IN_MODIFY | unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_ATTRIB |
		unix.IN_DELETE_SELF | unix.IN_MOVE_SELF
	fileMask = unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_MOVE_SELF | unix.IN_DELETE_SELF | unix.IN_CLOSE_WRITE
)

// newLeases gives nil where the machine has no more inotify instances: then
// nothing is leased.
func newLeases(o *Origin) *leases {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil
	}
	mounts, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		unix.Close(fd)
		return nil
	}
	l := &leases{
		o: o, fd: fd, events: os.NewFile(uintptr(fd), "inotify"), mounts: mounts, max: maxWatches(),
		watches: make(map[int32]*watch), nodes: make(map[fsproto.Node]*leased),
		local: make(map[uint64]bool), stop: make(chan struct{}), buf: make([]byte, 64<<10),
	}
	l.mountsChanged() // what was before is no change
	l.ended.Add(2)
	go l.follow()
	go l.followMounts()
	return l
}

// maxWatches leaves half of the user's watches to others.
func maxWatches() int {
	const bound = 100_000
	b, err := os.ReadFile("/proc/sys/fs/inotify/max_user_watches")
	if err != nil {
		return 4096
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 4096
	}
	return min(n/2, bound)
}

func (l *leases) close() {
	if l == nil {
		return
	}
	l.turn.Lock()
	l.mu.Lock()
	open := l.fd >= 0
	l.fd = -1
	l.mu.Unlock()
	l.turn.Unlock()
	if !open {
		return
	}
	close(l.stop)
	l.events.Close()
	l.ended.Wait()
	l.turn.Lock()
	defer l.turn.Unlock()
	unix.Close(l.mounts)
	l.mounts = -1 // which poll(2) passes over
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range l.watches {
		l.unwatch(w)
	}
}

// follow sends recalls when nothing else is sent.
func (l *leases) follow() {
	defer l.ended.Done()
	conn, err := l.events.SyscallConn()
	if err != nil {
		return
	}
	_ = conn.Read(func(uintptr) bool {
		l.settle()
		return false // until it is closed
	})
}

// mountPoll is how long a changed mount table may go unnoticed where nothing
// is sent.
const mountPoll = 2 * time.Second

func (l *leases) followMounts() {
	defer l.ended.Done()
	tick := time.NewTicker(mountPoll)
	defer tick.Stop()
	for {
		select {
		case <-l.stop:
			return
		case <-tick.C:
			l.settle()
		}
	}
}

func (l *leases) mountsChanged() bool {
	p := []unix.PollFd{{Fd: int32(l.mounts), Events: unix.POLLPRI}}
	n, err := unix.Poll(p, 0)
	return n > 0 && err == nil && p[0].Revents&(unix.POLLPRI|unix.POLLERR) != 0
}

// Settle sends the recalls of everything that has happened so far. Whoever
// sends anything to the view's side calls it first.
func (o *Origin) Settle() {
	if o.leases != nil {
		o.leases.settle()
	}
}

func (l *leases) settle() {
	l.turn.Lock()
	defer l.turn.Unlock()
	var list []fsproto.Recall
	if l.mountsChanged() {
		list = l.everything()
	}
	for {
		n, err := unix.Read(l.fdNow(), l.buf)
		if err == unix.EINTR {
			continue
		}
		if n <= 0 {
			break
		}
		list = append(list, l.happened(l.buf[:n])...)
	}
	if len(list) == 0 {
		return
	}
	l.o.mu.Lock()
	send := l.o.recall
	l.o.mu.Unlock()
	if send != nil {
		send(list)
	}
}

func (l *leases) fdNow() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.fd
}

// event is struct inotify_event.
type event struct {
	wd   int32
	mask uint32
	name string
}

func parseEvent(b []byte) (e event, rest []byte, ok bool) {
	if len(b) < unix.SizeofInotifyEvent {
		return e, nil, false
	}
	e.wd = int32(binary.NativeEndian.Uint32(b))
	e.mask = binary.NativeEndian.Uint32(b[4:])
	n := int(binary.NativeEndian.Uint32(b[12:]))
	b = b[unix.SizeofInotifyEvent:]
	if n < 0 || n > len(b) {
		return e, nil, false
	}
	e.name, _, _ = strings.Cut(string(b[:n]), "\x00")
	return e, b[n:], true
}

// happened tells what a buffer of events takes back.
func (l *leases) happened(b []byte) (list []fsproto.Recall) {
	var e event
	for ok := true; ; {
		if e, b, ok = parseEvent(b); !ok {
			return list
		}
		if e.mask&unix.IN_Q_OVERFLOW != 0 {
			list = append(list, l.everything()...)
			continue
		}
		if e.mask&unix.IN_OPEN != 0 && !l.written(e.wd) {
			continue
		}
		l.mu.Lock()
		list = l.take(e, list)
		l.mu.Unlock()
	}
}

// take ends what an event is about; mu is held.
func (l *leases) take(e event, list []fsproto.Recall) []fsproto.Recall {
	w := l.watches[e.wd]
	if w == nil {
		return list
	}
	if e.mask&unix.IN_CLOSE_WRITE != 0 {
		w.busy = false
	}
	what := fsproto.LeaseAttr
	if e.mask&unix.IN_MODIFY != 0 {
		what |= fsproto.LeaseData // two writes may leave one mtime
	}
	for _, n := range w.nodes {
		switch {
		case e.mask&unix.IN_IGNORED != 0:
			list = l.all(n, list)
			delete(l.nodes, n.id)
			continue
		case e.name != "" && e.mask&(unix.IN_ATTRIB|unix.IN_MODIFY) != 0:
			continue // of an entry, which has a watch of its own where it matters
		case e.name != "" && n.names[e.name]:
			delete(n.names, e.name)
			l.names--
			list = append(list, fsproto.Recall{Parent: n.id, Name: e.name})
		}
		if n.attr && e.mask&unix.IN_CLOSE_WRITE == 0 {
			n.attr = false
			list = append(list, fsproto.Recall{Node: n.id, What: what})
		}
	}
	if e.mask&unix.IN_IGNORED != 0 {
		l.unwatch(w)
	}
	return list
}

// all ends everything promised of a node.
func (l *leases) all(n *leased, list []fsproto.Recall) []fsproto.Recall {
	if n.attr {
		list = append(list, fsproto.Recall{Node: n.id, What: fsproto.LeaseAttr | fsproto.LeaseData})
	}
	for name := range n.names {
		list = append(list, fsproto.Recall{Parent: n.id, Name: name})
	}
	l.names -= len(n.names)
	n.attr, n.names = false, nil
	return list
}

func (l *leases) everything() (list []fsproto.Recall) {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.local)
	for _, n := range l.nodes {
		list = l.all(n, list)
	}
	return list
}

// written looks at a file that someone opened: an event that is to end its
// lease, unless they only read.
func (l *leases) written(wd int32) bool {
	id := l.promised(wd)
	if id == 0 {
		return false
	}
	n, err := l.o.hold(id)
	if err != nil {
		return true
	}
	defer l.o.drop(n)
	var st unix.Statx_t
	if stat(n.fd, "", &st) != nil {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	w := l.watches[wd]
	if w == nil {
		return false
	}
	if w.restless() && !l.keep(w, n.fd) {
		_, _ = unix.InotifyAddWatch(l.fd, fdPath(n.fd), fileMask) // opens are of no interest now
		return true
	}
	w.busy = !l.probe(w, n.fd, &st)
	return w.busy
}

// keep opens a restless file for good; mu is held.
func (l *leases) keep(w *watch, fd int) bool {
	if w.file != nil {
		return true
	}
	if l.kept >= maxKept {
		return false
	}
	file, err := unix.Open(fdPath(fd), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	w.file = os.NewFile(uintptr(file), "kept")
	l.kept++
	return true
}

// unwatch forgets a watch that has ended; mu is held.
func (l *leases) unwatch(w *watch) {
	delete(l.watches, w.wd)
	l.letGo(w)
}

func (l *leases) letGo(w *watch) {
	if w.file != nil {
		w.file.Close()
		w.file = nil
		l.kept--
	}
}

// promised finds a node of a watch whose attributes are leased, 0 if none.
func (l *leases) promised(wd int32) fsproto.Node {
	l.mu.Lock()
	defer l.mu.Unlock()
	if w := l.watches[wd]; w != nil {
		for id, n := range w.nodes {
			if n.attr {
				return id
			}
		}
	}
	return 0
}

// probe says whether a regular file has neither writer nor writable map, and
// watches who opens it from then on. mu is held. The watch knows nothing of
// the probe's own open, or it would set off the next one; a writer who came
// before the watch was sharpened is found by the lease.
func (l *leases) probe(w *watch, fd int, st *unix.Statx_t) bool {
	path := fdPath(fd)
	if as := l.o.as; st.Uid != as.uid && !as.privileged {
		// Another user's file may not be probed (F_SETLEASE needs CAP_LEASE).
		// Where only its owner may write it, that nobody does so through a
		// map is the guess that remains.
		_, err := unix.InotifyAddWatch(l.fd, path, fileMask)
		return err == nil && st.Mode&0o022 == 0
	}
	if w.file != nil {
		_, err := unix.InotifyAddWatch(l.fd, path, fileMask|unix.IN_OPEN)
		return err == nil && unwritten(int(w.file.Fd()))
	}
	if _, err := unix.InotifyAddWatch(l.fd, path, fileMask); err != nil {
		return false
	}
	file, openErr := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if openErr != nil {
		return false
	}
	defer unix.Close(file)
	_, err := unix.InotifyAddWatch(l.fd, path, fileMask|unix.IN_OPEN)
	return err == nil && unwritten(file)
}

// unwritten says whether nobody has a file open for writing.
func unwritten(fd int) bool {
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_RDLCK); err != nil {
		return false
	}
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_UNLCK)
	return err == nil
}

// localTypes are file systems that change by this kernel's calls alone.
var localTypes = map[int64]bool{
	unix.EXT4_SUPER_MAGIC: true, unix.XFS_SUPER_MAGIC: true, unix.BTRFS_SUPER_MAGIC: true,
	unix.TMPFS_MAGIC: true, unix.RAMFS_MAGIC: true, unix.F2FS_SUPER_MAGIC: true,
	unix.MSDOS_SUPER_MAGIC: true, unix.ISOFS_SUPER_MAGIC: true, unix.SQUASHFS_MAGIC: true,
}

// at finds or makes what is promised of a node; nil where nothing can be. mu
// is held.
func (l *leases) at(n *node) *leased {
	if p := l.nodes[n.id]; p != nil || l.fd < 0 {
		return p
	}
	local, known := l.local[n.key.mnt]
	if !known {
		var st unix.Statfs_t
		local = unix.Fstatfs(n.fd, &st) == nil && localTypes[st.Type]
		l.local[n.key.mnt] = local
	}
	if !local || len(l.watches) >= l.max {
		return nil
	}
	mask := uint32(fileMask)
	if n.isDir() {
		mask = dirMask
	}
	// Another node's watch of the same inode keeps what it asked for.
	wd, err := unix.InotifyAddWatch(l.fd, fdPath(n.fd), mask|unix.IN_MASK_ADD)
	if err != nil {
		return nil
	}
	w := l.watches[int32(wd)]
	if w == nil {
		w = &watch{wd: int32(wd), nodes: make(map[fsproto.Node]*leased)}
		l.watches[w.wd] = w
	}
	p := &leased{id: n.id, watch: w}
	w.nodes[n.id], l.nodes[n.id] = p, p
	return p
}

// maxNames bounds the promised names, existing ones and others.
const maxNames = 1 << 20

// name promises what a name in a directory leads to, to a caller who looks
// only then.
func (l *leases) name(dir *node, name string) bool {
	if l == nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.at(dir)
	switch {
	case p == nil:
		return false
	case p.names[name]:
		return true
	case l.names >= maxNames:
		return false
	case p.names == nil:
		p.names = make(map[string]bool)
	}
	p.names[name] = true
	l.names++
	return true
}

// attr promises a node's attributes. Where fresh is set the caller must look
// at them once more: it promised nothing before.
func (l *leases) attr(n *node, st *unix.Statx_t) (ok, fresh bool) {
	if l == nil {
		return false, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.at(n)
	switch {
	case p == nil || p.watch.busy || p.watch.resting():
		return false, false
	case p.attr:
		return true, false
	case n.fmt == unix.S_IFREG && !l.probe(p.watch, n.fd, st):
		p.watch.busy = true
		return false, false
	}
	p.attr = true
	return true, true
}

// forget ends the leases of a node that the view has forgotten.
func (l *leases) forget(id fsproto.Node) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.nodes[id]
	if p == nil {
		return
	}
	l.names -= len(p.names)
	delete(l.nodes, id)
	delete(p.watch.nodes, id)
	if len(p.watch.nodes) == 0 {
		l.unwatch(p.watch)
		_, _ = unix.InotifyRmWatch(l.fd, uint32(p.watch.wd))
	}
}

// lease makes st, which it may fill anew, true until recalled, where that can
// be. n is held.
func (o *Origin) lease(n *node, st *unix.Statx_t) (fsproto.Lease, error) {
	ok, fresh := o.leases.attr(n, st)
	if !ok {
		return 0, nil
	}
	if fresh {
		if err := stat(n.fd, "", st); err != nil {
			return 0, err
		}
	}
	return fsproto.LeaseAttr, nil
}
