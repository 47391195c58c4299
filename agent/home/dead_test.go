package home

import (
	"context"
	"io"
	"sync/atomic"
	"testing"
	"time"

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

// TestCloseWaitsForForgotten closes home while a link that was given up before
// it was made is still being closed: its child must not outlive home.
func TestCloseWaitsForForgotten(t *testing.T) {
	over, dialled := make(chan struct{}), make(chan struct{})
	var closed atomic.Bool
	h := testHome(t, nil, Options{Dial: func(ctx context.Context, _ *homeproto.Ask) (io.ReadWriteCloser, error) {
		close(dialled)
		<-over
		closed.Store(true)
		return nil, ctx.Err()
	}})
	a := start(t, h, command())
	within(t, "dial", dialled)
	a.conn.Close()
	within(t, "end of the agent", a.served)
	time.AfterFunc(50*time.Millisecond, func() { close(over) })
	h.Close()
	if !closed.Load() {
		t.Error("home has ended before its link")
	}
}
