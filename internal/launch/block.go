package launch

import (
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	ghostStack = 32 << 10
	jobStack   = 64 << 10
)

// arena is memory outside the heap that is filled once.
type arena struct {
	mem  []byte
	used uintptr
}

func newArena(size uintptr) (*arena, error) {
	size = (size + 4095) &^ 4095
	mem, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	return &arena{mem: mem}, err
}

func (a *arena) free() {
	if a.mem != nil {
		_ = unix.Munmap(a.mem)
		a.mem = nil
	}
}

// alloc gives n zero bytes, aligned to 16.
func (a *arena) alloc(n uintptr) unsafe.Pointer {
	p := unsafe.Pointer(&a.mem[a.used])
	a.used += (n + 15) &^ 15
	return p
}

// size is what alloc takes for n bytes.
func size(n uintptr) uintptr { return (n + 15) &^ 15 }

// str copies b as a C string and gives its address, 0 for an empty one.
func (a *arena) str(b []byte) uintptr {
	if len(b) == 0 {
		return 0
	}
	return a.cstr(b)
}

func (a *arena) cstr(b []byte) uintptr {
	p := a.alloc(uintptr(len(b)) + 1)
	copy(unsafe.Slice((*byte)(p), len(b)), b)
	return uintptr(p)
}

// vector makes a null-terminated array of C strings.
func (a *arena) vector(list [][]byte) *uintptr {
	p := (*uintptr)(a.alloc(uintptr(len(list)+1) * 8))
	v := unsafe.Slice(p, len(list)+1)
	for i, s := range list {
		v[i] = a.cstr(s)
	}
	return p
}

func vectorSize(list [][]byte) uintptr {
	n := size(uintptr(len(list)+1) * 8)
	for _, s := range list {
		n += size(uintptr(len(s)) + 1)
	}
	return n
}

func jobSize(j *Job) uintptr {
	n := size(unsafe.Sizeof(jobBlock{})) + jobStack + 4096
	n += vectorSize(j.Argv) + vectorSize(j.Env) + vectorSize(j.Paths)
	n += size(uintptr(len(j.Cwd))+1) + size(uintptr(len(j.CwdElse))+1)
	n += size(uintptr(len(j.Groups)) * 4)
	n += size(uintptr(len(j.FDs)) * unsafe.Sizeof(childFD{}))
	n += size(uintptr(len(j.Rlimits)) * unsafe.Sizeof(childLimit{}))
	for _, f := range j.FDs {
		n += size(uintptr(len(f.Path))+1) + size(uintptr(len(f.Else))+1)
	}
	return n
}

// newJobBlock prepares the child's memory; sources[i] is the descriptor in
// init's table of FD i, or -1 where the child opens its path.
func (s *server) newJobBlock(j *Job, sources []int) (*arena, *jobBlock, error) {
	a, err := newArena(jobSize(j))
	if err != nil {
		return nil, nil, err
	}
	stack := a.alloc(jobStack)
	b := (*jobBlock)(a.alloc(unsafe.Sizeof(jobBlock{})))
	b.args = cloneArgs{
		flags:      unix.CLONE_VM | unix.CLONE_CLEAR_SIGHAND | unix.CLONE_CHILD_CLEARTID | unix.CLONE_PARENT_SETTID,
		childTID:   uint64(uintptr(unsafe.Pointer(&b.tid))),
		parentTID:  uint64(uintptr(unsafe.Pointer(&b.tid))),
		exitSignal: uint64(unix.SIGCHLD),
		stack:      uint64(uintptr(stack)),
		stackSize:  jobStack,
	}
	b.tty, b.cgroup, b.user = -1, -1, s.userNS
	b.identity(a, s, j)
	b.umask, b.nice, b.personality = uintptr(j.Umask), uintptr(j.Nice), uintptr(j.Personality)
	b.cwd, b.cwdAlt, b.cwdIno = a.cstr(j.Cwd), a.str(j.CwdElse), j.CwdIno
	b.ignored, b.mask = j.Ignored, j.Mask
	b.argv = uintptr(unsafe.Pointer(a.vector(j.Argv)))
	b.envp = uintptr(unsafe.Pointer(a.vector(j.Env)))
	b.paths, b.npaths = a.vector(j.Paths), len(j.Paths)
	b.descriptors(a, j, sources)
	b.limit(a, j)
	return a, b, nil
}

func (b *jobBlock) identity(a *arena, s *server, j *Job) {
	b.uid, b.gid = uintptr(j.UID), uintptr(j.GID)
	b.setIDs = j.UID != s.cfg.UID || j.GID != s.cfg.GID
	b.setGroups = s.cfg.Privileged
	groups := unsafe.Slice((*uint32)(a.alloc(uintptr(len(j.Groups)*4))), len(j.Groups))
	copy(groups, j.Groups)
	b.groups, b.ngroups = uintptr(unsafe.Pointer(unsafe.SliceData(groups))), uintptr(len(groups))
	b.lastCap = s.lastCap
	b.capHeader[0] = unix.LINUX_CAPABILITY_VERSION_3
	if j.UID == 0 {
		b.capData[0], b.capData[1] = keptCaps, keptCaps
	}
}

func (b *jobBlock) descriptors(a *arena, j *Job, sources []int) {
	b.nfds = len(j.FDs)
	b.fds = (*childFD)(a.alloc(uintptr(len(j.FDs)) * unsafe.Sizeof(childFD{})))
	fds := unsafe.Slice(b.fds, len(j.FDs))
	first := make(map[uint64]int)
	for i, f := range j.FDs {
		c := &fds[i]
		c.src, c.same, c.dst, c.flags, c.ino = sources[i], -1, int(f.Num), uintptr(f.Flags&^makesFiles), f.Ino
		if c.src < 0 {
			c.path, c.alt = a.cstr(f.Path), a.str(f.Else)
		}
		if f.Desc != 0 {
			if at, ok := first[f.Desc]; ok {
				c.same = at
			} else {
				first[f.Desc] = i
			}
		}
		b.top = max(b.top, c.dst+1)
	}
}

// limit bounds the job's limits by init's own hard ones, which nobody here
// may exceed.
func (b *jobBlock) limit(a *arena, j *Job) {
	b.nlimits = len(j.Rlimits)
	b.limits = (*childLimit)(a.alloc(uintptr(len(j.Rlimits)) * unsafe.Sizeof(childLimit{})))
	limits := unsafe.Slice(b.limits, len(j.Rlimits))
	for i, l := range j.Rlimits {
		limits[i] = childLimit{resource: uintptr(l.Resource), cur: l.Cur, max: l.Max}
		var own unix.Rlimit
		if unix.Getrlimit(l.Resource, &own) == nil {
			limits[i].max = min(l.Max, own.Max)
			limits[i].cur = min(l.Cur, limits[i].max)
		}
	}
}

// futexWait waits while *word is was, at most for d; it may return early.
func futexWait(word *uint32, was uint32, d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), 0, uintptr(was), uintptr(unsafe.Pointer(&ts)), 0, 0)
}

// left waits until the child has left init's memory, by execve or exit.
func (b *jobBlock) left() {
	for {
		tid := atomic.LoadUint32(&b.tid)
		if tid == 0 {
			return
		}
		futexWait(&b.tid, tid, time.Second)
	}
}
