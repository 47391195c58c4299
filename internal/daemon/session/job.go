package session

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"rexec/internal/launch"
	"rexec/rer"
)

// job is one command of the session, from its request to its end.
type job struct {
	s       *Session
	request *rer.Request
	view    *view
	streams []*stream // each once
	term    *terminal
	since   time.Time
	kept    []string
	pid     int32

	mu     sync.Mutex
	come   sync.Cond
	queue  []launch.Event
	over   bool // no more events come
	live   bool // it runs
	killed bool
	signal []*rer.Signal // that wait to be delivered
	busy   bool          // somebody delivers them
}

// launch begins to run a request, unless it was seen before.
func (s *Session) launch(r *rer.Request) {
	j := &job{s: s, request: r, since: time.Now()}
	j.come.L = &j.mu
	s.mu.Lock()
	twice, ending := s.seen[r.ID], s.ending
	s.seen[r.ID] = true
	if !twice && !ending {
		s.jobs[r.ID] = j
		s.work.Add(1)
	}
	s.mu.Unlock()
	switch {
	case ending:
	case twice:
		s.refuse(&rer.Refused{ID: r.ID, Reason: rer.ReasonTwice, Text: "the request was sent twice"})
	default:
		go j.run()
	}
}

func (s *Session) refuse(no *rer.Refused) { s.send(&rer.Message{Refused: no}) }

// run is a job's life.
func (j *job) run() {
	defer j.s.work.Done()
	defer j.forget()
	defer j.leave()
	started, err := j.start()
	if err != nil {
		j.s.refuse(j.refusal(err))
		if _, err := j.s.waitInit(); err != nil {
			j.s.conn.Close() // the next command gets a session that may do better
		}
		return
	}
	j.s.send(&rer.Message{Started: started})
	j.s.cfg.Note(j.note(nil))
	j.goLive()
	for {
		e, ok := j.next()
		if !ok {
			j.s.cfg.Note(j.note(&rer.Status{Signal: int(syscall.SIGKILL)}))
			j.s.refuse(&rer.Refused{ID: j.request.ID, Reason: rer.ReasonLost,
				Text: "the session's init was killed on the server, and the command with it"})
			return
		}
		if j.report(e) {
			return
		}
	}
}

// forget takes the job out of the session's table.
func (j *job) forget() {
	j.s.mu.Lock()
	defer j.s.mu.Unlock()
	delete(j.s.jobs, j.request.ID)
}

func (j *job) note(status *rer.Status) Job {
	return Job{Request: j.request, Home: j.s.home, Switch: j.kept, Pid: j.pid, Init: j.s.init.Process(), Since: j.since, Status: status}
}

// refusal makes any failure one that can be sent.
func (j *job) refusal(err error) *rer.Refused {
	var no *rer.Refused
	if errors.As(err, &no) {
		no.ID = j.request.ID
		return no
	}
	return &rer.Refused{ID: j.request.ID, Reason: rer.ReasonInternal, Text: err.Error(), Errno: errnoOf(err)}
}

func errnoOf(err error) int {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return int(errno)
	}
	return 0
}

// start does all up to the command's execve.
func (j *job) start() (*rer.Started, error) {
	r := j.request
	if j.s.cfg.Admit != nil {
		if no := j.s.cfg.Admit(r); no != nil {
			return nil, no
		}
	}
	l := newLoan(r.Switch, j.s.cfg.Forbidden())
	j.kept = l.kept
	in, err := j.s.waitInit()
	if err == nil {
		j.view, err = j.s.view(l)
	}
	if err != nil {
		return nil, noView(r.ID, err)
	}
	spec, files, err := j.prepare(in)
	if err != nil {
		closeAll(files)
		return nil, err
	}
	j.s.settle()
	launched, err := j.try(in, spec, files)
	closeAll(files)
	if err != nil {
		return nil, err
	}
	j.pid = launched.Pid
	return &rer.Started{
		ID: r.ID, Pid: launched.Pid, Taken: launched.Taken,
		Switch: l.kept, Dropped: l.dropped, ServerID: int64(launched.Outer),
	}, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// prepare makes what init is told, with the files that go along.
func (j *job) prepare(in *launch.Init) (*launch.Job, []*os.File, error) {
	r := j.request
	forbidden := len(j.kept) != len(cleanSwitch(r.Switch))
	spec := &launch.Job{
		ID: r.ID, View: j.view.id, Env: withSwitch(r.Env, j.kept, forbidden),
		Umask: r.Umask, Nice: r.Nice, Rlimits: r.Rlimits, Mask: r.Mask, Ignored: r.Ignored,
		UID: r.UID, GID: r.GID, Groups: r.Groups, Personality: r.Personality,
		Pid: r.Pid, Ppid: r.Ppid, Pgrp: r.Pgrp, Sid: r.Sid,
	}
	if err := j.cwd(spec); err != nil {
		return nil, nil, err
	}
	if err := j.terminal(in, spec); err != nil {
		return nil, nil, err
	}
	files, err := j.descriptors(spec)
	return spec, files, err
}

// cwd says where the job begins: in the server's directory of the same name,
// where that is switched, else in home's own directory, whatever it is called
// now.
func (j *job) cwd(spec *launch.Job) error {
	r := j.request
	if isClean(string(r.CwdPath)) && (j.view.loan.ours(string(r.CwdPath)) || isKernelBound(r.CwdPath)) {
		spec.Cwd = r.CwdPath
		return nil
	}
	p, err := j.s.place(j.view, r.Cwd, r.CwdPath)
	if err != nil {
		return &rer.Refused{Reason: rer.ReasonCwd, Errno: errnoOf(err),
			Text: fmt.Sprintf("the working directory %s cannot be entered on the server: %v", r.CwdPath, err)}
	}
	spec.Cwd, spec.CwdIno, spec.CwdElse = p.path, p.ino, p.other
	return nil
}

// try launches the command, as a shell script where the kernel does not know
// its format.
func (j *job) try(in *launch.Init, spec *launch.Job, files []*os.File) (launch.Launched, error) {
	c := newCommand(j.request)
	launched, failure, err := launchOne(in, spec, files, c)
	if failure != nil && isENOEXEC(failure) {
		launched, failure, err = j.tryScript(in, spec, files, c, failure)
	}
	switch {
	case err != nil:
		return launched, err
	case failure != nil:
		return launched, refusal(j.request, failure)
	}
	return launched, nil
}

// tryScript finds which of the programs it was that the kernel did not know.
func (j *job) tryScript(in *launch.Init, spec *launch.Job, files []*os.File, c command, failure *launch.Failure) (launch.Launched, *launch.Failure, error) {
	for _, path := range c.paths {
		single := command{c.argv, [][]byte{path}}
		launched, f, err := launch.Launched{}, failure, error(nil)
		if len(c.paths) > 1 {
			launched, f, err = launchOne(in, spec, files, single)
		}
		if err != nil || f == nil {
			return launched, f, err
		}
		if isENOEXEC(f) {
			if j.foreignELF(path) {
				return launched, f, nil
			}
			return launchOne(in, spec, files, c.script(path))
		}
	}
	return launch.Launched{}, failure, nil
}

func isENOEXEC(f *launch.Failure) bool { return f.Errno == int(syscall.ENOEXEC) }

func launchOne(in *launch.Init, spec *launch.Job, files []*os.File, c command) (launch.Launched, *launch.Failure, error) {
	spec.Argv, spec.Paths = c.argv, c.paths
	launched, failure, err := in.Launch(spec, files)
	if err != nil {
		err = fmt.Errorf("launch: %w", err)
	}
	return launched, failure, err
}

// goLive begins to deliver signals.
func (j *job) goLive() {
	j.mu.Lock()
	j.live = true
	killed := j.killed
	j.mu.Unlock()
	if killed {
		j.s.init.Kill(j.request.ID)
	}
	j.deliverAll()
}

// deliverAll delivers the signals that wait, one after the other, unless
// somebody else does.
func (j *job) deliverAll() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.busy {
		return
	}
	j.busy = true
	for len(j.signal) > 0 {
		m := j.signal[0]
		j.signal = j.signal[1:]
		j.mu.Unlock()
		j.s.settle()
		j.deliver(m)
		j.mu.Lock()
	}
	j.busy = false
}

// maxSignals bounds the signals that wait for one job.
const maxSignals = 4096

// signal hands a signal of home's to a job. It does not wait: other jobs'
// messages follow.
func (s *Session) signal(m *rer.Signal) {
	j := s.find(m.ID)
	if j == nil {
		return // it has ended: the signal comes too late, as it can locally
	}
	j.mu.Lock()
	if len(j.signal) < maxSignals {
		j.signal = append(j.signal, m)
	}
	begin := j.live && !j.busy
	j.mu.Unlock()
	if begin {
		go j.deliverAll()
	}
}

func (j *job) deliver(m *rer.Signal) {
	if j.term != nil && m.Terminal != nil {
		j.term.news(m.Terminal)
	}
	if j.term != nil && fromTerminal(m) {
		if err := j.term.press(m.Signo); err != nil {
			j.s.cfg.Logf("key of signal %d for job %x: %v", m.Signo, m.ID[:4], err)
		}
		return
	}
	err := j.s.init.Signal(m.ID, m.Signo, m.Code, m.Pid, m.UID, m.Value, m.Group)
	if err != nil {
		j.s.cfg.Logf("signal %d to job %x: %v", m.Signo, m.ID[:4], err)
	}
}

// kill ends a job whose agent is dead.
func (s *Session) kill(id [16]byte) {
	j := s.find(id)
	if j == nil {
		return
	}
	j.mu.Lock()
	j.killed = true
	live := j.live
	j.mu.Unlock()
	if live {
		s.init.Kill(id)
	}
}

func (s *Session) find(id [16]byte) *job {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.jobs[id]
}

// events hands init's events to their jobs, until init has ended.
func (s *Session) events(ch <-chan launch.Event) {
	for e := range ch {
		if j := s.find(e.ID); j != nil {
			j.push(e)
		}
	}
	s.mu.Lock()
	ending := s.ending
	s.ending = true
	for _, j := range s.jobs {
		j.lost()
	}
	s.mu.Unlock()
	if ending {
		return
	}
	s.cfg.Logf("init has ended before its session")
	told := make(chan struct{})
	go func() { defer close(told); s.work.Wait() }()
	select {
	case <-told:
	case <-time.After(farewell):
	}
	s.conn.Close()
}

// farewell bounds how long jobs may take to say that init has ended.
const farewell = time.Second

func (j *job) push(e launch.Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.queue = append(j.queue, e)
	j.come.Broadcast()
}

// lost says that no events of the job come any more.
func (j *job) lost() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.over = true
	j.come.Broadcast()
}

func (j *job) next() (launch.Event, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for len(j.queue) == 0 && !j.over {
		j.come.Wait()
	}
	if len(j.queue) == 0 {
		return launch.Event{}, false
	}
	e := j.queue[0]
	j.queue = j.queue[1:]
	return e, true
}

// report tells home of an event, after what the job wrote before it, and says
// whether the job has ended.
func (j *job) report(e launch.Event) bool {
	id := j.request.ID
	switch e.Kind {
	case launch.EventContinued:
		j.s.send(&rer.Message{Continued: &rer.Continued{ID: id}})
	case launch.EventStopped:
		sent, consumed := j.drain()
		j.s.send(&rer.Message{Stopped: &rer.Stopped{ID: id, Signo: e.Signo, Sent: sent, Positions: e.Positions,
			Consumed: consumed, Termios: j.termios()}})
	case launch.EventEnded:
		sent, consumed := j.drain()
		j.s.cfg.Note(j.note(&e.Status))
		j.s.send(&rer.Message{Ended: &rer.Ended{ID: id, Status: e.Status, Sent: sent, Positions: e.Positions,
			Consumed: consumed, Termios: j.termios()}})
		return true
	}
	return false
}

// drain waits until what the job wrote has been sent, and says how much each
// channel has carried.
func (j *job) drain() (sent, consumed []rer.Sent) {
	for _, st := range j.streams {
		if st.out != nil {
			sent = append(sent, rer.Sent{Channel: st.key.channel, Bytes: st.out.drain()})
		}
		if st.in != nil && st.in.paced {
			consumed = append(consumed, rer.Sent{Channel: st.key.channel, Bytes: st.in.consumed()})
		}
	}
	if j.term != nil {
		sent = append(sent, rer.Sent{Channel: j.request.Terminal.Channel, Bytes: j.term.out.drain()})
	}
	return sent, consumed
}

// termios are the settings of the job's terminal for a report.
func (j *job) termios() []byte {
	if j.term == nil {
		return nil
	}
	return j.term.report()
}

// leave lets go of what the job shared.
func (j *job) leave() {
	for _, st := range j.streams {
		st.leave()
	}
	if j.term != nil {
		j.term.leave()
	}
}
