package home

import (
	"context"
	"io"
	"testing"

	"rexec/agent/homeproto"
	"rexec/rer"
)

// lingering is a stream whose end takes long, as that of a child does.
type lingering struct {
	io.ReadWriteCloser
	over chan struct{}
}

func (l lingering) Close() error {
	err := l.ReadWriteCloser.Close()
	<-l.over
	return err
}

// TestDeadLinkIsNotUsed has a command come while a dead link is still being
// closed.
func TestDeadLinkIsNotUsed(t *testing.T) {
	s := newServer(t, func(l *link, r *rer.Request) {
		if l.s.count() == 1 {
			l.conn.Close()
			return
		}
		l.started(r)
		l.ended(r, 7)
	})
	over := make(chan struct{})
	h := testHome(t, s, Options{Dial: func(ctx context.Context, ask *homeproto.Ask) (io.ReadWriteCloser, error) {
		rw, err := s.dial(ctx, ask)
		return lingering{rw, over}, err
	}})
	t.Cleanup(func() { close(over) })
	start(t, h, command()).refused(rer.ReasonLost)
	a := start(t, h, command())
	a.started()
	if got := a.ended().Status.Code; got != 7 {
		t.Errorf("status %d", got)
	}
}
