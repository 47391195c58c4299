package pump

import (
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"rexec/rer"
)

// How often a terminal with a running job is looked at: nothing tells of
// settings, size or foreground group that changed. Slower when nothing has
// changed for a while.
const (
	tickFast  = 50 * time.Millisecond
	tickSlow  = 200 * time.Millisecond
	tickQuiet = 5 * time.Second
)

// Terminal is one terminal of home's and its channel, shared by jobs. The
// channel, and with it the pty at the far side, lives until Close; home's
// descriptors are held only while there are jobs ([Terminal.Attach] to
// [Terminal.Detach]): whoever has the other end waits for the last to go.
//
// The terminal's settings are those of the job's view ("logical"): what a
// local program would find. The terminal itself has them too, so that keys are
// echoed, edited and made signals of here, as for a local program; what others
// set becomes the logical settings. While a job's agent is in the foreground
// group, input is the jobs'. In canonical mode the session is asked whether
// one of them reads, and then given one line, so what no job reads stays here.
// Only while the jobs have a foreground group of their own at the far side,
// since a shell runs there, input is raw and the far terminal does all that.
type Terminal struct {
	poller   *Poller
	ch       Channel
	settle   func()
	kick     chan struct{} // capacity 1
	received chan struct{} // closed: the channel has ended

	attach sync.Mutex     // one Attach or Detach at a time; before the others
	wg     sync.WaitGroup // goroutines of this attachment

	telling sync.Mutex // keeps what the session is told in order; before mu

	out    sync.Mutex // one write after the other; mu is taken within it, not the reverse
	cr     crFilter
	hungUp bool

	// Changed under out and mu, so that either is enough to read them.
	end  *end          // reads and writes; nil: detached
	stop chan struct{} // closed when this attachment ends

	mu         sync.Mutex
	ctl        *end // for ioctls
	dev        uint64
	jobs       map[any]*member
	logical    unix.Termios
	set        unix.Termios // what apply left
	raw        bool
	changed    chan struct{} // closed and replaced when raw or how to read changes
	own        bool          // the jobs have a foreground group of their own
	echoed     int           // bytes of raw input that were typed before it was raw
	asked      uint32        // number of the last question whether a job reads
	granted    chan struct{} // closed by the answer
	keys       map[int]map[any]bool
	size       unix.Winsize
	foreground int32
	written    uint64
	progress   chan struct{}
	tell       tell
}

type member struct {
	agent   int32
	stopped bool
}

// tell is what the session does not know yet.
type tell struct{ termios, size, group bool }

// holdCR is how long a CR waits for its LF.
const holdCR = 10 * time.Millisecond

// NewTerminal serves a channel, for a terminal that is not attached yet.
func NewTerminal(p *Poller, ch Channel, settle func()) *Terminal {
	t := &Terminal{
		poller: p, ch: ch, settle: settle, stop: make(chan struct{}),
		kick: make(chan struct{}, 1), received: make(chan struct{}),
		jobs: make(map[any]*member), changed: make(chan struct{}), progress: make(chan struct{}),
	}
	if t.settle == nil {
		t.settle = func() {}
	}
	close(t.stop)
	go t.receive()
	return t
}

// Attach takes charge of the terminal that all of fds are; they stay the
// caller's. agent is a process by which the foreground group is known.
func (t *Terminal) Attach(fds []int, agent int32) error {
	t.attach.Lock()
	defer t.attach.Unlock()
	if t.end != nil {
		return nil
	}
	dev, err := terminalDev(fds[0])
	if err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	ctl, err := dupEnd(t.poller, fds[0], false)
	if err != nil {
		return err
	}
	rw, err := openTerminalEnd(t.poller, fds)
	if err != nil {
		ctl.close()
		return err
	}
	t.out.Lock()
	t.mu.Lock()
	t.dev, t.ctl, t.end, t.stop, t.hungUp = dev, ctl, rw, make(chan struct{}), false
	stop := t.stop
	_, t.foreground, _ = jobControl(agent)
	err = t.look()
	t.mu.Unlock()
	t.out.Unlock()
	t.wg.Go(func() { t.input(rw, stop) })
	t.wg.Go(func() { t.watch(stop) })
	if err != nil {
		t.detach()
		return fmt.Errorf("terminal: %w", err)
	}
	return nil
}

// Detach restores the terminal and lets its descriptors go.
func (t *Terminal) Detach() {
	t.attach.Lock()
	defer t.attach.Unlock()
	t.detach()
}

func (t *Terminal) detach() {
	if t.end == nil {
		return
	}
	t.mu.Lock()
	t.restore()
	close(t.stop)
	t.turn(false)
	t.mu.Unlock()
	t.wg.Wait()
	t.out.Lock() // a write has ended by now
	defer t.out.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.end.close()
	t.ctl.close()
	t.end, t.ctl = nil, nil
}

// Close ends the terminal and its channel.
func (t *Terminal) Close() {
	t.Detach()
	t.ch.Close()
	<-t.received
}

// openTerminalEnd prefers one that can be reopened: the first may have been
// opened as /dev/tty, which means another terminal here.
func openTerminalEnd(p *Poller, fds []int) (*end, error) {
	for _, fd := range fds {
		e, err := openEnd(p, fd, unix.O_RDWR, false)
		if err != nil || e.own {
			return e, err
		}
		e.close()
	}
	return dupEnd(p, fds[0], false)
}

// look reads settings and size as they are now.
func (t *Terminal) look() error {
	got, err := unix.IoctlGetTermios(t.ctl.fd, unix.TCGETS)
	if err != nil {
		return err
	}
	size, err := unix.IoctlGetWinsize(t.ctl.fd, unix.TIOCGWINSZ)
	if err != nil {
		return err
	}
	t.logical, t.size = *got, *size
	return nil
}

// TerminalDev is the number of the terminal that fd is; false: it is none.
func TerminalDev(fd int) (uint64, bool) {
	dev, err := terminalDev(fd)
	return dev, err == nil
}

// Describe fills in what a request says of the terminal, which the session is
// not told otherwise then.
func (t *Terminal) Describe(r *rer.Terminal) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tick()
	r.Dev = t.dev
	r.Termios = EncodeTermios(&t.logical)
	r.Rows, r.Cols, r.X, r.Y = t.size.Row, t.size.Col, t.size.Xpixel, t.size.Ypixel
	r.Foreground = t.foreground
	t.tell.termios, t.tell.group = false, false
}

// Join adds a job, whose agent is a process of home's.
func (t *Terminal) Join(job any, agent int32) {
	t.mu.Lock()
	if len(t.jobs) == 0 {
		t.own, t.echoed = false, 0
	}
	t.jobs[job], t.keys = &member{agent: agent}, nil
	t.tick()
	t.mu.Unlock()
	t.Look()
}

// Leave takes a job away. When it returns the terminal has its settings back,
// unless another job is in the foreground. It says how many jobs are left.
func (t *Terminal) Leave(job any) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.jobs, job)
	t.keys = nil
	t.tick()
	return len(t.jobs)
}

// Suspend is Leave for a job that stopped, Resume the way back.
func (t *Terminal) Suspend(job any) { t.suspend(job, true) }

// Resume is told when the job's agent runs again.
func (t *Terminal) Resume(job any) { t.suspend(job, false) }

func (t *Terminal) suspend(job any, stopped bool) {
	t.mu.Lock()
	if m := t.jobs[job]; m != nil {
		m.stopped = stopped
	}
	t.tick()
	t.mu.Unlock()
	t.Look()
}

// Look has the terminal looked at soon: its size changed, or an agent runs
// again.
func (t *Terminal) Look() {
	select {
	case t.kick <- struct{}{}:
	default:
	}
}

// Resized reads the size at once and has told the session when it returns:
// whoever gets SIGWINCH asks for the size.
func (t *Terminal) Resized() { t.report() }

// report looks at the terminal and tells the session what changed.
func (t *Terminal) report() (changed, running bool) {
	t.telling.Lock()
	defer t.telling.Unlock()
	t.mu.Lock()
	t.tick()
	msgs := t.news()
	running = t.running()
	t.mu.Unlock()
	for _, msg := range msgs {
		_ = t.ch.Send(msg)
	}
	return len(msgs) > 0, running
}

// WaitWritten returns when n data bytes have been written, the terminal is
// gone, or cancel is closed.
func (t *Terminal) WaitWritten(n uint64, cancel <-chan struct{}) {
	for {
		t.mu.Lock()
		ready, progress, stop := t.written >= n, t.progress, t.stop
		t.mu.Unlock()
		if ready {
			t.flush()
			return
		}
		select {
		case <-progress:
		case <-stop:
			return
		case <-cancel:
			return
		}
	}
}

// watch looks at the terminal again and again while a job runs.
func (t *Terminal) watch(stop <-chan struct{}) {
	quiet := time.Now()
	for {
		changed, running := t.report()
		if changed {
			quiet = time.Now()
		}
		var next <-chan time.Time
		if running {
			d := tickFast
			if time.Since(quiet) > tickQuiet {
				d = tickSlow
			}
			next = time.After(d)
		}
		select {
		case <-stop:
			return
		case <-t.kick:
			quiet = time.Now()
		case <-next:
		}
	}
}

func (t *Terminal) running() bool {
	for _, m := range t.jobs {
		if !m.stopped {
			return true
		}
	}
	return false
}

// tick looks at foreground group, settings and size, makes the input raw or
// restores it, and notes what the session is to be told. The caller has the
// lock.
func (t *Terminal) tick() {
	select {
	case <-t.stop:
		return
	default:
	}
	front, group := t.front()
	if group > 0 && group != t.foreground {
		t.foreground, t.tell.group = group, true
	}
	now, err := unix.IoctlGetTermios(t.ctl.fd, unix.TCGETS)
	if err != nil {
		return // hung up
	}
	t.follow(*now, front)
	if size, err := unix.IoctlGetWinsize(t.ctl.fd, unix.TIOCGWINSZ); err == nil && *size != t.size {
		t.size, t.tell.size = *size, true
	}
}

// front says whether a running job's agent is in the foreground group, and
// which group that is, 0 if unknown.
func (t *Terminal) front() (front bool, group int32) {
	for _, m := range t.jobs {
		own, fore, err := jobControl(m.agent)
		if err != nil {
			continue
		}
		group = fore
		front = front || own == fore && !m.stopped
	}
	return front, group
}

// follow brings the terminal from the settings that it has now to those that
// it should have.
func (t *Terminal) follow(now unix.Termios, front bool) {
	switch {
	case t.raw && front:
		if now != t.set {
			// Somebody at home changed something beneath us.
			t.logical, t.tell.termios = carryOver(t.logical, t.set, now), true
			t.apply(t.mode())
			t.turn(true)
		}
	case t.raw:
		// Where the shell has set its own mode already that one stays.
		if now == t.set {
			t.apply(t.logical)
		}
		t.turn(false)
	default:
		// A shell that saved the raw mode when its job stopped puts it back.
		if now != t.logical && !(front && (now == t.mode() || now == t.set)) {
			t.logical, t.tell.termios = now, true
		}
		if front {
			t.apply(t.mode())
			t.turn(true)
		}
	}
}

// mode is what the terminal has while its input is the jobs'.
func (t *Terminal) mode() unix.Termios {
	if t.own {
		return rawInput(t.logical)
	}
	return readInput(t.logical)
}

// jobsOwn is told when jobs make a foreground group of their own, and when
// they give the terminal back.
func (t *Terminal) jobsOwn(own bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if own == t.own || t.ctl == nil {
		return
	}
	t.own, t.echoed = own, 0
	if !t.raw {
		return
	}
	t.apply(t.mode())
	if n, err := unix.IoctlGetInt(t.ctl.fd, unix.TIOCINQ); own && err == nil {
		t.echoed = n
	}
	t.turn(true)
}

// Twice says whether a signal that a key made has come from another job's
// agent already: each agent of the group has it, and all their jobs together
// want it once.
func (t *Terminal) Twice(job any, signo int) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.keys[signo][job] {
		delete(t.keys[signo], job)
		return true
	}
	others := make(map[any]bool)
	own := int32(-1)
	if m := t.jobs[job]; m != nil {
		own, _, _ = jobControl(m.agent)
	}
	for other, m := range t.jobs {
		if g, _, err := jobControl(m.agent); other != job && !m.stopped && err == nil && g == own {
			others[other] = true
		}
	}
	if t.keys == nil {
		t.keys = make(map[int]map[any]bool)
	}
	t.keys[signo] = others
	return false
}

// apply gives the terminal settings at once, dropping nothing, and remembers
// what the driver made of them.
func (t *Terminal) apply(set unix.Termios) {
	if unix.IoctlSetTermios(t.ctl.fd, unix.TCSETS, &set) != nil {
		return
	}
	t.set = set
	if got, err := unix.IoctlGetTermios(t.ctl.fd, unix.TCGETS); err == nil {
		t.set = *got
	}
}

func (t *Terminal) turn(raw bool) {
	t.raw = raw
	close(t.changed)
	t.changed = make(chan struct{})
}

// restore gives the terminal its settings back if it still has ours.
func (t *Terminal) restore() {
	if now, err := unix.IoctlGetTermios(t.ctl.fd, unix.TCGETS); err == nil && t.raw {
		t.follow(*now, false)
	}
}

// News looks at the terminal and gives what the session does not know of it
// yet, to go with a signal that must not come before it; nil: nothing.
func (t *Terminal) News() *rer.Terminal {
	t.telling.Lock()
	defer t.telling.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tick()
	if !t.tell.termios && !t.tell.group {
		return nil
	}
	r := new(rer.Terminal)
	if t.tell.termios {
		r.Termios = EncodeTermios(&t.logical)
	}
	if t.tell.group {
		r.Foreground = t.foreground
	}
	t.tell.termios, t.tell.group = false, false
	return r
}

// news gives the messages that tell the session what changed. While all jobs
// are stopped that can wait for a request or SIGCONT, with which it goes, and
// must: a message by the channel might come after what it says is over. The
// caller has the lock.
func (t *Terminal) news() (msgs [][]byte) {
	running := t.running()
	if running && t.tell.termios {
		msgs = append(msgs, append([]byte{'t'}, EncodeTermios(&t.logical)...))
	}
	if t.tell.size {
		b := []byte{'w'}
		for _, n := range []uint16{t.size.Row, t.size.Col, t.size.Xpixel, t.size.Ypixel} {
			b = binary.BigEndian.AppendUint16(b, n)
		}
		msgs = append(msgs, b)
	}
	if running && t.tell.group {
		msgs = append(msgs, binary.BigEndian.AppendUint32([]byte{'f'}, uint32(t.foreground)))
	}
	t.tell.size = false
	if running {
		t.tell = tell{}
	}
	return msgs
}

// receive handles what the session says.
func (t *Terminal) receive() {
	defer close(t.received)
	defer t.Detach()
	for {
		msg, err := t.ch.Recv()
		if err != nil {
			return
		}
		if len(msg) == 0 {
			continue
		}
		switch msg[0] {
		case 'd':
			t.output(msg[1:])
		case 't':
			t.jobSet(msg[1:])
		case 'w':
			t.jobResize(msg[1:])
		case 'g':
			t.jobsOwn(len(msg) == 2 && msg[1] != 0)
		case 'r':
			t.grant(msg[1:])
		}
	}
}

// jobSet is a job's tcsetattr(3): it holds at home as if done here, though
// input stays raw for now.
func (t *Terminal) jobSet(body []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctl == nil {
		return
	}
	set := t.logical
	if !decodeTermios(body, &set) || set == t.logical {
		return
	}
	t.logical = set
	if t.raw {
		t.apply(t.mode())
		t.turn(true)
		return
	}
	t.apply(set)
	t.logical = t.set
}

// jobResize is a job's TIOCSWINSZ.
func (t *Terminal) jobResize(body []byte) {
	if len(body) != 8 {
		return
	}
	word := func(i int) uint16 { return binary.BigEndian.Uint16(body[2*i:]) }
	size := unix.Winsize{Row: word(0), Col: word(1), Xpixel: word(2), Ypixel: word(3)}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctl != nil && size != t.size && unix.IoctlSetWinsize(t.ctl.fd, unix.TIOCSWINSZ, &size) == nil {
		t.size = size
	}
}

// Left is jobSet for what a command left its terminal with.
func (t *Terminal) Left(termios []byte) { t.jobSet(termios) }

func (t *Terminal) output(data []byte) {
	t.mu.Lock()
	keep := !addsCR(&t.logical)
	t.mu.Unlock()
	t.out.Lock()
	t.write(t.cr.filter(data, keep))
	if t.cr.held {
		time.AfterFunc(holdCR, t.flush)
	}
	t.out.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.written += uint64(len(data))
	close(t.progress)
	t.progress = make(chan struct{})
}

// flush writes a CR that no LF has followed: the job's own.
func (t *Terminal) flush() {
	t.out.Lock()
	defer t.out.Unlock()
	t.write(t.cr.flush())
}

// write is whole or, while nobody is attached or once the terminal has hung
// up, nothing. The caller has the lock out.
func (t *Terminal) write(b []byte) {
	if t.end == nil || t.hungUp || len(b) == 0 {
		return
	}
	err := t.end.writeAll(b, t.stop)
	t.hungUp = err != nil && err != errStopped
}

// input sends what is typed while the input is the jobs'.
func (t *Terminal) input(from *end, stop <-chan struct{}) {
	buf := make([]byte, 2+4096)
	for {
		cancel, ok := t.whenRaw(stop)
		if !ok {
			return
		}
		got, err := t.poller.wait(from.fd, unix.EPOLLIN, cancel)
		if err != nil || got&unix.EPOLLHUP == 0 && !t.mayRead(cancel) {
			continue
		}
		msg, err := t.take(from, buf)
		switch {
		case err == unix.EAGAIN:
			continue
		case err != nil:
			_ = t.ch.Send([]byte{'e'}) // hung up
			return
		}
		t.settle()
		if t.ch.Send(msg) != nil {
			return
		}
	}
}

// mayRead waits until a job reads, where that is asked. false: cancelled.
func (t *Terminal) mayRead(cancel <-chan struct{}) bool {
	t.mu.Lock()
	if t.own || t.logical.Lflag&unix.ICANON == 0 {
		t.mu.Unlock()
		return true
	}
	if t.asked++; t.asked == 0 {
		t.asked++ // 0 takes a question back
	}
	granted := make(chan struct{})
	t.granted = granted
	question := binary.BigEndian.AppendUint32([]byte{'q'}, t.asked)
	t.mu.Unlock()
	if t.ch.Send(question) != nil {
		<-cancel
		return false
	}
	select {
	case <-granted:
		return true
	case <-cancel:
		_ = t.ch.Send([]byte{'q', 0, 0, 0, 0})
		return false
	}
}

func (t *Terminal) grant(body []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(body) == 4 && t.granted != nil && binary.BigEndian.Uint32(body) == t.asked {
		close(t.granted)
		t.granted = nil
	}
}

// whenRaw waits until input is raw; what it returns is closed when that is
// over. false: detached.
func (t *Terminal) whenRaw(stop <-chan struct{}) (<-chan struct{}, bool) {
	for {
		t.mu.Lock()
		raw, changed := t.raw, t.changed
		t.mu.Unlock()
		select {
		case <-stop:
			return nil, false
		default:
		}
		if raw {
			return changed, true
		}
		select {
		case <-stop:
		case <-changed:
		}
	}
}

// take reads under the lock, since once the input is not the jobs' what lies
// there belongs to others, and gives the message that carries it.
func (t *Terminal) take(from *end, buf []byte) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.raw {
		return nil, unix.EAGAIN
	}
	body := buf[2:]
	if t.own && t.echoed > 0 {
		body = body[:min(len(body), t.echoed)]
	}
	n, err := from.tryRead(body)
	if err == nil && n == 0 && (t.own || t.logical.Lflag&unix.ICANON == 0 || from.events(0)&unix.POLLHUP != 0) {
		err = unix.EIO
	}
	if err != nil {
		return nil, err
	}
	buf[0], buf[1] = 'p', 0
	switch {
	case !t.own:
		if t.logical.Lflag&unix.ICANON != 0 {
			buf[1] = 1
		}
	case t.echoed > 0:
		t.echoed -= min(n, t.echoed)
	default:
		buf[1] = 'd'
		return buf[1 : 2+n], nil
	}
	return buf[:2+n], nil
}
