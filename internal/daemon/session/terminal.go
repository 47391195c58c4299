package session

import (
	"encoding/binary"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"rexec/internal/launch"
	"rexec/rer"
)

// termiosTick is how often the pty's settings are looked at while a job has
// it: nothing tells of a change.
const termiosTick = 50 * time.Millisecond

// termiosLen is the length of the body of a 't' message.
const termiosLen = 4*4 + 1 + 19

// terminal is a pty that stands for one of home's terminals.
type terminal struct {
	key    launch.TerminalKey
	ch     channel
	master *os.File
	out    *output
	in     *input
	settle func()
	// foreground makes a process group the pty's foreground group.
	foreground func(pgrp int32)
	gone       func()

	mu    sync.Mutex
	known [termiosLen]byte // settings that both sides know
	size  unix.Winsize     // and the size
	fresh bool             // a job has made the settings, since report last told
	jobs  int
	kick  chan struct{} // capacity 1: jobs changed
	front int32         // home's foreground process group
	led   int           // the pty's, as it was last looked at, by its number outside
	own   bool          // told home: jobs have made the pty's foreground group
	once  sync.Once
	done  chan struct{}

	question atomic.Uint32 // of home's: whether a job reads; 0: none
	asked    chan struct{} // capacity 1
}

func newTerminal(key launch.TerminalKey, ch channel, master *os.File) *terminal {
	t := &terminal{key: key, ch: ch, master: master, kick: make(chan struct{}, 1), done: make(chan struct{}), asked: make(chan struct{}, 1)}
	t.out, t.in = newOutput(ch, master), newInput(ch, master, false)
	t.in.tty = true
	t.out.before = t.beforeOutput
	return t
}

// start applies what the request says of the terminal and begins to carry.
func (t *terminal) start(r *rer.Terminal) {
	t.setTermios(r.Termios)
	t.setSize(unix.Winsize{Row: r.Rows, Col: r.Cols, Xpixel: r.X, Ypixel: r.Y})
	go func() { t.out.run(); t.close() }()
	go t.receive()
	t.homeFront(r.Foreground)
	go t.watch()
	go t.answers()
}

// update applies what a later request says.
func (t *terminal) update(r *rer.Terminal) {
	t.setTermios(r.Termios)
	t.setSize(unix.Winsize{Row: r.Rows, Col: r.Cols, Xpixel: r.X, Ypixel: r.Y})
	t.homeFront(r.Foreground)
}

func (t *terminal) homeFront(pgrp int32) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.front, t.led = pgrp, 0
}

// fromTerminal says that a signal is one that home's terminal made for a key.
func fromTerminal(m *rer.Signal) bool {
	s := unix.Signal(m.Signo)
	return m.Code == siKernel && (s == unix.SIGINT || s == unix.SIGQUIT || s == unix.SIGTSTP)
}

// siKernel is si_code of signals that the kernel makes.
const siKernel = 0x80

// press sends a signal to the pty's foreground group as if its key were pressed
// here (TIOCSIG).
func (t *terminal) press(signo int) error {
	return control(t.master, func(fd int) error { return unix.IoctlSetInt(fd, unix.TIOCSIG, signo) })
}

// news applies what changed at home while a job was stopped.
func (t *terminal) news(r *rer.Terminal) {
	t.setTermios(r.Termios)
	if r.Foreground > 0 {
		t.homeFront(r.Foreground)
		t.foreground(r.Foreground)
	}
}

func (t *terminal) receive() {
	defer t.close()
	for {
		msg, err := t.ch.Recv()
		if err != nil {
			return
		}
		if len(msg) > 0 {
			t.handle(msg[0], msg[1:])
		}
	}
}

func (t *terminal) handle(kind byte, body []byte) {
	switch kind {
	case 'd':
		t.settle()
		t.in.write(body)
	case 'p':
		if len(body) > 0 {
			t.settle()
			t.given(body[0] != 0, body[1:])
		}
	case 'q':
		if len(body) == 4 {
			t.question.Store(binary.BigEndian.Uint32(body))
			select {
			case t.asked <- struct{}{}:
			default:
			}
		}
	case 't':
		t.setTermios(body)
	case 'w':
		if len(body) == 8 {
			t.setSize(unix.Winsize{
				Row: binary.BigEndian.Uint16(body), Col: binary.BigEndian.Uint16(body[2:]),
				Xpixel: binary.BigEndian.Uint16(body[4:]), Ypixel: binary.BigEndian.Uint16(body[6:]),
			})
		}
	case 'f':
		if len(body) == 4 {
			t.homeFront(int32(binary.BigEndian.Uint32(body)))
			t.foreground(int32(binary.BigEndian.Uint32(body)))
		}
	}
}

// watch looks for changed settings while a job has the terminal.
func (t *terminal) watch() {
	for {
		var tick <-chan time.Time
		if t.used() {
			tick = time.After(termiosTick)
		}
		select {
		case <-t.done:
			return
		case <-t.kick:
		case <-tick:
			t.out.drain() // what was written under the former settings goes first
			t.compare()
		}
	}
}

func (t *terminal) used() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.jobs > 0
}

// join and leave count the jobs that have the terminal.
func (t *terminal) join()  { t.count(1) }
func (t *terminal) leave() { t.count(-1) }

func (t *terminal) count(n int) {
	t.mu.Lock()
	if t.jobs == 0 {
		t.own, t.led = false, 0
		_ = t.ch.Send([]byte{'g', 0})
	}
	t.jobs += n
	t.mu.Unlock()
	select {
	case t.kick <- struct{}{}:
	default:
	}
}

// beforeOutput tells home of changed settings before it gets what was written
// under them. What was read may be older than the settings: where these have
// carriage returns added again they wait for the next tick, as home would add
// them to the older bytes; until then it shows bytes as they come.
func (t *terminal) beforeOutput() {
	t.mu.Lock()
	defer t.mu.Unlock()
	now, err := t.termios()
	if err == nil && addsReturns(now) && !addsReturns(t.known) {
		return
	}
	if t.look() {
		_ = t.ch.Send(append([]byte{'t'}, t.known[:]...))
	}
}

func addsReturns(b [termiosLen]byte) bool {
	const both = unix.OPOST | unix.ONLCR
	return binary.BigEndian.Uint32(b[4:])&both == both
}

// compare tells home of settings and a size that a job has changed.
func (t *terminal) compare() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.look() {
		_ = t.ch.Send(append([]byte{'t'}, t.known[:]...))
	}
}

// report gives the settings that jobs have made since the last report, nil
// where they have made none. They go along with the job's end or stop, and not
// by a message that may come when home's shell has set its own already.
func (t *terminal) report() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.look()
	if !t.fresh {
		return nil
	}
	t.fresh = false
	return append([]byte(nil), t.known[:]...)
}

// look reads what jobs may have changed, and tells home of a new size; mu is
// held. It says whether the settings are new.
func (t *terminal) look() bool {
	if size, err := t.winsize(); err == nil && size != t.size {
		t.size = size
		msg := []byte{'w'}
		for _, n := range []uint16{size.Row, size.Col, size.Xpixel, size.Ypixel} {
			msg = binary.BigEndian.AppendUint16(msg, n)
		}
		_ = t.ch.Send(msg)
	}
	t.lead()
	now, err := t.termios()
	if err != nil || now == t.known {
		return false
	}
	t.known, t.fresh = now, true
	return true
}

// lead tells home whether the pty's foreground group is one that a job has
// made, as shells do; mu is held.
func (t *terminal) lead() {
	group := 0
	err := control(t.master, func(fd int) (err error) {
		group, err = unix.IoctlGetInt(fd, unix.TIOCGPGRP)
		return err
	})
	if err != nil || group <= 0 || group == t.led {
		return
	}
	inner := innerPid(group)
	if inner == 0 {
		return // its leader has ended; whose it was stays true
	}
	comm, _ := procStat("/proc/" + strconv.Itoa(group) + "/stat")
	own := inner != t.front && comm != "ghost"
	if t.led = group; own == t.own {
		return
	}
	t.own = own
	msg := []byte{'g', 0}
	if own {
		msg[1] = 1
	}
	_ = t.ch.Send(msg)
}

func (t *terminal) winsize() (size unix.Winsize, err error) {
	err = control(t.master, func(fd int) error {
		got, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
		if err == nil {
			size = *got
		}
		return err
	})
	return size, err
}

// termios reads the pty's settings as a 't' message has them.
func (t *terminal) termios() (b [termiosLen]byte, err error) {
	err = control(t.master, func(fd int) error {
		tio, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err != nil {
			return err
		}
		b = encodeTermios(tio)
		return nil
	})
	return b, err
}

func encodeTermios(tio *unix.Termios) (b [termiosLen]byte) {
	for i, flags := range []uint32{tio.Iflag, tio.Oflag, tio.Cflag, tio.Lflag} {
		binary.BigEndian.PutUint32(b[4*i:], flags)
	}
	b[16] = tio.Line
	copy(b[17:], tio.Cc[:])
	return b
}

// setTermios applies home's settings. A speed that has no code of its own
// (BOTHER) is not in them.
func (t *terminal) setTermios(b []byte) {
	if len(b) != termiosLen {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	_ = control(t.master, func(fd int) error {
		tio, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err != nil {
			return err
		}
		cflag, keep := binary.BigEndian.Uint32(b[8:]), uint32(0)
		if cflag&unix.CBAUD == unix.BOTHER {
			keep = unix.CBAUD | unix.CIBAUD
		}
		tio.Iflag = binary.BigEndian.Uint32(b)
		tio.Oflag = binary.BigEndian.Uint32(b[4:])
		tio.Cflag = cflag&^keep | tio.Cflag&keep
		tio.Lflag = binary.BigEndian.Uint32(b[12:])
		tio.Line = b[16]
		copy(tio.Cc[:], b[17:])
		return unix.IoctlSetTermios(fd, unix.TCSETS, tio)
	})
	// What a pty cannot have (parity, another discipline) is no change by a job.
	if now, err := t.termios(); err == nil {
		t.known, t.fresh = now, false
	}
}

func (t *terminal) setSize(size unix.Winsize) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.size = size
	_ = control(t.master, func(fd int) error {
		old, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
		if err == nil && *old == size {
			return nil
		}
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &size)
	})
}

// close ends the terminal: its foreground group gets SIGHUP.
func (t *terminal) close() {
	t.once.Do(func() {
		close(t.done)
		t.gone()
		t.out.finish()
		t.in.stop()
		t.master.Close()
		_ = t.ch.Close()
	})
}
