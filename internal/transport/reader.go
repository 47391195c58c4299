package transport

import (
	"encoding/binary"
	"errors"
	"io"
	"syscall"
)

// read is the reader's goroutine.
func (c *Conn) read() {
	defer c.workers.Done()
	err := c.readGreeting()
	var buf [headerSize]byte
	for err == nil {
		var h header
		if h, err = readHeader(c.in, &buf); err == nil {
			c.framesIn.Add(1)
			err = c.frame(h)
		}
	}
	if err != errBye {
		err = lost(err)
	} else {
		err = io.EOF
	}
	c.fail(err)
	c.endChannels()
}

var errBye = errors.New("bye")

// frame handles one frame whose header was read. An error ends the link.
func (c *Conn) frame(h header) error {
	if h.kind == frameData {
		return c.data(h)
	}
	var buf [maxReason]byte
	payload := buf[:h.length]
	if _, err := io.ReadFull(c.in, payload); err != nil {
		return unexpected(err)
	}
	switch h.kind {
	case frameBye:
		return errBye
	case framePong:
		return nil
	}
	c.mu.Lock()
	tell, err := c.signal(h, payload)
	c.mu.Unlock()
	if tell != nil {
		c.call(tell, nil)
	}
	return err
}

// signal handles the small frames. It gives the handler that must be told of
// its channel's end; c.mu is held.
func (c *Conn) signal(h header, payload []byte) (tell func([]byte), err error) {
	ch := c.channels[h.channel]
	switch h.kind {
	case framePing:
		c.answer(header{kind: framePong}, payload)
		return nil, c.checkAnswers()
	case frameOpen:
		return nil, c.opened(h.channel, Class(payload[0]))
	case frameReset:
		if ch == nil {
			return nil, nil
		}
		tell = ch.end(&ResetError{Channel: h.channel, Reason: string(payload)})
		if !wellKnown(h.channel) && len(ch.waiting) == 0 {
			delete(c.channels, h.channel)
		}
		return tell, nil
	}
	if ch == nil {
		return nil, c.unknown(h.channel)
	}
	if h.kind == frameClose {
		return ch.end(io.EOF), nil
	}
	return nil, ch.credited(binary.BigEndian.Uint32(payload))
}

func (c *Conn) checkAnswers() error {
	if c.answers > maxAnswers {
		return violation("it does not read and %d answers wait", c.answers)
	}
	return nil
}

// opened notes a channel of the peer's; c.mu is held.
func (c *Conn) opened(id uint32, class Class) error {
	if id != c.nextPeer || class >= numClasses || id >= 1<<32-2 {
		return violation("it opened channel %d of class %d, %d is next", id, class, c.nextPeer)
	}
	c.nextPeer += 2
	if len(c.channels) >= maxChannels {
		c.reset(id, "too many channels")
		return c.checkAnswers()
	}
	ch := c.newChannel(id, class)
	if c.closing {
		return nil
	}
	ch.grant()
	return c.checkAnswers()
}

// credited adds to what may be sent; c.mu is held.
func (ch *Channel) credited(n uint32) error {
	if uint64(ch.credit)+uint64(n) > maxCredit {
		return violation("credit of %d on channel %d", n, ch.id)
	}
	ch.credit += int(n)
	ch.writable.Broadcast()
	return nil
}

// unknown answers a frame for a channel that does not exist. One that was
// closed here is only late; c.mu is held.
func (c *Conn) unknown(id uint32) error {
	if c.known(id) {
		return nil
	}
	c.opt.Logf("link: peer used channel %d, which is not open", id)
	c.reset(id, "no such channel")
	return c.checkAnswers()
}

// wellKnown says whether a channel is there from the start and for good.
func wellKnown(id uint32) bool {
	return id == controlChannel || id == recallsChannel || id == filesChannel
}

// known says whether the channel exists or existed; c.mu is held.
func (c *Conn) known(id uint32) bool {
	switch {
	case wellKnown(id):
		return true
	case id%2 == c.nextOwn%2:
		return id < c.nextOwn
	}
	return id < c.nextPeer
}

func (c *Conn) reset(id uint32, why string) {
	if c.err == nil && !c.closing {
		c.answer(header{kind: frameReset, channel: id}, []byte(why))
	}
}

// data takes one piece of a message.
func (c *Conn) data(h header) error {
	cost := h.length + frameCost
	c.mu.Lock()
	ch := c.channels[h.channel]
	if ch == nil || ch.closed || ch.ended != nil {
		err := c.unknown(h.channel)
		c.mu.Unlock()
		if err == nil {
			_, err = c.in.Discard(h.length)
		}
		return unexpected(err)
	}
	if cost > ch.allowance {
		defer c.mu.Unlock()
		return violation("%d bytes on channel %d beyond its credit of %d", cost, ch.id, ch.allowance)
	}
	if h.flags&flagStarved != 0 {
		ch.widen()
	}
	ch.allowance -= cost
	c.mu.Unlock()
	if len(ch.partial)+h.length > ch.max {
		return violation("message of more than %d bytes on channel %d", ch.max, ch.id)
	}
	more := h.flags&flagMore != 0
	several := len(ch.partial) > 0
	if _, err := io.ReadFull(c.in, ch.grow(h.length, more)); err != nil {
		return unexpected(err)
	}
	if more {
		c.mu.Lock()
		ch.piece(cost)
		err := c.checkAnswers()
		c.mu.Unlock()
		return err
	}
	msg := ch.partial
	ch.partial = nil
	if several {
		ch.lastLen = len(msg)
	}
	return c.deliver(ch, msg, cost)
}

// piece accounts for a piece that is not the last. Its credit is returned at
// once only while nothing whole waits, so that a message may be longer than
// the window and yet nobody can pile up more than the window and one message;
// c.mu is held.
func (ch *Channel) piece(cost int) {
	ch.owed += cost
	if len(ch.waiting) == 0 {
		ch.release(ch.owed)
		ch.owed = 0
	}
}

// deliver hands a whole message to the handler or to Recv.
func (c *Conn) deliver(ch *Channel, msg []byte, cost int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	cost += ch.owed
	ch.owed = 0
	if f := ch.handler; f != nil {
		c.mu.Unlock()
		c.call(f, msg)
		c.mu.Lock()
		ch.release(cost)
		return c.checkAnswers()
	}
	if !ch.closed {
		ch.waiting = append(ch.waiting, message{msg, cost})
		ch.readable.Signal()
	}
	return nil
}

// unexpected marks an end in the middle of a frame.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// ResetError is why a channel ended that the peer reset.
type ResetError struct {
	Channel uint32
	Reason  string // the peer's words
}

func (e *ResetError) Error() string {
	return "channel reset by peer: " + quote(e.Reason)
}

// Unwrap makes a reset ECONNRESET.
func (e *ResetError) Unwrap() error { return syscall.ECONNRESET }
