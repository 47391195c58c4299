package session

import (
	"sync"

	"rexec/fsview/fsproto"
	"rexec/internal/transport"
)

// Recalls are small and carried out at once: more than this waits only if home
// means harm.
const (
	maxBacklog = 64 << 20 // bytes of messages
	maxEarly   = 1 << 20  // recalls kept for one view that is being built
)

// recalls takes what home recalls. It notes messages as they come in, in the
// order of the wire over all channels, so that what came before a byte or a
// message can be told from what came after; they are carried out by a
// goroutine of their own.
type recalls struct {
	do    func(msg []byte) error
	fault func() // ends the link

	mu     sync.Mutex
	change sync.Cond
	queue  [][]byte
	size   int
	came   uint64 // messages that have come in
	done   uint64 // messages that have been carried out
	ended  bool
}

// newRecalls has do carry out each message of ch. A link whose messages are
// bad, or too many, is ended by fault.
func newRecalls(ch *transport.Channel, do func(msg []byte) error, fault func()) *recalls {
	r := &recalls{do: do, fault: fault}
	r.change.L = &r.mu
	go r.run()
	ch.Handle(r.arrived)
	return r
}

// arrived runs on the link's reader; nil says that the link has ended.
func (r *recalls) arrived(msg []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.came++
	r.size += len(msg)
	r.queue = append(r.queue, msg)
	if msg == nil {
		r.ended = true
	} else if r.size > maxBacklog && !r.ended {
		r.ended = true
		go r.fault()
	}
	r.change.Broadcast()
}

func (r *recalls) run() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		for len(r.queue) == 0 && !r.ended {
			r.change.Wait()
		}
		if r.ended {
			return
		}
		msg := r.queue[0]
		r.queue[0] = nil
		r.queue = r.queue[1:]
		r.size -= len(msg)
		r.mu.Unlock()
		err := r.do(msg)
		r.mu.Lock()
		r.done++
		if err != nil {
			r.ended = true
			go r.fault()
		}
		r.change.Broadcast()
	}
}

// settle returns when all that has come so far has been carried out, or the
// link has ended.
func (r *recalls) settle() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for until := r.came; r.done < until && !r.ended; {
		r.change.Wait()
	}
}

// recall hands recalls of home's on to every view, or keeps them for one that
// is being built.
func (s *Session) recall(list []fsproto.Recall) {
	s.mu.Lock()
	for _, v := range s.views {
		if v.tree != nil {
			continue
		}
		if v.early = append(v.early, list...); len(v.early) > maxEarly {
			go s.conn.Close()
			v.early = nil
		}
	}
	s.mu.Unlock()
	for _, tree := range s.trees() {
		tree.Recall(s.files, list)
	}
}

// settle returns when all recalls that came so far are in force. It may wait
// for answers to file requests.
func (s *Session) settle() {
	s.recalls.settle()
	for _, tree := range s.trees() {
		tree.Settle()
	}
}
