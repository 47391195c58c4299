package launch

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Steps at which a launch fails, in order.
const (
	stepNone = iota
	stepView
	stepIDs
	stepCwd
	stepOpen // jobBlock.at is the descriptor's number
	stepDup
	stepExec
)

// keptCaps is what uid 0 keeps in the inner user namespace: CHOWN,
// DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, KILL, SETGID, SETUID,
// SETPCAP, SYS_CHROOT, MKNOD, SETFCAP.
const keptCaps = 1<<0 | 1<<1 | 1<<2 | 1<<3 | 1<<4 | 1<<5 | 1<<6 | 1<<7 | 1<<8 |
	1<<unix.CAP_SYS_CHROOT | 1<<unix.CAP_MKNOD | 1<<unix.CAP_SETFCAP

// childFD is one descriptor as the job's child makes it.
type childFD struct {
	src       int // in init's table; -1: path is opened
	same      int // index of an earlier entry with the same description, or -1
	dst       int
	flags     uintptr
	path, alt uintptr // C strings; alt may be 0
	ino       uint64
	tmp       int // where it lies until dup3
}

// childLimit is one resource limit.
type childLimit struct {
	resource uintptr
	cur, max uint64
}

// jobBlock is all that the job's child reads, outside the heap, with its
// stack. Pointers in it point into the same mapping.
type jobBlock struct {
	tid    uint32 // futex: 0 when the child has left this memory, by execve or exit
	step   int32
	errno  int32
	at     int32
	lost   bool // the group could not be joined
	args   cloneArgs
	setTID int32

	setsid      bool
	tty         int // controlling terminal to take, or for foreground; -1: none
	foreground  bool
	pgrp        int32
	group       int32
	cgroup      int // descriptors of namespaces; cgroup -1: none
	view, user  int
	setIDs      bool
	setGroups   bool
	uid, gid    uintptr
	groups      uintptr
	ngroups     uintptr
	capHeader   [2]uint32
	capData     [6]uint32
	lastCap     uintptr
	umask       uintptr
	nice        uintptr
	personality uintptr
	cwd, cwdAlt uintptr
	cwdIno      uint64
	top         int // above all targets
	fds         *childFD
	nfds        int
	limits      *childLimit
	nlimits     int
	ignored     uint64
	mask        uint64
	action      [4]uint64 // struct sigaction of the kernel
	paths       *uintptr
	npaths      int
	argv, envp  uintptr
	stat        [144]byte
}

//go:nosplit
//go:norace
//go:nocheckptr
func (b *jobBlock) fail(step, at, errno int) {
	b.step, b.at, b.errno = int32(step), int32(at), int32(-errno)
	for {
		sys(unix.SYS_EXIT_GROUP, 127, 0, 0, 0, 0)
	}
}

// jobMain is a job from its birth to execve; the order is what the kernel's
// checks ask for.
//
//go:nosplit
//go:norace
//go:nocheckptr
func jobMain(b *jobBlock) {
	jobGroup(b)
	jobEnter(b)
	jobDrop(b)
	sys(unix.SYS_UMASK, b.umask, 0, 0, 0, 0)
	jobCwd(b)
	jobFiles(b)
	jobAttributes(b)
	jobExec(b)
}

//go:nosplit
//go:norace
//go:nocheckptr
func jobGroup(b *jobBlock) {
	if b.setsid {
		sys(unix.SYS_SETSID, 0, 0, 0, 0, 0)
		if b.tty >= 0 {
			sys(unix.SYS_IOCTL, uintptr(b.tty), unix.TIOCSCTTY, 0, 0, 0)
		}
	} else if sys(unix.SYS_SETPGID, 0, uintptr(b.pgrp), 0, 0, 0) < 0 {
		b.lost = true
		sys(unix.SYS_SETPGID, 0, 0, 0, 0, 0)
	}
	if b.foreground && b.tty >= 0 {
		b.group = int32(sys(unix.SYS_GETPGID, 0, 0, 0, 0, 0))
		sys(unix.SYS_IOCTL, uintptr(b.tty), unix.TIOCSPGRP, uintptr(unsafe.Pointer(&b.group)), 0, 0)
	}
}

// jobEnter enters the view, then the inner user namespace: the other order is
// EPERM, as the view belongs to the outer one.
//
//go:nosplit
//go:norace
//go:nocheckptr
func jobEnter(b *jobBlock) {
	if b.cgroup >= 0 {
		sys(unix.SYS_SETNS, uintptr(b.cgroup), unix.CLONE_NEWCGROUP, 0, 0, 0)
	}
	if r := sys(unix.SYS_SETNS, uintptr(b.view), unix.CLONE_NEWNS, 0, 0, 0); r < 0 {
		b.fail(stepView, 0, r)
	}
	if r := sys(unix.SYS_SETNS, uintptr(b.user), unix.CLONE_NEWUSER, 0, 0, 0); r < 0 {
		b.fail(stepView, 1, r)
	}
}

// jobDrop gives up what the job must not have, before any path is opened.
//
//go:nosplit
//go:norace
//go:nocheckptr
func jobDrop(b *jobBlock) {
	r := 0
	if b.setGroups {
		r = sys(unix.SYS_SETGROUPS, b.ngroups, b.groups, 0, 0, 0)
	}
	if b.setIDs && r >= 0 {
		if r = sys(unix.SYS_SETRESGID, b.gid, b.gid, b.gid, 0, 0); r >= 0 {
			r = sys(unix.SYS_SETRESUID, b.uid, b.uid, b.uid, 0, 0)
		}
	}
	if r < 0 {
		b.fail(stepIDs, 0, r)
	}
	if b.uid == 0 {
		for c := uintptr(0); c <= b.lastCap; c++ {
			if keptCaps>>c&1 == 0 {
				sys(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0, 0, 0)
			}
		}
	}
	if r = sys(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&b.capHeader)), uintptr(unsafe.Pointer(&b.capData)), 0, 0, 0); r < 0 {
		b.fail(stepIDs, 1, r)
	}
	sys(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
}

// open opens path, or alt where path has another inode number than ino.
//
//go:nosplit
//go:norace
//go:nocheckptr
func (b *jobBlock) open(path, alt, flags uintptr, ino uint64) int {
	at := unix.AT_FDCWD
	fd := sys(unix.SYS_OPENAT, uintptr(at), path, flags|unix.O_CLOEXEC|unix.O_NOCTTY, 0, 0)
	if fd >= 0 && (ino == 0 || b.inode(fd) == ino) || alt == 0 {
		return fd
	}
	if fd >= 0 {
		sys(unix.SYS_CLOSE, uintptr(fd), 0, 0, 0, 0)
	}
	return sys(unix.SYS_OPENAT, uintptr(at), alt, flags|unix.O_CLOEXEC|unix.O_NOCTTY, 0, 0)
}

//go:nosplit
//go:norace
//go:nocheckptr
func (b *jobBlock) inode(fd int) uint64 {
	if sys(unix.SYS_FSTAT, uintptr(fd), uintptr(unsafe.Pointer(&b.stat)), 0, 0, 0) < 0 {
		return 0
	}
	return *(*uint64)(unsafe.Pointer(&b.stat[8])) // st_ino
}

//go:nosplit
//go:norace
//go:nocheckptr
func jobCwd(b *jobBlock) {
	fd := b.open(b.cwd, b.cwdAlt, unix.O_PATH|unix.O_DIRECTORY, b.cwdIno)
	if fd < 0 {
		b.fail(stepCwd, 0, fd)
	}
	if r := sys(unix.SYS_FCHDIR, uintptr(fd), 0, 0, 0, 0); r < 0 {
		b.fail(stepCwd, 0, r)
	}
	sys(unix.SYS_CLOSE, uintptr(fd), 0, 0, 0, 0)
}

//go:nosplit
//go:norace
//go:nocheckptr
func (b *jobBlock) fd(i int) *childFD {
	return (*childFD)(unsafe.Add(unsafe.Pointer(b.fds), uintptr(i)*unsafe.Sizeof(childFD{})))
}

// jobFiles makes the job's descriptors: first all sources above all targets,
// then the targets; everything else is closed by execve.
//
//go:nosplit
//go:norace
//go:nocheckptr
func jobFiles(b *jobBlock) {
	for i := 0; i < b.nfds; i++ {
		f := b.fd(i)
		if f.same >= 0 {
			f.tmp = b.fd(f.same).tmp
			continue
		}
		fd := f.src
		if fd < 0 {
			if fd = b.open(f.path, f.alt, f.flags, f.ino); fd < 0 {
				b.fail(stepOpen, f.dst, fd)
			}
		}
		if f.tmp = fd; fd < b.top {
			f.tmp = sys(unix.SYS_FCNTL, uintptr(fd), unix.F_DUPFD_CLOEXEC, uintptr(b.top), 0, 0)
		}
		if f.tmp < 0 {
			b.fail(stepDup, f.dst, f.tmp)
		}
	}
	sys(unix.SYS_CLOSE_RANGE, 0, ^uintptr(0)>>32, unix.CLOSE_RANGE_CLOEXEC, 0, 0)
	for i := 0; i < b.nfds; i++ {
		f := b.fd(i)
		if r := sys(unix.SYS_DUP3, uintptr(f.tmp), uintptr(f.dst), 0, 0, 0); r < 0 {
			b.fail(stepDup, f.dst, r)
		}
	}
}

// jobAttributes sets what cannot fail: init has bounded the limits.
//
//go:nosplit
//go:norace
//go:nocheckptr
func jobAttributes(b *jobBlock) {
	for i := 0; i < b.nlimits; i++ {
		l := (*childLimit)(unsafe.Add(unsafe.Pointer(b.limits), uintptr(i)*unsafe.Sizeof(childLimit{})))
		sys(unix.SYS_PRLIMIT64, 0, l.resource, uintptr(unsafe.Pointer(&l.cur)), 0, 0)
	}
	sys(unix.SYS_SETPRIORITY, unix.PRIO_PROCESS, 0, b.nice, 0, 0)
	if b.personality != 0 {
		sys(unix.SYS_PERSONALITY, b.personality, 0, 0, 0, 0)
	}
	b.action[0] = 1 // SIG_IGN
	for s := uintptr(1); s <= 64; s++ {
		if b.ignored>>(s-1)&1 != 0 {
			sys(unix.SYS_RT_SIGACTION, s, uintptr(unsafe.Pointer(&b.action)), 0, 8, 0)
		}
	}
	sys(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&b.mask)), 0, 8, 0)
}

// jobExec tries the programs as execvpe(3) does.
//
//go:nosplit
//go:norace
//go:nocheckptr
func jobExec(b *jobBlock) {
	errno, denied := -int(unix.ENOENT), false
	for i := 0; i < b.npaths; i++ {
		path := *(*uintptr)(unsafe.Add(unsafe.Pointer(b.paths), uintptr(i)*unsafe.Sizeof(uintptr(0))))
		errno = sys(unix.SYS_EXECVE, path, b.argv, b.envp, 0, 0)
		switch -errno {
		case int(unix.EACCES):
			denied = true
		case int(unix.ENOENT), int(unix.ENOTDIR), int(unix.ESTALE), int(unix.ENODEV), int(unix.ETIMEDOUT):
		default:
			b.fail(stepExec, i, errno)
		}
	}
	if denied {
		errno = -int(unix.EACCES)
	}
	b.fail(stepExec, 0, errno)
}
