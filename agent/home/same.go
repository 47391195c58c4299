package home

import (
	"sync"

	"golang.org/x/sys/unix"
)

// kcmpFile is KCMP_FILE of kcmp(2).
const kcmpFile = 0

// descriptions numbers the open file descriptions of a session's jobs: one
// number for each, whichever agent passes it. Only those of files are
// compared; a pipe's would have to be held open for that, and each job has
// its own channel for it anyway.
type descriptions struct {
	mu    sync.Mutex
	last  uint64
	known map[place][]*description
}

// place is what two descriptors of one description have in common.
type place struct{ dev, ino uint64 }

type description struct {
	id    uint64
	fd    int // our own
	place place
	users int
	at    int64 // where the session has it from, or left it; -1: no more
}

// fresh gives a number for a description that is not shared.
func (d *descriptions) fresh() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.last++
	return d.last
}

// use finds or enters the description that fd refers to. Each use needs a
// drop.
func (d *descriptions) use(fd int) (*description, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	at := place{st.Dev, st.Ino}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, known := range d.known[at] {
		if sameDescription(known.fd, fd) {
			known.users++
			return known, nil
		}
	}
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, err
	}
	d.last++
	fresh := &description{id: d.last, fd: own, place: at, users: 1, at: -1}
	if pos, err := unix.Seek(own, 0, unix.SEEK_CUR); err == nil {
		fresh.at = pos
	}
	if d.known == nil {
		d.known = make(map[place][]*description)
	}
	d.known[at] = append(d.known[at], fresh)
	return fresh, nil
}

func (d *descriptions) drop(x *description) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if x.users--; x.users > 0 {
		return
	}
	unix.Close(x.fd)
	var rest []*description
	for _, known := range d.known[x.place] {
		if known != x {
			rest = append(rest, known)
		}
	}
	if d.known[x.place] = rest; rest == nil {
		delete(d.known, x.place)
	}
}

// left brings a description to the position that a command left it at. Where
// it may be written the far position counts only if nobody has moved ours
// meanwhile: the commands' own writes move it by write(2), and so do the writes
// of local processes, which know nothing of the far position. What that leaves
// out is a command that both writes and seeks, or reads, a description.
func (d *descriptions) left(x *description, pos int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	flags, err := unix.FcntlInt(uintptr(x.fd), unix.F_GETFL, 0)
	if err != nil {
		return
	}
	if flags&unix.O_ACCMODE != unix.O_RDONLY {
		if now, err := unix.Seek(x.fd, 0, unix.SEEK_CUR); err != nil || now != x.at {
			x.at = -1
			return
		}
	}
	if _, err := unix.Seek(x.fd, pos, unix.SEEK_SET); err == nil {
		x.at = pos
	}
}

// sameDescription says whether two descriptors of this process refer to one
// open file description. Where kcmp(2) is not to be had they are different.
func sameDescription(a, b int) bool {
	self := uintptr(unix.Getpid())
	r, _, errno := unix.Syscall6(unix.SYS_KCMP, self, self, kcmpFile, uintptr(a), uintptr(b), 0)
	return errno == 0 && r == 0
}
