package launch

import (
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// linger is how long a ghost without users is kept for the next job: a make
// at home starts many under the same parent.
const linger = 10 * time.Second

// ghost is a stub process that holds a number of home's. The server's mutex
// guards it.
type ghost struct {
	pid    int32
	leader *ghost // of its session; itself, or nil for none of ours
	sid    int32  // leaders: home's session number, the key in server.leaders
	users  int    // jobs, and for a leader also its session's other ghosts
	dying  bool   // told to end
	dead   bool   // reaped
	mem    *arena
	b      *ghostBlock
}

// newGhost makes a ghost of the given number, 0 for any, by a session's
// leader ghost or, where that is nil, by init itself.
func (s *server) newGhost(num int32, by *ghost, setsid bool, tty int) (*ghost, error) {
	a, err := newArena(ghostStack + size(unsafe.Sizeof(ghostBlock{})))
	if err != nil {
		return nil, err
	}
	stack := a.alloc(ghostStack)
	b := (*ghostBlock)(a.alloc(unsafe.Sizeof(ghostBlock{})))
	b.setsid, b.tty, b.pipe, b.forever, b.setTID = setsid, tty, s.reportPipe, allSignals, num
	copy(b.name[:15], "ghost")
	b.args = cloneArgs{
		flags:      unix.CLONE_VM | unix.CLONE_FILES | unix.CLONE_CLEAR_SIGHAND | unix.CLONE_CHILD_CLEARTID | unix.CLONE_PARENT_SETTID,
		childTID:   uint64(uintptr(unsafe.Pointer(&b.tid))),
		parentTID:  uint64(uintptr(unsafe.Pointer(&b.tid))),
		exitSignal: uint64(unix.SIGCHLD),
		stack:      uint64(uintptr(stack)),
		stackSize:  ghostStack,
	}
	pid := s.cloneBy(by, &b.args, &b.setTID, ghostEntry(), unsafe.Pointer(b))
	if pid < 0 {
		a.free()
		return nil, unix.Errno(-pid)
	}
	g := &ghost{pid: int32(pid), leader: by, mem: a, b: b}
	if setsid {
		g.leader = g
	} else if by != nil {
		by.users++
	}
	s.ghosts[g.pid] = g
	for atomic.LoadUint32(&b.ready) == 0 && g.alive() {
		futexWait(&b.ready, 0, 50*time.Millisecond)
	}
	return g, nil
}

// cloneBy clones under the number *num, 0 for any.
func (s *server) cloneBy(by *ghost, args *cloneArgs, num *int32, entry uintptr, block unsafe.Pointer) int {
	args.setTID, args.setTIDSize = 0, 0
	if *num > 0 {
		args.setTID, args.setTIDSize = uint64(uintptr(unsafe.Pointer(num))), 1
	}
	if by == nil {
		return cloneBlocked(args, entry, block, new([2]uint64))
	}
	if !by.alive() {
		return -int(unix.ESRCH)
	}
	by.b.clone = [3]uintptr{uintptr(unsafe.Pointer(args)), entry, uintptr(block)}
	return by.command(opClone, 0, 0)
}

// alive asks the word that the kernel clears when the ghost ends.
func (g *ghost) alive() bool { return !g.dead && !g.dying && atomic.LoadInt32(&g.b.tid) != 0 }

// command has a ghost do something and gives what the system call gave. A
// ghost that somebody stopped is continued, one that was killed is ESRCH.
func (g *ghost) command(op int, a0, a1 uintptr) int {
	if !g.alive() {
		return -int(unix.ESRCH)
	}
	b := g.b
	b.op, b.arg = uintptr(op), [2]uintptr{a0, a1}
	seq := atomic.AddUint32(&b.seq, 1)
	_ = unix.Kill(int(g.pid), wakeSignal)
	for {
		done := atomic.LoadUint32(&b.done)
		if done == seq {
			return b.ret
		}
		if !g.alive() {
			return -int(unix.ESRCH)
		}
		futexWait(&b.done, done, 50*time.Millisecond)
		if atomic.LoadUint32(&b.done) != seq && g.alive() {
			_ = unix.Kill(int(g.pid), unix.SIGCONT)
			_ = unix.Kill(int(g.pid), wakeSignal)
		}
	}
}

// release takes one user from a ghost.
func (s *server) release(g *ghost) {
	g.users--
	if g.users == 0 && !g.dead {
		time.AfterFunc(linger, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.endIdle(g)
		})
	}
}

func (s *server) endIdle(g *ghost) {
	if g.users == 0 && g.alive() {
		g.dying = true
		g.b.op = opExit
		atomic.AddUint32(&g.b.seq, 1)
		_ = unix.Kill(int(g.pid), wakeSignal)
		_ = unix.Kill(int(g.pid), unix.SIGCONT)
	}
}

// ghostEnded forgets a ghost that was reaped.
func (s *server) ghostEnded(g *ghost) {
	g.dead = true
	delete(s.ghosts, g.pid)
	if g.leader == g && s.leaders[g.sid] == g {
		delete(s.leaders, g.sid)
	}
	if g.leader != nil && g.leader != g {
		s.release(g.leader)
	}
	g.mem.free()
	s.changed.Broadcast()
}

// freeNumber ends the ghost that holds a number for nobody, and waits until
// the number is free: until its end was dispatched, lest that be taken for
// the end of the number's next holder.
func (s *server) freeNumber(n int32) {
	for {
		g := s.ghosts[n]
		if g == nil || !s.endUnused(g) {
			return
		}
		s.changed.Wait()
	}
}

// endUnused ends a ghost without users or, of a leader, the idle ghosts that
// use it. False says that there was nothing to end.
func (s *server) endUnused(g *ghost) bool {
	if g.users == 0 {
		s.endIdle(g)
		return true
	}
	return s.endMembers(g)
}

// endMembers ends the idle ghosts of a leader's session.
func (s *server) endMembers(g *ghost) bool {
	found := false
	for _, m := range s.ghosts {
		if m != g && m.leader == g && m.users == 0 {
			s.endIdle(m)
			found = true
		}
	}
	return found
}

// placement is where a job is cloned.
type placement struct {
	by     *ghost // nil: init
	parent bool   // the parent is init although a ghost clones
	setsid bool
	pgrp   int32 // for setpgid; 0: an own group
	uses   []*ghost
	taken  []int32
}

// place makes the ghosts that a job's numbers ask for.
func (s *server) place(j *Job) (*placement, error) {
	p := new(placement)
	s.freeNumber(j.Pid)
	if j.Pid != 0 && j.Pid == j.Sid {
		return p, s.placeLeader(j, p)
	}
	leader, err := s.leader(j, p)
	if err != nil {
		return nil, err
	}
	s.placeGroup(j, p, leader)
	switch {
	case j.Ppid <= 1:
		p.by, p.parent = leader, true
	case j.Ppid == j.Sid:
		p.by = leader
	default:
		if p.by = s.member(j.Ppid, leader); p.by == nil {
			p.taken = append(p.taken, j.Ppid)
			p.by = leader
		}
	}
	p.use(p.by)
	return p, nil
}

func (p *placement) use(g *ghost) {
	if g != nil {
		g.users++
		p.uses = append(p.uses, g)
	}
}

// placeLeader places a job that leads its session: its parent's session is
// unknown and is none of ours.
func (s *server) placeLeader(j *Job, p *placement) error {
	p.setsid = true
	if j.Ppid <= 1 {
		return nil
	}
	if p.by = s.ghosts[j.Ppid]; p.by == nil || !p.by.alive() {
		g, err := s.newGhost(j.Ppid, nil, false, -1)
		if err != nil {
			p.taken = append(p.taken, j.Ppid)
			return nil // init is the parent
		}
		p.by = g
	}
	p.use(p.by)
	return nil
}

// leader gives the leader ghost of the job's session. One that home does not
// show has a leader of any number, the same for all such jobs.
func (s *server) leader(j *Job, p *placement) (*ghost, error) {
	g := s.leaders[j.Sid]
	if g == nil || !g.alive() {
		tty := -1
		for key, t := range s.terminals {
			if key.Sid == j.Sid && key == j.Terminal {
				tty = t.slave
			}
		}
		s.freeNumber(j.Sid)
		var err error
		if g, err = s.newGhost(j.Sid, nil, true, tty); err != nil {
			if j.Sid != 0 {
				p.taken = append(p.taken, j.Sid)
			}
			if g, err = s.newGhost(0, nil, true, tty); err != nil {
				return nil, err
			}
		}
		g.sid = j.Sid
		s.leaders[j.Sid] = g
	}
	p.use(g)
	return g, nil
}

// placeGroup sees that the job's group exists. Where the number is taken, the
// group exists already or the job finds out.
func (s *server) placeGroup(j *Job, p *placement, leader *ghost) {
	switch j.Pgrp {
	case 0, j.Pid:
	case j.Sid:
		p.pgrp = leader.pid
	default:
		p.pgrp = j.Pgrp
		p.use(s.member(j.Pgrp, leader))
	}
}

// member gives the ghost of a number in a leader's session, nil where that
// number is another process's.
func (s *server) member(n int32, leader *ghost) *ghost {
	g := s.ghosts[n]
	if g != nil && g.alive() && g.leader == leader {
		return g
	}
	s.freeNumber(n)
	g, err := s.newGhost(n, leader, false, -1)
	if err != nil {
		return nil
	}
	return g
}
