package home

import (
	"sync"

	"golang.org/x/sys/unix"

	"rexec/agent/pump"
	"rexec/internal/transport"
)

// terminals are those of a session's jobs: one channel for each terminal and
// home session, from the first job on.
type terminals struct {
	mu   sync.Mutex
	open map[terminalKey]*terminal
}

type terminalKey struct {
	dev uint64
	sid int32
}

type terminal struct {
	*pump.Terminal
	key   terminalKey
	id    uint32
	users int
}

// join adds j to the terminal that all of fds are.
func (s *session) join(j *job, key terminalKey, fds []int) (*terminal, error) {
	s.terms.mu.Lock()
	defer s.terms.mu.Unlock()
	t := s.terms.open[key]
	if t == nil {
		s.sweep()
		// Keystrokes and their echo go before bulk.
		ch, err := s.conn.Open(transport.ClassFiles)
		if err != nil {
			return nil, err
		}
		t = &terminal{Terminal: pump.NewTerminal(s.home.poller, ch, s.settle), key: key, id: ch.ID()}
		s.terms.open[key] = t
	}
	if err := t.Attach(fds, j.req.Pid); err != nil {
		return nil, err
	}
	t.users++
	return t, nil
}

// sweep closes terminals of home sessions that are no more. Their channels
// outlive their jobs: the far session's leader has its terminal from its
// birth. The caller has the lock.
func (s *session) sweep() {
	for key, t := range s.terms.open {
		if t.users == 0 && (key.sid <= 0 || unix.Kill(int(key.sid), 0) == unix.ESRCH) {
			delete(s.terms.open, key)
			t.Close()
		}
	}
}

// part takes j away; its terminal is restored when this returns, unless
// another job of it is in the foreground.
func (s *session) part(j *job, t *terminal) {
	s.terms.mu.Lock()
	defer s.terms.mu.Unlock()
	t.Leave(j)
	if t.users--; t.users == 0 {
		t.Detach()
	}
}

// closeTerminals ends them all, when the link has ended and no job is left.
func (s *session) closeTerminals() {
	s.terms.mu.Lock()
	defer s.terms.mu.Unlock()
	for key, t := range s.terms.open {
		delete(s.terms.open, key)
		t.Close()
	}
}
