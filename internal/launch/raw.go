package launch

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What this file and child.go hold runs in ghosts and in jobs before execve:
// processes that share init's memory but are none of the Go runtime's
// threads. Such code is nosplit, calls nothing but itself and raw system
// calls, allocates nothing, stores no Go pointers, and works on memory that
// init prepared outside the heap. Every signal is blocked in it.

// cloneArgs is struct clone_args of clone3(2).
type cloneArgs struct {
	flags      uint64
	pidfd      uint64
	childTID   uint64
	parentTID  uint64
	exitSignal uint64
	stack      uint64
	stackSize  uint64
	tls        uint64
	setTID     uint64
	setTIDSize uint64
	cgroup     uint64
}

//go:noescape
func clone(args *cloneArgs, entry uintptr, block unsafe.Pointer) (pid int)

// Where ghosts and jobs begin: the code of these functions as Go itself would
// call it through a variable.
var ghostFunc, jobFunc = ghostMain, jobMain

func ghostEntry() uintptr { return **(**uintptr)(unsafe.Pointer(&ghostFunc)) }
func jobEntry() uintptr   { return **(**uintptr)(unsafe.Pointer(&jobFunc)) }

// sys is a system call that gives -errno, as the kernel does.
//
//go:nosplit
//go:norace
//go:nocheckptr
func sys(nr, a, b, c, d, e uintptr) int {
	r, _, errno := syscall.RawSyscall6(nr, a, b, c, d, e, 0)
	if errno != 0 {
		return -int(errno)
	}
	return int(r)
}

const allSignals = ^uint64(0)

// cloneBlocked clones from one of init's own threads, with all signals
// blocked: the child must never run a handler of the Go runtime.
//
//go:nosplit
//go:norace
//go:nocheckptr
func cloneBlocked(args *cloneArgs, entry uintptr, block unsafe.Pointer, masks *[2]uint64) int {
	masks[0] = allSignals
	sys(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&masks[0])), uintptr(unsafe.Pointer(&masks[1])), 8, 0)
	pid := clone(args, entry, block)
	sys(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&masks[1])), 0, 8, 0)
	return pid
}

// Commands of ghosts.
const (
	opNone       = iota
	opClone      // what ghostBlock.clone says
	opForeground // arg 0: terminal, 1: *process group
	opTerminal   // arg 0: terminal to be the controlling one
	opExit
)

// wakeSignal tells a ghost to look for a command. As it means nothing
// without one, anybody may send it.
const wakeSignal = 64

// report is what a ghost tells of a child by writing it to init's pipe, in
// one piece.
type report struct {
	ghost, pid, status, _ int32
	usage                 syscall.Rusage
}

// ghostBlock is a ghost's memory besides its stack.
type ghostBlock struct {
	clone   [3]uintptr // *cloneArgs, entry and block of what the ghost is to clone
	ret     int        // what the command's system call gave
	born    bool
	tid     int32  // its number while it lives (CLONE_CHILD_CLEARTID)
	ready   uint32 // futex: 1 when born
	seq     uint32 // of the last command given; written by init
	done    uint32 // futex: of the last command done
	op      uintptr
	arg     [2]uintptr
	setsid  bool
	tty     int // to be the controlling terminal from birth on; -1: none
	pipe    int // where reports go
	name    [16]byte
	pid     int32
	forever uint64 // all signals
	args    cloneArgs
	setTID  int32
	info    [128]byte
	rep     report
}

//go:nosplit
//go:norace
//go:nocheckptr
func futexWake(word *uint32) {
	sys(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), 1, 1<<30, 0, 0)
}

// ghostMain is a ghost's life. It is called by assembly, never by Go, and
// returns to have it clone.
//
//go:nosplit
//go:norace
//go:nocheckptr
func ghostMain(b *ghostBlock) {
	if b.born {
		ghostDone(b)
	} else {
		ghostBirth(b)
	}
	for {
		if b.seq != b.done {
			if b.op == opClone {
				return
			}
			ghostCommand(b)
			ghostDone(b)
		}
		ghostReap(b)
		sys(unix.SYS_RT_SIGTIMEDWAIT, uintptr(unsafe.Pointer(&b.forever)), uintptr(unsafe.Pointer(&b.info)), 0, 8, 0)
	}
}

//go:nosplit
//go:norace
//go:nocheckptr
func ghostDone(b *ghostBlock) {
	b.done = b.seq
	futexWake(&b.done)
}

//go:nosplit
//go:norace
//go:nocheckptr
func ghostBirth(b *ghostBlock) {
	b.born = true
	if b.setsid {
		sys(unix.SYS_SETSID, 0, 0, 0, 0, 0)
		if b.tty >= 0 {
			sys(unix.SYS_IOCTL, uintptr(b.tty), unix.TIOCSCTTY, 0, 0, 0)
		}
	} else {
		// Any ghost may have to lead a group; in one of its own it also
		// keeps its children's groups from being orphaned.
		sys(unix.SYS_SETPGID, 0, 0, 0, 0, 0)
	}
	sys(unix.SYS_PRCTL, unix.PR_SET_NAME, uintptr(unsafe.Pointer(&b.name)), 0, 0, 0)
	b.pid = int32(sys(unix.SYS_GETPID, 0, 0, 0, 0, 0))
	b.ready = 1
	futexWake(&b.ready)
}

//go:nosplit
//go:norace
//go:nocheckptr
func ghostCommand(b *ghostBlock) {
	switch b.op {
	case opForeground:
		b.ret = sys(unix.SYS_IOCTL, b.arg[0], unix.TIOCSPGRP, b.arg[1], 0, 0)
	case opTerminal:
		b.ret = sys(unix.SYS_IOCTL, b.arg[0], unix.TIOCSCTTY, 0, 0, 0)
	case opExit:
		sys(unix.SYS_EXIT_GROUP, 0, 0, 0, 0, 0)
	}
}

// ghostReap reports what became of the ghost's children.
//
//go:nosplit
//go:norace
//go:nocheckptr
func ghostReap(b *ghostBlock) {
	for {
		pid := sys(unix.SYS_WAIT4, ^uintptr(0), uintptr(unsafe.Pointer(&b.rep.status)),
			unix.WNOHANG|unix.WUNTRACED|unix.WCONTINUED, uintptr(unsafe.Pointer(&b.rep.usage)), 0)
		if pid <= 0 {
			return
		}
		b.rep.ghost, b.rep.pid = b.pid, int32(pid)
		sys(unix.SYS_WRITE, uintptr(b.pipe), uintptr(unsafe.Pointer(&b.rep)), unsafe.Sizeof(b.rep), 0, 0)
	}
}
