// Package pump moves bytes between home's descriptors and the channels of a
// link.
//
// A [Pump] carries one open file description: a pipe, a socket or whatever
// else can be read or written. A [Terminal] carries one terminal for all jobs
// that share it. Both speak the messages of package rer, "Descriptors", and
// count the data bytes that they have written at home, so that a status can
// wait for its output.
//
// The descriptors are the user's: their status flags are shared with other
// processes and never changed. Pipes and terminals are reopened, which gives
// a description of our own; sockets are used with MSG_DONTWAIT; where neither
// works a call is made only after poll(2) said that it would not block, in a
// goroutine of its own.
//
// Nothing blocks in a way that Close cannot end, with one exception: a device
// that cannot be reopened and blocks in spite of poll(2).
//
// Locks: a Terminal's mutex is held over ioctls and attempts to read, never
// over sending, receiving or waiting. A Pump's mutex is a leaf.
package pump

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// MaxData is how many bytes one data message carries at most.
const MaxData = 60 << 10

// Channel is what a pump needs of a link: whole messages in order. Send may
// block for lack of credit, and Close ends both calls with an error. The
// bytes given to Send are the caller's own again when it returns.
type Channel interface {
	Send(b []byte) error
	Recv() ([]byte, error)
	Close() error
}

// Options describe a pump.
type Options struct {
	Poller  *Poller
	Channel Channel
	FD      int    // of the description; the pump makes its own, the caller keeps FD
	Flags   uint32 // F_GETFL: the access mode says which directions there are
	SockTyp int32  // SOCK_STREAM and so on, 0 for what is no socket
	Paced   bool   // read at home only what the job has read
	// Settle is called before each data message: recalls leave first.
	Settle func()
}

// shutdownDelay is how long the end of a socket's data waits for word that the
// far end was closed altogether.
const shutdownDelay = 50 * time.Millisecond

var errStopped = errors.New("pump: stopped")

// Pump carries the bytes of one open file description.
type Pump struct {
	opt    Options
	rd, wr *end
	watch  *end // a second descriptor of wr's description, to see its reader go

	stop     chan struct{} // everything ends
	stopIn   chan struct{} // nothing more is read at home
	acked    chan struct{} // capacity 1: the job has read more
	done     chan struct{} // every goroutine has ended
	gone     chan struct{} // nothing more can be written at home
	farEnd   chan struct{} // the far side will send no more data
	outEnd   chan struct{} // and what it sent is not wanted here any more
	inDone   chan struct{} // the input goroutine has ended
	finished chan struct{} // Finish was called
	wg       sync.WaitGroup

	mu        sync.Mutex
	written   uint64
	ack       uint64        // bytes the job has read, as the session said
	sent      uint64        // bytes sent to the session; only the input goroutine changes it
	consumed  uint64        // bytes of those taken out at home
	progress  chan struct{} // closed and replaced when written or consumed grows
	finishing bool
}

// Start begins to pump.
func Start(opt Options) (*Pump, error) {
	p := &Pump{
		opt:  opt,
		stop: make(chan struct{}), stopIn: make(chan struct{}), acked: make(chan struct{}, 1),
		done: make(chan struct{}), gone: make(chan struct{}), outEnd: make(chan struct{}), farEnd: make(chan struct{}),
		finished: make(chan struct{}), progress: make(chan struct{}), inDone: make(chan struct{}),
	}
	if p.opt.Settle == nil {
		p.opt.Settle = func() {}
	}
	if err := p.open(); err != nil {
		p.closeEnds()
		return nil, err
	}
	p.run()
	return p, nil
}

func (p *Pump) open() (err error) {
	socket := p.opt.SockTyp != 0
	mode := p.opt.Flags & unix.O_ACCMODE
	if mode != unix.O_WRONLY {
		if p.rd, err = openEnd(p.opt.Poller, p.opt.FD, unix.O_RDONLY, socket); err != nil {
			return err
		}
	}
	if mode == unix.O_RDONLY {
		return nil
	}
	if p.wr, err = openEnd(p.opt.Poller, p.opt.FD, unix.O_WRONLY, socket); err != nil {
		return err
	}
	p.watch, err = dupEnd(p.opt.Poller, p.opt.FD, socket)
	return err
}

func (p *Pump) run() {
	if p.rd == nil {
		close(p.inDone)
	} else {
		p.wg.Go(func() {
			defer close(p.inDone)
			if p.opt.Paced {
				p.pacedInput()
			} else {
				p.plainInput()
			}
			p.rd.close()
		})
	}
	if p.wr == nil {
		p.once(p.outEnd)
		p.once(p.gone)
	} else {
		p.wg.Go(p.watchReader)
	}
	p.wg.Go(p.receive)
	p.wg.Go(p.supervise)
	go func() { p.wg.Wait(); p.closeEnds(); close(p.done) }()
}

// supervise closes the channel when neither direction has anything left.
func (p *Pump) supervise() {
	for _, c := range []<-chan struct{}{p.inDone, p.outEnd} {
		select {
		case <-c:
		case <-p.stop:
		}
	}
	// An input that is at its end stays open for the job's last word about
	// what it read, and so that its channel's number still means something.
	select {
	case <-p.stop:
	case <-p.finished:
	}
	p.opt.Channel.Close()
	p.halt()
}

func (p *Pump) halt() {
	p.once(p.stop)
	p.once(p.stopIn)
}

// once closes c, one of the pump's own channels, unless that was done.
func (p *Pump) once(c chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-c:
	default:
		close(c)
	}
}

func (p *Pump) closeEnds() {
	for _, e := range []*end{p.rd, p.wr, p.watch} {
		if e != nil {
			e.close()
		}
	}
}

// Written is how many data bytes of the channel have been dealt with: written
// at home, or dropped because nobody can read them any more.
func (p *Pump) Written() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.written
}

// WaitWritten returns when n data bytes have been dealt with, the pump has
// ended, or cancel is closed.
func (p *Pump) WaitWritten(n uint64, cancel <-chan struct{}) {
	p.await(func() bool { return p.written >= n }, p.stop, cancel)
}

// Consume takes what the job has read, n bytes in all, out of a paced input.
// It returns when that is done, the input has ended, or cancel is closed.
func (p *Pump) Consume(n uint64, cancel <-chan struct{}) {
	p.acknowledge(n)
	p.await(func() bool { return p.consumed >= min(n, p.sent) }, p.inDone, cancel)
}

func (p *Pump) await(ready func() bool, over, cancel <-chan struct{}) {
	for {
		p.mu.Lock()
		ok, progress := ready(), p.progress
		p.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-progress:
		case <-over:
			return
		case <-cancel:
			return
		}
	}
}

// moved wakes those who wait for written or consumed. The caller has the lock.
func (p *Pump) moved() {
	close(p.progress)
	p.progress = make(chan struct{})
}

// Finish says that the job has ended. A paced input takes out what the job has
// read, as far as that is known, and stops; when Finish returns it reads no
// more. Other directions go on for the job's descendants, and the pump ends
// with the last of them.
func (p *Pump) Finish() {
	if p.opt.Paced && p.rd != nil {
		p.once(p.stopIn)
		<-p.inDone
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.finishing {
		p.finishing = true
		close(p.finished)
	}
}

// Done is closed when the pump has ended and holds nothing.
func (p *Pump) Done() <-chan struct{} { return p.done }

// Close ends the pump at once, whatever is left, and waits for it.
func (p *Pump) Close() {
	p.halt()
	p.opt.Channel.Close()
	<-p.done
}

// receive handles what the session says.
func (p *Pump) receive() {
	defer p.halt()
	for {
		msg, err := p.opt.Channel.Recv()
		if err != nil {
			return
		}
		if len(msg) > 0 {
			p.handle(msg[0], msg[1:])
		}
	}
}

func (p *Pump) handle(kind byte, body []byte) {
	switch kind {
	case 'd':
		p.output(body)
	case 'e':
		p.endOutput()
	case 'h':
		p.once(p.stopIn)
		if p.opt.SockTyp != 0 {
			// Nobody at the far side has the socket: it will not write either.
			p.closeOutput()
		}
	case 'c':
		if len(body) == 8 {
			p.acknowledge(binary.BigEndian.Uint64(body))
		}
	}
}

// output writes data at home, whole, or drops it if nobody reads there.
func (p *Pump) output(data []byte) {
	select {
	case <-p.gone:
	case <-p.outEnd:
	default:
		if err := p.wr.writeAll(data, p.stop); err != nil && err != errStopped {
			p.lostReader()
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.written += uint64(len(data))
	p.moved()
}

// endOutput is the far side's end of data. A description is only closed: its
// other holders at home may go on writing. A socket is shut down, as the job
// did there, unless it turns out that its end was closed: that says nothing
// to others who have the socket here.
func (p *Pump) endOutput() {
	if p.wr == nil {
		return
	}
	p.once(p.farEnd)
	if p.opt.SockTyp == 0 || p.rd == nil {
		p.closeOutput()
		return
	}
	p.wg.Go(func() {
		select {
		case <-time.After(shutdownDelay):
			p.wr.shutdown()
		case <-p.outEnd:
		case <-p.finished:
		case <-p.stop:
		}
	})
}

// closeOutput lets go of the description: whoever reads at home must see its
// end when the last holder goes. Only the receiver calls it.
func (p *Pump) closeOutput() {
	p.once(p.outEnd)
	if p.wr != nil {
		p.wr.close()
	}
}

func (p *Pump) lostReader() {
	select {
	case <-p.gone:
		return
	default:
	}
	p.once(p.gone)
	_ = p.opt.Channel.Send([]byte{'h'})
}

// watchReader tells the session when the last reader at home has gone, though
// nothing is written just then.
func (p *Pump) watchReader() {
	cancel := make(chan struct{})
	over := make(chan struct{})
	defer close(over)
	go func() {
		defer close(cancel)
		select {
		case <-p.stop:
		case <-p.outEnd:
		case <-p.farEnd: // a socket then hangs up by our own shutdown
		case <-p.gone:
		case <-over:
		}
	}()
	got, err := p.opt.Poller.wait(p.watch.fd, 0, cancel)
	if err == nil && got&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		p.lostReader()
	}
	p.watch.close()
}

func (p *Pump) acknowledge(total uint64) {
	p.mu.Lock()
	p.ack = max(p.ack, total)
	p.mu.Unlock()
	select {
	case p.acked <- struct{}{}:
	default:
	}
}

// plainInput sends what can be read at home until there is no more.
func (p *Pump) plainInput() {
	buf := make([]byte, 1+MaxData)
	buf[0] = 'd'
	for {
		n, err := p.rd.read(buf[1:], p.stopIn)
		if err == errStopped {
			return
		}
		if err != nil || n == 0 && !p.datagrams() {
			p.sendEnd()
			return
		}
		p.opt.Settle()
		if p.opt.Channel.Send(buf[:1+n]) != nil {
			return
		}
	}
}

// datagrams says whether an empty message is data and no end.
func (p *Pump) datagrams() bool { return p.opt.SockTyp == unix.SOCK_DGRAM }

func (p *Pump) sendEnd() {
	p.opt.Settle()
	_ = p.opt.Channel.Send([]byte{'e'})
}

// String describes the pump for logs.
func (p *Pump) String() string { return fmt.Sprintf("pump of descriptor %d", p.opt.FD) }
