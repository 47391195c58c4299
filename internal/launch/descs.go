package launch

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"rexec/fsview/mounts"
	"rexec/rer"
)

// desc is an open file description that jobs share. Init holds it and not
// the session: a process that serves a file and holds it open can hang for
// ever when it is killed.
type desc struct {
	id    uint64
	fd    int
	err   error
	users int
	ready chan struct{} // closed when fd or err is there
}

// useDesc gives the description id, which open makes if nobody has it yet.
func (s *server) useDesc(id uint64, open func() (int, error)) (*desc, error) {
	s.descMu.Lock()
	d := s.descs[id]
	if d == nil || id == 0 {
		d = &desc{id: id, ready: make(chan struct{}), users: 1}
		if id != 0 {
			s.descs[id] = d
		}
		s.descMu.Unlock()
		d.fd, d.err = open()
		close(d.ready)
	} else {
		d.users++
		s.descMu.Unlock()
		<-d.ready
	}
	if d.err != nil {
		s.releaseDesc(d)
		return nil, d.err
	}
	return d, nil
}

func (s *server) releaseDesc(d *desc) {
	s.descMu.Lock()
	d.users--
	last := d.users == 0
	if last && s.descs[d.id] == d {
		delete(s.descs, d.id)
	}
	s.descMu.Unlock()
	if last && d.err == nil {
		unix.Close(d.fd) // FLUSH: may wait for the session
	}
}

// dropDesc has the next job with that id open it anew.
func (s *server) dropDesc(id uint64) {
	s.descMu.Lock()
	delete(s.descs, id)
	s.descMu.Unlock()
}

// fdError says which descriptor could not be had.
type fdError struct {
	num int32
	err error
}

func (e *fdError) Error() string { return "open " + strconv.Itoa(int(e.num)) + ": " + e.err.Error() }
func (e *fdError) Unwrap() error { return e.err }

// gather makes the job's descriptions, but for those that the child opens
// itself because the job's own rights and place decide.
func (s *server) gather(j *job, m *message, view int) ([]int, error) {
	sources := make([]int, len(j.spec.FDs))
	seen := make(map[uint64]*desc)
	for i, f := range j.spec.FDs {
		sources[i] = -1
		if f.Source == SourceOpen && (f.Desc == 0 || f.Flags&(unix.O_PATH|unix.O_DIRECTORY) != 0) {
			continue
		}
		d := seen[f.Desc]
		if d == nil || f.Desc == 0 {
			var err error
			if d, err = s.useDesc(f.Desc, func() (int, error) { return s.open(j, &f, m, view) }); err != nil {
				return nil, &fdError{f.Num, err}
			}
			seen[f.Desc] = d
			j.descs = append(j.descs, d)
		}
		sources[i] = d.fd
	}
	return sources, nil
}

// open opens what an FD is made of.
func (s *server) open(j *job, f *FD, m *message, view int) (int, error) {
	switch f.Source {
	case SourceFile:
		if f.File < 0 || f.File >= len(m.fds) {
			return -1, unix.EBADF
		}
		return unix.FcntlInt(uintptr(m.fds[f.File]), unix.F_DUPFD_CLOEXEC, 0)
	case SourceTerminal:
		return s.openTerminal(j.spec.Terminal, f.Flags)
	case SourceOpen:
		fd, err := -1, error(nil)
		lockedThread(func() { fd, err = openInView(view, f, j.spec.UID) })
		return fd, err
	}
	return -1, unix.EINVAL
}

// openInView opens a path in a view, with a job's rights. It spoils the
// thread.
func openInView(view int, f *FD, uid uint32) (int, error) {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return -1, err
	}
	if err := unix.Setns(view, unix.CLONE_NEWNS); err != nil {
		return -1, err
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if uid == 0 {
		caps[0].Effective, caps[0].Permitted = keptCaps, keptCaps
	}
	if err := unix.Capset(&header, &caps[0]); err != nil {
		return -1, err
	}
	fd, err := openInode(f)
	if err != nil || f.Offset == 0 {
		return fd, err
	}
	if _, err := unix.Seek(fd, f.Offset, unix.SEEK_SET); err != nil && !errors.Is(err, unix.ESPIPE) {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// makesFiles are flags of open(2) that are no part of a description.
const makesFiles = unix.O_CREAT | unix.O_EXCL | unix.O_TRUNC | unix.O_TMPFILE&^unix.O_DIRECTORY

func openInode(f *FD) (int, error) {
	flags := f.Flags&^makesFiles | unix.O_CLOEXEC | unix.O_NOCTTY
	fd, err := openRetry(string(f.Path), flags|f.Mark)
	if len(f.Else) == 0 {
		return fd, err
	}
	if err == nil {
		var st unix.Stat_t
		if f.Ino == 0 || unix.Fstat(fd, &st) == nil && st.Ino == f.Ino {
			return unmark(fd, f)
		}
		unix.Close(fd)
	}
	return openRetry(string(f.Else), flags)
}

func unmark(fd int, f *FD) (int, error) {
	if f.Mark == 0 {
		return fd, nil
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, f.Flags); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func openRetry(path string, flags int) (int, error) {
	for {
		fd, err := unix.Open(path, flags, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// positions reads the file positions that home wants to know. lseek would
// wait for a read that the job is in; fdinfo does not.
func (j *job) positions() []rer.Position {
	var list []rer.Position
	for _, f := range j.spec.FDs {
		if !f.Keep || f.Desc == 0 {
			continue
		}
		for _, d := range j.descs {
			if d.id != f.Desc {
				continue
			}
			if pos, ok := position(d.fd); ok {
				list = append(list, rer.Position{Desc: f.Desc, Offset: pos})
			}
			break
		}
	}
	return list
}

func position(fd int) (int64, bool) {
	b, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(fd))
	if err != nil {
		return 0, false
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	pos, err := strconv.ParseInt(string(bytes.TrimSpace(bytes.TrimPrefix(line, []byte("pos:")))), 10, 64)
	return pos, err == nil
}

// terminal is a pty of the session. Init holds a slave, so that the master
// sees no hang-up between jobs, and no master, so that the session's end of it
// is the terminal's.
type terminal struct {
	slave int
	path  string
}

// terminalRequest is the body of a kindTerminal message.
type terminalRequest struct {
	Key        TerminalKey
	Termios    []byte
	Rows, Cols uint16
}

func (s *server) makeTerminal(m *message) (answer, int, error) {
	var r terminalRequest
	if err := m.decode(&r); err != nil {
		return answer{}, -1, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.terminals[r.Key]; t != nil {
		if !t.hungUp() {
			return answer{}, -1, unix.EEXIST
		}
		s.dropTerminal(r.Key)
	}
	for key, t := range s.terminals {
		if t.hungUp() {
			s.dropTerminal(key)
		}
	}
	master, t, err := newTerminal(&r)
	if err != nil {
		return answer{}, -1, err
	}
	s.terminals[r.Key] = t
	if g := s.leaders[r.Key.Sid]; g != nil && g.alive() {
		// Late: only what this ghost clones from now on has it, so its idle
		// children make room for others.
		g.command(opTerminal, uintptr(t.slave), 0)
		s.endMembers(g)
	}
	return answer{}, master, nil
}

func (s *server) dropTerminal(key TerminalKey) {
	unix.Close(s.terminals[key].slave)
	delete(s.terminals, key)
}

func (t *terminal) hungUp() bool {
	p := []unix.PollFd{{Fd: int32(t.slave)}}
	n, _ := unix.Poll(p, 0)
	return n == 1 && p[0].Revents&unix.POLLHUP != 0
}

func newTerminal(r *terminalRequest) (int, *terminal, error) {
	master, err := unix.Open(mounts.Ptmx, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, nil, err
	}
	t, err := slaveOf(master)
	if err == nil {
		err = t.settings(r)
	}
	if err != nil {
		unix.Close(master)
		return -1, nil, err
	}
	return master, t, nil
}

func slaveOf(master int) (*terminal, error) {
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return nil, err
	}
	n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		return nil, err
	}
	t := &terminal{path: mounts.Pts + strconv.Itoa(n)}
	t.slave, err = unix.Open(t.path, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	return t, err
}

// settings gives the terminal home's settings: the kernel's struct termios is
// four uint32, the line discipline and 19 control bytes, 36 bytes in all.
func (t *terminal) settings(r *terminalRequest) error {
	if len(r.Termios) == 36 {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(t.slave), unix.TCSETS, uintptr(unsafe.Pointer(&r.Termios[0])))
		if errno != 0 {
			return errno
		}
	}
	return unix.IoctlSetWinsize(t.slave, unix.TIOCSWINSZ, &unix.Winsize{Row: r.Rows, Col: r.Cols})
}

func (s *server) openTerminal(key TerminalKey, flags int) (int, error) {
	s.mu.Lock()
	t := s.terminals[key]
	s.mu.Unlock()
	if t == nil {
		return -1, unix.ENXIO
	}
	return openRetry(t.path, flags&^makesFiles|unix.O_NOCTTY|unix.O_CLOEXEC)
}

// foregroundRequest is the body of a kindForeground message.
type foregroundRequest struct {
	Key  TerminalKey
	Pgrp int32
}

func (s *server) setForeground(m *message) (answer, int, error) {
	var r foregroundRequest
	if err := m.decode(&r); err != nil {
		return answer{}, -1, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t, g := s.terminals[r.Key], s.leaders[r.Key.Sid]
	if t == nil || g == nil || !g.alive() {
		return answer{}, -1, unix.ESRCH
	}
	a, err := newArena(4)
	if err != nil {
		return answer{}, -1, err
	}
	defer a.free()
	pgrp := (*int32)(a.alloc(4))
	if *pgrp = r.Pgrp; r.Pgrp == r.Key.Sid {
		*pgrp = g.pid
	}
	if ret := g.command(opForeground, uintptr(t.slave), uintptr(unsafe.Pointer(pgrp))); ret < 0 {
		return answer{}, -1, unix.Errno(-ret)
	}
	return answer{}, -1, nil
}
