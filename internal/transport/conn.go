package transport

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"rexec/rer"
)

// Class ranks channels: frames of a lower class overtake those of a higher.
type Class uint8

// The classes, most urgent first.
const (
	ClassControl Class = iota
	ClassFiles
	ClassBulk

	numClasses = 3
)

const (
	controlChannel = rer.ControlChannel
	recallsChannel = rer.RecallsChannel
	filesChannel   = rer.FilesChannel

	initialCredit = 256 << 10 // of both sides of a new channel
	maxCredit     = 16 << 20  // that may be outstanding
	maxChannels   = 65536

	// maxAnswers bounds the frames that a peer which does not read can make
	// this side queue: resets, pongs, credits.
	maxAnswers = 1 << 17

	maxQueued    = 256             // chunks of a class, 16 MiB, that Send lets pile up
	batchChunks  = 2               // chunks in one write
	flushTime    = 3 * time.Second // that Close gives to what is queued
	writeFailure = 3 * time.Second // that the reader gets to find a better error
)

// Options are what the two sides may choose on their own. Zero values mean the
// defaults.
type Options struct {
	// Window is the credit that each channel starts with, in bytes: 1 MiB, and
	// 4 MiB on the control channel; from 256 KiB to 16 MiB.
	Window int
	// MaxMessage is the longest message in bytes: 1.25 MiB, and
	// rer.MaxMessage on the control channel.
	MaxMessage int
	// Dead is how long a peer may be silent: 30 s. It is pinged at each third
	// of it.
	Dead time.Duration
	// Logf gets one line for events that are no errors of this side, such as
	// frames for unknown channels.
	Logf func(format string, args ...any)

	controlWindow, controlMax int
}

func (o *Options) fill() {
	o.controlWindow, o.controlMax = 4<<20, rer.MaxMessage
	if o.Window != 0 {
		o.Window = min(max(o.Window, initialCredit), maxCredit)
		o.controlWindow = o.Window
	} else {
		o.Window = 1 << 20
	}
	if o.MaxMessage <= 0 {
		o.MaxMessage = 5 << 18
	}
	if o.Dead <= 0 {
		o.Dead = 30 * time.Second
	}
	if o.Logf == nil {
		o.Logf = func(string, ...any) {}
	}
}

// Stats counts what crossed a link, in both directions.
type Stats struct {
	BytesIn, BytesOut   uint64 // on the stream
	FramesIn, FramesOut uint64
}

// Conn is one end of a link.
type Conn struct {
	rw     io.ReadWriteCloser
	in     *bufio.Reader // the reader goroutine's
	client bool
	opt    Options

	bytesIn, bytesOut, framesIn, framesOut atomic.Uint64
	reading                                atomic.Bool   // the reader waits for the peer
	handled                                atomic.Uint64 // counts starts and ends of handlers

	mu       sync.Mutex
	queue    queue
	wake     sync.Cond             // for the writer
	room     [numClasses]sync.Cond // a class has room again
	channels map[uint32]*Channel
	nextOwn  uint32 // number of the next channel that this side opens
	nextPeer uint32
	answers  int   // queued, see maxAnswers
	closing  bool  // Close was called
	err      error // why the link ended

	done    chan struct{} // closed when err is set
	workers sync.WaitGroup
}

// New makes a link of a byte stream and owns it from then on. One side must be
// the client, the other not.
func New(rw io.ReadWriteCloser, client bool, opt Options) *Conn {
	opt.fill()
	c := &Conn{rw: rw, client: client, opt: opt, channels: make(map[uint32]*Channel),
		nextOwn: 4, nextPeer: 3, done: make(chan struct{})}
	greeting := helloServer
	if client {
		c.nextOwn, c.nextPeer, greeting = 3, 4, helloClient
	}
	c.in = bufio.NewReaderSize(meter{c}, 128<<10)
	c.wake.L = &c.mu
	for class := range c.room {
		c.room[class].L = &c.mu
	}
	c.mu.Lock()
	c.newChannel(controlChannel, ClassControl).grant()
	c.newChannel(recallsChannel, ClassControl).grant()
	c.newChannel(filesChannel, ClassFiles).grant()
	c.mu.Unlock()
	c.workers.Add(4) // three goroutines, and the close of the stream
	go c.read()
	go c.write([]byte(greeting))
	go c.watch()
	return c
}

// grant gives the peer the part of the window that it does not have from the
// start; c.mu is held.
func (ch *Channel) grant() { ch.release(ch.window - initialCredit) }

// Open makes a channel. The peer can ask for it by its number when it gets a
// message that was sent later.
func (c *Conn) Open(class Class) (*Channel, error) {
	if class >= numClasses {
		return nil, fmt.Errorf("open channel of class %d: %w", class, syscall.EINVAL)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closing || c.err != nil:
		return nil, fmt.Errorf("open channel: %w", c.reason())
	case len(c.channels) >= maxChannels || c.nextOwn >= 1<<32-2:
		return nil, fmt.Errorf("open channel: %w", syscall.EMFILE)
	}
	ch := c.newChannel(c.nextOwn, class)
	c.nextOwn += 2
	c.enqueue(ClassControl, header{kind: frameOpen, channel: ch.id}, []byte{byte(class)})
	ch.grant()
	return ch, nil
}

// Channel gives a channel that is open: one that the peer opened, one of this
// side, or rer.ControlChannel, rer.RecallsChannel and
// rer.FilesChannel. EBADF: there is none.
func (c *Conn) Channel(id uint32) (*Channel, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ch := c.channels[id]; ch != nil {
		return ch, nil
	}
	return nil, fmt.Errorf("channel %d is not open: %w", id, syscall.EBADF)
}

// Close ends the link: what Send accepted is written and the peer is told, for
// three seconds at most; then the stream is closed. It returns when no
// goroutine is left. A handler that calls it holds it up for a second, after
// which Close returns and the rest goes on in the background.
func (c *Conn) Close() error {
	c.mu.Lock()
	if !c.closing && c.err == nil {
		c.closing = true
		for _, ch := range c.channels {
			ch.wake()
		}
		c.wake.Broadcast()
	}
	c.mu.Unlock()
	late := time.AfterFunc(flushTime, func() { c.fail(net.ErrClosed) })
	over := make(chan struct{})
	go func() { c.workers.Wait(); late.Stop(); close(over) }()
	for {
		handled := c.handled.Load()
		select {
		case <-over:
			return nil
		case <-time.After(time.Second):
		}
		if handled%2 == 1 && handled == c.handled.Load() {
			return nil // called by that handler, or it blocks
		}
	}
}

// Done is closed when the link has ended.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err says why the link ended: nil while it stands, net.ErrClosed after Close,
// io.EOF when the peer closed it.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Stats gives the counters of the link so far.
func (c *Conn) Stats() Stats {
	return Stats{c.bytesIn.Load(), c.bytesOut.Load(), c.framesIn.Load(), c.framesOut.Load()}
}

// reason is the error for calls after the end; c.mu is held.
func (c *Conn) reason() error {
	switch {
	case c.closing:
		return net.ErrClosed
	case c.err == io.EOF:
		return fmt.Errorf("link closed by peer: %w", syscall.EPIPE)
	}
	return c.err
}

// fail ends the link with err, unless it has ended. Closing the stream wakes
// the reader, which ends the channels.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	if c.closing {
		err = net.ErrClosed
	}
	c.err = err
	c.wake.Broadcast()
	c.mu.Unlock()
	close(c.done)
	c.rw.Close() // may wait for a child
	c.workers.Done()
}

// endChannels wakes everything that waits on a channel. The reader's goroutine
// calls it last.
func (c *Conn) endChannels() {
	<-c.done
	c.mu.Lock()
	var tell []func([]byte)
	for _, ch := range c.channels {
		if f := ch.end(c.err); f != nil {
			tell = append(tell, f)
		}
	}
	c.mu.Unlock()
	for _, f := range tell {
		c.call(f, nil)
	}
}

// call runs a handler.
func (c *Conn) call(f func([]byte), msg []byte) {
	c.handled.Add(1)
	defer c.handled.Add(1)
	f(msg)
}

// enqueue hands a frame to the writer; c.mu is held.
func (c *Conn) enqueue(class Class, h header, payload []byte) *chunk {
	k := c.queue.frame(class, h, payload)
	c.framesOut.Add(1)
	c.wake.Signal()
	return k
}

// answer queues a frame that the peer provoked; c.mu is held.
func (c *Conn) answer(h header, payload []byte) {
	c.answers++
	c.enqueue(ClassControl, h, payload).answers++
}

// write is the writer's goroutine.
func (c *Conn) write(greeting []byte) {
	defer c.workers.Done()
	_, err := c.rw.Write(greeting)
	c.bytesOut.Add(uint64(len(greeting)))
	for err == nil {
		batch, last := c.nextBatch()
		if batch == nil {
			return
		}
		err = c.writeBatch(batch)
		if last && err == nil {
			c.halfClose()
			return
		}
	}
	// The reader may learn more: what the peer said last, or how ssh ended.
	select {
	case <-c.done:
	case <-time.After(writeFailure):
		c.fail(fmt.Errorf("link: write: %w", err))
	}
}

// nextBatch waits for chunks; none: the link has ended. After Close it adds the
// goodbye and says that nothing follows.
func (c *Conn) nextBatch() (batch []*chunk, last bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.queue.empty() && c.err == nil && !c.closing {
		c.wake.Wait()
	}
	if c.err != nil {
		return nil, false
	}
	for len(batch) < batchChunks {
		k := c.queue.take()
		if k == nil {
			break
		}
		c.answers -= k.answers
		batch = append(batch, k)
	}
	for class := range c.room {
		if len(c.queue.class[class]) < maxQueued {
			c.room[class].Broadcast()
		}
	}
	if c.closing && c.queue.empty() {
		last = true
		c.queue.frame(ClassBulk, header{kind: frameBye}, nil)
		batch = append(batch, c.queue.take())
	}
	return batch, last
}

func (c *Conn) writeBatch(batch []*chunk) error {
	var err error
	if len(batch) == 1 {
		_, err = c.rw.Write(batch[0].buf)
		c.bytesOut.Add(uint64(len(batch[0].buf)))
	} else {
		vec := make(net.Buffers, 0, batchChunks+1)
		for _, k := range batch {
			vec = append(vec, k.buf)
		}
		var n int64
		n, err = vec.WriteTo(vectored(c.rw))
		c.bytesOut.Add(uint64(n))
	}
	for _, k := range batch {
		chunks.Put(k)
	}
	return err
}

// vectored gives what lies below rw where that can writev.
func vectored(rw io.Writer) io.Writer {
	if p, ok := rw.(*process); ok {
		return p.UnixConn
	}
	return rw
}

// halfClose tells the peer's reader that nothing follows.
func (c *Conn) halfClose() {
	if h, ok := c.rw.(interface{ CloseWrite() error }); ok {
		h.CloseWrite()
	}
}

// watch pings a peer when nothing came from it or went to it for a third of
// Dead, and gives up when it was silent for three of those in turn. Both sides
// do so: a peer that hears a lot but has nothing to say still pings. Before the
// first byte ssh may have to ask its user for something: four times as long.
func (c *Conn) watch() {
	defer c.workers.Done()
	tick := time.NewTicker(c.opt.Dead / 3)
	defer tick.Stop()
	var in, out uint64
	for silent := 0; ; {
		select {
		case <-c.done:
			return
		case <-tick.C:
		}
		nowIn, nowOut := c.bytesIn.Load(), c.bytesOut.Load()
		limit := 3
		if nowIn == 0 {
			limit = 12
		}
		if nowIn != in || !c.reading.Load() {
			silent = 0
		} else if silent++; silent >= limit {
			c.fail(fmt.Errorf("link: nothing heard for %v: %w", c.opt.Dead, syscall.ETIMEDOUT))
			return
		}
		if nowIn == in || nowOut == out {
			c.ping()
		}
		in, out = nowIn, nowOut
	}
}

// ping asks the peer for a sign of life, unless something waits to be written.
func (c *Conn) ping() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil && !c.closing && c.queue.empty() {
		c.enqueue(ClassControl, header{kind: framePing}, make([]byte, 8))
	}
}

// meter counts what the reader gets.
type meter struct{ c *Conn }

func (m meter) Read(p []byte) (int, error) {
	m.c.reading.Store(true)
	n, err := m.c.rw.Read(p)
	m.c.reading.Store(false)
	m.c.bytesIn.Add(uint64(n))
	return n, err
}

// lost makes the error for a stream that ended of itself.
func lost(err error) error {
	switch {
	case errors.Is(err, syscall.EPROTO):
		return err
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("link lost: %w", err)
}
