package transport

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
)

// message is one that waits for Recv.
type message struct {
	data []byte
	cost int // credit to return when it is taken
}

// Channel carries messages both ways. Its methods may be called at once from
// several goroutines.
type Channel struct {
	c     *Conn
	id    uint32
	class Class
	max   int // longest message

	sendMu sync.Mutex // held by Send: pieces of two messages never mix

	// The rest is guarded by c.mu, except that only the reader goroutine
	// touches partial.
	window    int  // bytes that the peer may have outstanding
	credit    int  // bytes that may be sent
	starved   bool // Send waited for credit since its last frame
	allowance int  // bytes that the peer may send
	due       int  // bytes taken but not yet granted again
	waiting   []message
	partial   []byte // of a message whose last piece has not come
	owed      int    // cost of partial that was not returned yet
	lastLen   int    // length of the last message of several pieces
	handler   func([]byte)
	closed    bool  // by this side
	ended     error // why nothing more comes; io.EOF: the peer closed it
	readable  sync.Cond
	writable  sync.Cond
}

// newChannel enters a channel in the table; c.mu is held.
func (c *Conn) newChannel(id uint32, class Class) *Channel {
	ch := &Channel{c: c, id: id, class: class, window: c.opt.Window, max: c.opt.MaxMessage,
		credit: initialCredit, allowance: initialCredit}
	if id == controlChannel {
		ch.window, ch.max = c.opt.controlWindow, c.opt.controlMax
	}
	ch.readable.L, ch.writable.L = &c.mu, &c.mu
	c.channels[id] = ch
	return ch
}

// ID is the channel's number, the same on both sides.
func (ch *Channel) ID() uint32 { return ch.id }

// Class is what the channel was opened with.
func (ch *Channel) Class() Class { return ch.class }

// Send sends one message. It waits for the peer's credit and returns when the
// whole message is queued for the stream; msg is the caller's again. EMSGSIZE:
// too long; EPIPE: the peer closed the channel or the link; net.ErrClosed: this
// side did. It must not be called from a handler, which credit waits for.
func (ch *Channel) Send(msg []byte) error {
	if len(msg) > ch.max {
		return fmt.Errorf("send %d bytes on channel %d, at most %d: %w", len(msg), ch.id, ch.max, syscall.EMSGSIZE)
	}
	ch.sendMu.Lock()
	defer ch.sendMu.Unlock()
	c := ch.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for first := true; first || len(msg) > 0; first = false {
		// Small change is saved up, lest pieces get tiny.
		if err := ch.waitCredit(frameCost + min(len(msg), 4096)); err != nil {
			return err
		}
		n := min(len(msg), maxPayload, ch.credit-frameCost)
		h := header{kind: frameData, channel: ch.id}
		if n < len(msg) {
			h.flags = flagMore
		}
		if ch.starved {
			h.flags |= flagStarved
			ch.starved = false
		}
		ch.credit -= n + frameCost
		c.enqueue(ch.class, h, msg[:n])
		msg = msg[n:]
	}
	return nil
}

// waitCredit returns when n bytes may be sent and the writer is not too far
// behind; c.mu is held.
func (ch *Channel) waitCredit(n int) error {
	for {
		switch {
		case ch.closed || ch.c.closing:
			return fmt.Errorf("send on channel %d: %w", ch.id, net.ErrClosed)
		case ch.ended == io.EOF:
			return fmt.Errorf("send on channel %d: closed by peer: %w", ch.id, syscall.EPIPE)
		case ch.ended != nil:
			return fmt.Errorf("send on channel %d: %w", ch.id, ch.ended)
		case ch.credit < n:
			ch.starved = true
			ch.writable.Wait()
		case len(ch.c.queue.class[ch.class]) >= maxQueued:
			ch.c.room[ch.class].Wait()
		default:
			return nil
		}
	}
}

// Recv gives the next message, which is the caller's. After the peer's Close,
// and when the peer ended the link in order, it gives what arrived before and
// then io.EOF.
func (ch *Channel) Recv() ([]byte, error) {
	c := ch.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		switch {
		case ch.closed || c.closing:
			return nil, fmt.Errorf("receive on channel %d: %w", ch.id, net.ErrClosed)
		case len(ch.waiting) > 0:
			return ch.pop(), nil
		case ch.ended == io.EOF:
			return nil, io.EOF
		case ch.ended != nil:
			return nil, fmt.Errorf("receive on channel %d: %w", ch.id, ch.ended)
		}
		ch.readable.Wait()
	}
}

// pop takes the first message that waits and returns its credit; c.mu is held.
func (ch *Channel) pop() []byte {
	m := ch.waiting[0]
	ch.waiting[0] = message{}
	ch.waiting = ch.waiting[1:]
	if len(ch.waiting) == 0 {
		ch.waiting = nil
		m.cost += ch.owed
		ch.owed = 0
	}
	ch.release(m.cost)
	return m.data
}

// Handle makes f get the messages instead of Recv. f runs on the reader's
// goroutine, in the order of the wire over all channels: it must not block and
// must not Send. What waits already is given to f
// before Handle returns. f gets nil, once, when the peer closed or reset the
// channel or the link ended, but not after Close of this side. Handle is
// called once.
func (ch *Channel) Handle(f func(msg []byte)) {
	c := ch.c
	c.mu.Lock()
	for len(ch.waiting) > 0 && !ch.closed {
		msg := ch.pop()
		c.mu.Unlock()
		f(msg)
		c.mu.Lock()
	}
	over := ch.ended != nil
	if !over {
		ch.handler = f
	}
	closed := ch.closed
	c.mu.Unlock()
	if over && !closed {
		f(nil)
	}
}

// Close tells the peer that nothing more is sent or taken. What Send accepted
// still arrives. Waiting calls end with net.ErrClosed.
func (ch *Channel) Close() error {
	return ch.drop(header{kind: frameClose}, "")
}

// Reset is Close with a reason, which the peer's calls give as their error. It
// goes ahead of nothing: what Send accepted arrives before.
func (ch *Channel) Reset(reason string) error {
	return ch.drop(header{kind: frameReset}, reason[:min(len(reason), maxReason)])
}

func (ch *Channel) drop(h header, text string) error {
	c := ch.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if ch.closed {
		return fmt.Errorf("close channel %d: %w", ch.id, net.ErrClosed)
	}
	ch.closed = true
	delete(c.channels, ch.id)
	ch.waiting, ch.handler = nil, nil
	ch.wake()
	if ch.ended == nil && c.err == nil && !c.closing {
		h.channel = ch.id
		c.enqueue(ch.class, h, []byte(text))
	}
	return nil
}

// wake makes all calls that wait look again; c.mu is held.
func (ch *Channel) wake() {
	ch.readable.Broadcast()
	ch.writable.Broadcast()
	ch.c.room[ch.class].Broadcast()
}

// end notes that nothing more comes and gives the handler that must be told;
// c.mu is held.
func (ch *Channel) end(err error) func([]byte) {
	if ch.ended != nil {
		return nil
	}
	ch.ended = err
	ch.wake()
	f := ch.handler
	ch.handler = nil
	return f
}

// release returns n bytes of credit, in big portions; c.mu is held.
func (ch *Channel) release(n int) {
	ch.due += n
	if ch.due < ch.window/4 || ch.ended != nil || ch.closed || ch.c.err != nil || ch.c.closing {
		return
	}
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], uint32(ch.due))
	ch.allowance += ch.due
	ch.due = 0
	ch.c.answer(header{kind: frameCredit, channel: ch.id}, b[:])
}

// widen doubles the window where the peer waits for credit and this side's user
// does not make it wait; c.mu is held.
func (ch *Channel) widen() {
	if ch.id == controlChannel || len(ch.waiting) > 1 || ch.window >= maxCredit {
		return
	}
	more := min(ch.window, maxCredit-ch.window)
	ch.window += more
	ch.release(more)
}

// grow makes room for n more bytes of the message that arrives; more says
// that still others follow. Only the reader's goroutine calls it.
func (ch *Channel) grow(n int, more bool) []byte {
	have := len(ch.partial)
	need := have + n
	if cap(ch.partial) < need {
		room := need
		if more {
			room = min(max(2*need, min(ch.lastLen, 2<<20)), ch.max)
		}
		b := make([]byte, have, room)
		copy(b, ch.partial)
		ch.partial = b
	}
	if ch.partial == nil {
		ch.partial = []byte{} // an empty message is not nil
	}
	ch.partial = ch.partial[:need]
	return ch.partial[have:]
}
