package launch

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"rexec/rer"
)

// hangupGrace is how long a killed job's processes have for what they do on
// SIGHUP.
const hangupGrace = time.Second

// job is a command and its descendants. The server's mutex guards what
// changes after launch.
type job struct {
	spec   Job
	pid    int32
	pgrp   int32
	mark   mark
	uses   []*ghost
	descs  []*desc
	ended  bool // the command was reaped
	failed bool // it was never one: execve did not succeed
	killed bool // before there was a process
	// held are events that happened before the launch was answered.
	answered bool
	held     []Event
}

// launch runs a job and answers when execve has succeeded or failed.
func (s *server) launch(m *message) {
	defer m.closeFDs()
	j := &job{mark: mark{fd: -1}}
	a, err := answer{}, m.decode(&j.spec)
	if err == nil {
		a, err = s.start(j, m)
	}
	if err != nil {
		a = failed("launch", err)
		var fdErr *fdError
		if errors.As(err, &fdErr) && a.Errno != 0 {
			a = answer{Failure: &Failure{Step: "open " + strconv.Itoa(int(fdErr.num)), Errno: a.Errno}}
		}
	}
	if s.reply(m.call, a) != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	j.answered = true
	for _, e := range j.held {
		s.emit(e)
	}
	j.held = nil
	if j.ended && !j.failed {
		go s.watch(j)
	}
}

// reply answers a launch, in the job's name while it is there: so the session
// learns its number outside.
func (s *server) reply(call uint32, a answer) error {
	if a.Launched.Pid > 0 {
		if err := s.conn.sendAbout(a.Launched.Pid, kindReply, call, a); err == nil {
			return nil
		}
	}
	return s.conn.send(kindReply, call, a, nil)
}

func (s *server) start(j *job, m *message) (answer, error) {
	view, err := s.register(j)
	if err != nil {
		return answer{}, err
	}
	sources, err := s.gather(j, m, view)
	if err != nil {
		s.forget(j)
		return answer{}, err
	}
	j.mark = <-s.marks
	a, b, err := s.newJobBlock(&j.spec, sources)
	if err != nil {
		s.forget(j)
		return answer{}, err
	}
	b.view, b.cgroup = view, j.mark.fd
	taken, err := s.cloneJob(j, b)
	if err != nil {
		a.free()
		s.forget(j)
		var errno unix.Errno
		if errors.As(err, &errno) {
			return answer{Failure: &Failure{Step: "fork", Errno: int(errno)}}, nil
		}
		return answer{}, err
	}
	b.left()
	defer a.free()
	return s.started(j, b, taken), nil
}

// register makes the job known, so that it can be killed, and gives its view.
func (s *server) register(j *job) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	view, ok := s.views[j.spec.View]
	if !ok {
		return -1, fmt.Errorf("view %d: %w", j.spec.View, unix.ENOENT)
	}
	if s.jobs[j.spec.ID] != nil {
		return -1, fmt.Errorf("job id: %w", unix.EEXIST)
	}
	s.jobs[j.spec.ID] = j
	return view, nil
}

// cloneJob places the job and clones it; whoever reaps it finds it known.
func (s *server) cloneJob(j *job, b *jobBlock) ([]int32, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range 3 {
		if j.killed {
			return nil, unix.EINTR
		}
		taken, err := s.tryClone(j, b)
		if !errors.Is(err, unix.ESRCH) {
			return taken, err
		}
		// The ghost was killed meanwhile; another takes its place.
		for _, g := range j.uses {
			s.release(g)
		}
		j.uses = nil
	}
	return nil, unix.EAGAIN
}

func (s *server) tryClone(j *job, b *jobBlock) ([]int32, error) {
	p, err := s.place(&j.spec)
	if err != nil {
		return nil, err
	}
	j.uses = p.uses
	b.setsid, b.pgrp = p.setsid, p.pgrp
	if t := s.terminals[j.spec.Terminal]; t != nil {
		b.tty, b.foreground = t.slave, j.spec.Foreground
	}
	b.args.flags &^= unix.CLONE_PARENT
	b.args.exitSignal = uint64(unix.SIGCHLD)
	if p.parent {
		b.args.flags |= unix.CLONE_PARENT
		b.args.exitSignal = 0 // the cloning ghost's own: SIGCHLD
	}
	b.setTID = j.spec.Pid
	pid := s.cloneBy(p.by, &b.args, &b.setTID, jobEntry(), unsafe.Pointer(b))
	if pid < 0 && b.setTID > 0 {
		p.taken = append(p.taken, j.spec.Pid)
		b.setTID = 0
		pid = s.cloneBy(p.by, &b.args, &b.setTID, jobEntry(), unsafe.Pointer(b))
	}
	if pid < 0 {
		return nil, unix.Errno(-pid)
	}
	j.pid, j.pgrp = int32(pid), p.pgrp
	if j.pgrp == 0 {
		j.pgrp = j.pid
	}
	s.pids[j.pid] = j
	return p.taken, nil
}

// started says how the launch went, once the child has left init's memory.
func (s *server) started(j *job, b *jobBlock, taken []int32) answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b.lost {
		taken, j.pgrp = append(taken, j.pgrp), j.pid
	}
	if b.step == stepNone {
		s.dropOnce(j)
		return answer{Launched: Launched{Pid: j.pid, Taken: taken}}
	}
	// Once this is answered both the id and the number may be used again.
	j.failed = true
	for !j.ended {
		s.changed.Wait()
	}
	delete(s.jobs, j.spec.ID)
	j.held = nil
	go s.forget(j)
	return answer{Failure: &Failure{Step: b.stepName(), Errno: int(b.errno)}}
}

// dropOnce lets go of the descriptions that no other job can get: a pipe's end
// held here would hide from its other end that the job has closed it.
func (s *server) dropOnce(j *job) {
	var shared []*desc
	for _, d := range j.descs {
		if d.id != 0 {
			shared = append(shared, d)
		} else {
			go s.releaseDesc(d)
		}
	}
	j.descs = shared
}

func (b *jobBlock) stepName() string {
	switch b.step {
	case stepView:
		return "view"
	case stepIDs:
		return "ids"
	case stepCwd:
		return "cwd"
	case stepOpen, stepDup:
		return "open " + strconv.Itoa(int(b.at))
	}
	return "exec"
}

// emit sends an event, or keeps it until the launch is answered.
func (s *server) emit(e Event) {
	if j := s.jobs[e.ID]; j != nil && !j.answered {
		j.held = append(j.held, e)
		return
	}
	_ = s.conn.send(kindEvent, 0, e, nil)
}

// jobChanged is what wait4 told of a job.
func (s *server) jobChanged(j *job, status unix.WaitStatus, usage *syscall.Rusage) {
	e := Event{ID: j.spec.ID}
	switch {
	case status.Stopped():
		e.Kind, e.Signo, e.Positions = EventStopped, int(status.StopSignal()), j.positions()
	case status.Continued():
		e.Kind = EventContinued
	default:
		delete(s.pids, j.pid)
		j.ended = true
		e.Kind, e.Status, e.Positions = EventEnded, statusOf(status, usage), j.positions()
	}
	s.emit(e)
	if !j.ended {
		return
	}
	s.changed.Broadcast()
	if j.answered {
		go s.watch(j)
	}
}

func statusOf(w unix.WaitStatus, u *syscall.Rusage) rer.Status {
	st := rer.Status{Usage: rer.Rusage{
		UserUsec: u.Utime.Sec*1e6 + u.Utime.Usec, SysUsec: u.Stime.Sec*1e6 + u.Stime.Usec,
		MaxRSS: u.Maxrss, MinorFault: u.Minflt, MajorFault: u.Majflt,
		InBlocks: u.Inblock, OutBlocks: u.Oublock, Voluntary: u.Nvcsw, Forced: u.Nivcsw,
	}}
	if w.Signaled() {
		st.Signal, st.Core = int(w.Signal()), w.CoreDump()
	} else {
		st.Code = w.ExitStatus()
	}
	return st
}

// forget lets go of what a job holds.
func (s *server) forget(j *job) {
	for _, d := range j.descs {
		s.releaseDesc(d)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range j.uses {
		s.release(g)
	}
	fd := j.mark.fd
	j.descs, j.uses, j.mark.fd = nil, nil, -1
	if j.pid == 0 && s.jobs[j.spec.ID] == j {
		delete(s.jobs, j.spec.ID)
	}
	if fd >= 0 {
		unix.Close(fd)
	}
}

// watch waits until no descendant of an ended job is left.
func (s *server) watch(j *job) {
	for {
		pids := s.treeOf(j)
		if len(pids) == 0 {
			break
		}
		waitPid(pids[0])
	}
	s.forget(j)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.emit(Event{ID: j.spec.ID, Kind: EventGone})
	if s.jobs[j.spec.ID] == j {
		delete(s.jobs, j.spec.ID)
	}
}

// waitPid waits until a process has ended.
func waitPid(pid int) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		if !errors.Is(err, unix.ESRCH) {
			time.Sleep(100 * time.Millisecond)
		}
		return
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		return err == nil && n == 1
	})
}

// signalRequest is the body of a kindSignal message.
type signalRequest struct {
	ID    [16]byte
	Signo int
	Code  int
	Pid   int32
	UID   uint32
	Value uint64
	Group bool
}

// siginfo is the kernel's siginfo_t of a queued signal.
type siginfo struct {
	signo, errno, code, _ int32
	pid                   int32
	uid                   uint32
	value                 uint64
	_                     [96]byte
}

func (s *server) signal(m *message) (answer, int, error) {
	var r signalRequest
	if err := m.decode(&r); err != nil {
		return answer{}, -1, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	j := s.jobs[r.ID]
	if j == nil || j.pid == 0 || (j.ended && !r.Group) {
		return answer{}, -1, unix.ESRCH
	}
	if r.Group {
		return answer{}, -1, unix.Kill(-int(j.pgrp), unix.Signal(r.Signo))
	}
	// The kernel lets nobody forge codes of 0 and above.
	if r.Code >= 0 || r.Code == siTkill {
		return answer{}, -1, unix.Kill(int(j.pid), unix.Signal(r.Signo))
	}
	info := siginfo{signo: int32(r.Signo), code: int32(r.Code), pid: r.Pid, uid: r.UID, value: r.Value}
	_, _, errno := unix.Syscall(unix.SYS_RT_SIGQUEUEINFO, uintptr(j.pid), uintptr(r.Signo), uintptr(unsafe.Pointer(&info)))
	if errno != 0 {
		return answer{}, -1, errno
	}
	return answer{}, -1, nil
}

const siTkill = -6

// kill starts a job's end: hang-up, then, after a while, SIGKILL for all that
// is left of its tree. What comes of it is told by events.
func (s *server) kill(m *message) (answer, int, error) {
	var id [16]byte
	if err := m.decode(&id); err != nil {
		return answer{}, -1, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	j := s.jobs[id]
	if j == nil {
		return answer{}, -1, unix.ESRCH
	}
	if j.killed = true; j.pid != 0 {
		go s.killTree(j)
	}
	return answer{}, -1, nil
}

func (s *server) killTree(j *job) {
	for _, pid := range s.treeOf(j) {
		_ = unix.Kill(pid, unix.SIGHUP)
		_ = unix.Kill(pid, unix.SIGCONT)
	}
	end := time.Now().Add(hangupGrace)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		pids := s.treeOf(j)
		if len(pids) == 0 {
			return
		}
		if time.Now().After(end) {
			for _, pid := range pids {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		time.Sleep(pause)
	}
}

// treeOf gives the processes of a job that init still knows.
func (s *server) treeOf(j *job) []int {
	s.mu.Lock()
	known := s.jobs[j.spec.ID] == j
	q := scan{inode: j.mark.inode, reply: make(chan []int, 1)}
	if !j.ended {
		q.pid = int(j.pid)
	}
	s.mu.Unlock()
	if !known {
		return nil
	}
	s.scans <- q
	return <-q.reply
}

// mark tells a job's processes from all others: the cgroup namespace that
// they inherit, however they detach themselves. The descriptor keeps its
// number from being used again.
type mark struct {
	fd    int
	inode uint64
}

// makeMarks makes cgroup namespaces, on a thread of its own which is in the
// last one made.
func (s *server) makeMarks() {
	lockedThread(func() {
		for {
			s.marks <- newMark()
		}
	})
}

func newMark() mark {
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return mark{fd: -1}
	}
	fd, err := unix.Open("/proc/thread-self/ns/cgroup", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return mark{fd: -1}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return mark{fd: -1}
	}
	return mark{fd: fd, inode: st.Ino}
}

// scan asks which processes bear a mark or are the job itself, and which
// descend from those.
type scan struct {
	inode uint64 // 0: no mark
	pid   int    // 0: the command has ended
	reply chan []int
}

// scanner walks /proc once for all that ask meanwhile.
func (s *server) scanner() {
	for q := range s.scans {
		asked := []scan{q}
		for more := true; more; {
			select {
			case q := <-s.scans:
				asked = append(asked, q)
			default:
				more = false
			}
		}
		procs := processes()
		for _, q := range asked {
			q.reply <- procs.tree(&q)
		}
	}
}

type process struct {
	pid, parent int
	mark        uint64
}

type processList []process

// processes reads all living processes of the session but init. Zombies have
// no namespaces and bear no mark.
func processes() processList {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	var list processList
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || pid <= 1 {
			continue
		}
		link, err := os.Readlink("/proc/" + name + "/ns/cgroup")
		if err != nil {
			continue
		}
		n, _ := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(link, "cgroup:["), "]"), 10, 64)
		list = append(list, process{pid, parentOf(name), n})
	}
	return list
}

func parentOf(pid string) int {
	b, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), "\nPPid:\t")
	line, _, _ := strings.Cut(rest, "\n")
	n, _ := strconv.Atoi(line)
	return n
}

// tree is found in passes, as a child may come before its parent.
func (l processList) tree(q *scan) []int {
	in := make(map[int]bool)
	for _, p := range l {
		if p.pid == q.pid || p.mark == q.inode && q.inode != 0 {
			in[p.pid] = true
		}
	}
	if len(in) == 0 {
		return nil
	}
	for more := true; more; {
		more = false
		for _, p := range l {
			if !in[p.pid] && in[p.parent] {
				in[p.pid], more = true, true
			}
		}
	}
	pids := make([]int, 0, len(in))
	for _, p := range l {
		if in[p.pid] {
			pids = append(pids, p.pid)
		}
	}
	return pids
}
