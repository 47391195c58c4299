package session

import (
	"io"
	"sync"

	"rexec/internal/transport"
)

// maxBacklog bounds what of the file channel may lie unread, in bytes. Answers
// were asked for and recalls are small: more is a home that means harm.
const maxBacklog = 256 << 20

// filesChannel is the file channel as package fsproto's client reads it. It
// notes messages as they come in, in the order of the wire over all channels,
// so that what came before a byte can be told from what came after.
type filesChannel struct {
	ch     *transport.Channel
	flood  func() // ends the link
	mu     sync.Mutex
	change sync.Cond
	queue  [][]byte
	size   int
	came   uint64 // messages that have come in
	taken  uint64 // messages that the client has dealt with
	busy   bool   // the client deals with one
	ended  bool
}

func newFilesChannel(ch *transport.Channel, flood func()) *filesChannel {
	f := &filesChannel{ch: ch, flood: flood}
	f.change.L = &f.mu
	ch.Handle(f.arrived)
	return f
}

// arrived runs on the link's reader; nil says that the link has ended.
func (f *filesChannel) arrived(msg []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if msg == nil {
		f.ended = true
	} else {
		f.queue = append(f.queue, msg)
		f.size += len(msg)
		f.came++
		if f.size > maxBacklog && !f.ended {
			f.ended = true
			go f.flood()
		}
	}
	f.change.Broadcast()
}

// Send sends a request.
func (f *filesChannel) Send(b []byte) error { return f.ch.Send(b) }

// Recv gives the next message. The call says that the one before was dealt
// with.
func (f *filesChannel) Recv() ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.busy {
		f.busy = false
		f.taken++
		f.change.Broadcast()
	}
	for len(f.queue) == 0 && !f.ended {
		f.change.Wait()
	}
	if f.ended {
		return nil, io.EOF
	}
	msg := f.queue[0]
	f.queue[0] = nil
	f.queue = f.queue[1:]
	f.size -= len(msg)
	f.busy = true
	return msg, nil
}

// settle returns when the client has dealt with all that has come so far.
func (f *filesChannel) settle() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for until := f.came; f.taken < until && !f.ended; {
		f.change.Wait()
	}
}
