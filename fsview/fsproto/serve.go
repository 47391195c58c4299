package fsproto

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
)

// Bounds of requests that one Serve works on at once. Waits for locks are
// counted apart, so that they cannot starve the rest; beyond the bound they
// are refused with ENOLCK. A request may hold MaxIO bytes.
const (
	maxRequests  = 256
	maxLockWaits = 4096
)

// ServeOptions are what Serve may be told.
type ServeOptions struct {
	// Counts, where not nil, counts requests by operation.
	Counts *Counts
	// BeforeReply, where not nil, runs before each answer is sent: the
	// place to send recalls that must come first.
	BeforeReply func()
	// Recalls, where not nil, is sent the origin's recalls, for the peer to
	// hand to [Client.Recalled]; nil: they go where the answers go. It may be
	// used by one goroutine at a time, as Messages.
	Recalls interface{ Send(b []byte) error }
}

// Serve answers requests that a [Client] sends over ch from o, until ch fails:
// nil at its end (io.EOF), else why. It calls o.SetRecall, so an origin
// serves one channel at a time. When it returns no request is running; what
// was handed out through ch is still o's to release.
func Serve(ch Messages, o Origin, opt ServeOptions) error {
	s := &server{
		origin: o, opt: opt, out: sender{ch: ch}, recalls: &sender{ch: opt.Recalls},
		running: make(map[uint64]context.CancelFunc),
		slots:   make(chan struct{}, maxRequests),
		waits:   make(chan struct{}, maxLockWaits),
	}
	if opt.Recalls == nil {
		s.recalls = &s.out
	}
	o.SetRecall(s.recall)
	ctx, cancel := context.WithCancel(context.Background())
	err := s.loop(ctx, ch)
	cancel()
	s.wg.Wait()
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

type server struct {
	origin       Origin
	opt          ServeOptions
	out          sender
	recalls      *sender
	slots, waits chan struct{}
	wg           sync.WaitGroup

	mu      sync.Mutex // guards running
	running map[uint64]context.CancelFunc
}

func (s *server) loop(ctx context.Context, ch Messages) error {
	for {
		b, err := ch.Recv()
		if err != nil {
			return err
		}
		f, err := parseFrame(b)
		if err != nil {
			return err
		}
		s.opt.Counts.add(f.code)
		if err := s.accept(ctx, f); err != nil {
			return err
		}
	}
}

// accept starts a request; those without an answer it runs itself, in order.
func (s *server) accept(ctx context.Context, f frame) error {
	switch f.code {
	case opForget, opRelease, opReleasedir:
		return s.oneWay(f)
	case opCancel:
		s.mu.Lock()
		if cancel := s.running[f.id]; cancel != nil {
			cancel()
		}
		s.mu.Unlock()
		return nil
	}
	if f.id == 0 {
		return fmt.Errorf("request without a number: %w", errMalformed)
	}
	return s.start(ctx, f)
}

func (s *server) oneWay(f frame) error {
	if f.code == opForget {
		var list []Forgotten
		if _, err := f.decode(&list); err != nil {
			return err
		}
		s.origin.Forget(list)
		return nil
	}
	var a args
	if _, err := f.decode(&a); err != nil {
		return err
	}
	if f.code == opRelease {
		s.origin.Release(a.FH, a.Owner, a.Flags != 0)
	} else {
		s.origin.Releasedir(a.FH)
	}
	return nil
}

func (s *server) start(ctx context.Context, f frame) error {
	ctx, cancel := context.WithCancel(ctx)
	s.mu.Lock()
	_, twice := s.running[f.id]
	if !twice {
		s.running[f.id] = cancel
	}
	s.mu.Unlock()
	if twice {
		cancel()
		return fmt.Errorf("request %d made twice: %w", f.id, errMalformed)
	}
	free, err := s.slot(f)
	if err != nil {
		s.finish(f.id, cancel)
		return s.reply(f.id, nil, nil, err)
	}
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		body, data, err := s.handle(ctx, f)
		s.finish(f.id, cancel)
		free()
		// A failed channel is what loop finds out by itself.
		_ = s.reply(f.id, body, data, err)
	}()
	return nil
}

func (s *server) finish(id uint64, cancel context.CancelFunc) {
	cancel()
	s.mu.Lock()
	delete(s.running, id)
	s.mu.Unlock()
}

// slot waits for leave to run a request; free gives it back.
func (s *server) slot(f frame) (free func(), err error) {
	if f.code == opSetlk {
		var l Lock
		if _, err := f.decode(&l); err != nil {
			return nil, syscall.EINVAL
		}
		if l.Wait {
			select {
			case s.waits <- struct{}{}:
				return func() { <-s.waits }, nil
			default:
				return nil, syscall.ENOLCK
			}
		}
	}
	s.slots <- struct{}{}
	return func() { <-s.slots }, nil
}

func (s *server) reply(id uint64, body any, data []byte, err error) error {
	if s.opt.BeforeReply != nil {
		s.opt.BeforeReply()
	}
	if err == nil {
		err = send(&s.out, id, 0, body, data)
		if Errno(err) != errTooLong {
			return err
		}
	}
	return send(&s.out, id, uint64(Errno(err)), nil, nil)
}

// maxRecalls bounds one push.
const maxRecalls = 4 << 10

func (s *server) recall(list []Recall) {
	for len(list) > 0 {
		n := min(len(list), maxRecalls)
		// A failed channel has no leases left to recall.
		_ = send(s.recalls, 0, opRecall, list[:n], nil)
		list = list[n:]
	}
}

// handler answers one operation.
type handler func(ctx context.Context, o Origin, f frame) (body any, data []byte, err error)

func (s *server) handle(ctx context.Context, f frame) (body any, data []byte, err error) {
	if f.code >= opEnd || handlers[f.code] == nil {
		return nil, nil, syscall.ENOSYS
	}
	return handlers[f.code](ctx, s.origin, f)
}

// on makes a handler of a function with one argument and one result.
func on[In, Out any](f func(Origin, context.Context, *In) (Out, error)) handler {
	return func(ctx context.Context, o Origin, fr frame) (any, []byte, error) {
		in := new(In)
		if _, err := fr.decode(in); err != nil {
			return nil, nil, syscall.EINVAL
		}
		if err := checkNames(in); err != nil {
			return nil, nil, err
		}
		out, err := f(o, ctx, in)
		if err != nil {
			return nil, nil, err
		}
		return out, nil, nil
	}
}

// done is on for functions without a result.
func done[In any](f func(Origin, context.Context, *In) error) handler {
	return func(ctx context.Context, o Origin, fr frame) (any, []byte, error) {
		in := new(In)
		if _, err := fr.decode(in); err != nil {
			return nil, nil, syscall.EINVAL
		}
		if err := checkNames(in); err != nil {
			return nil, nil, err
		}
		return nil, nil, f(o, ctx, in)
	}
}

// named is on for args whose Name must be one.
func named[Out any](f func(Origin, context.Context, *args) (Out, error)) handler {
	return on(func(o Origin, ctx context.Context, a *args) (out Out, err error) {
		if err := CheckName(a.Name); err != nil {
			return out, err
		}
		return f(o, ctx, a)
	})
}

// checkNames checks names that need no look at the operation.
func checkNames(in any) error {
	switch v := in.(type) {
	case *args:
		if v.Name != "" {
			return CheckName(v.Name)
		}
	case *MakeIn:
		if v.Name != "" {
			return CheckName(v.Name)
		}
	case *RenameIn:
		return errors.Join(CheckName(v.Name), CheckName(v.NewName))
	}
	return nil
}

func make1(f func(Origin, context.Context, *MakeIn) (Entry, error)) handler {
	return on(func(o Origin, ctx context.Context, in *MakeIn) (Entry, error) {
		if in.Name == "" {
			return Entry{}, syscall.EINVAL
		}
		return f(o, ctx, in)
	})
}

var handlers = [opEnd]handler{
	opLookup: named(func(o Origin, ctx context.Context, a *args) (Entry, error) {
		return o.Lookup(ctx, a.Node, a.Name)
	}),
	opRef: on(func(o Origin, ctx context.Context, a *args) (Entry, error) { return o.Ref(ctx, a.Node) }),
	opGetattr: on(func(o Origin, ctx context.Context, a *args) (AttrReply, error) {
		return o.Getattr(ctx, a.Node, a.FH)
	}),
	opSetattr:  on(Origin.Setattr),
	opAccess:   done(func(o Origin, ctx context.Context, a *args) error { return o.Access(ctx, a.Node, a.Flags) }),
	opReadlink: on(func(o Origin, ctx context.Context, a *args) (string, error) { return o.Readlink(ctx, a.Node) }),
	opCreate: on(func(o Origin, ctx context.Context, in *MakeIn) (Created, error) {
		if in.Name == "" {
			return Created{}, syscall.EINVAL
		}
		return o.Create(ctx, in)
	}),
	opTmpfile: on(Origin.Tmpfile),
	opMknod:   make1(Origin.Mknod),
	opMkdir:   make1(Origin.Mkdir),
	opSymlink: make1(Origin.Symlink),
	opLink: named(func(o Origin, ctx context.Context, a *args) (Entry, error) {
		return o.Link(ctx, a.Node, a.Parent, a.Name)
	}),
	opUnlink: done(func(o Origin, ctx context.Context, a *args) error {
		return errOr(CheckName(a.Name), func() error { return o.Unlink(ctx, a.Node, a.Name, a.Caller) })
	}),
	opRmdir: done(func(o Origin, ctx context.Context, a *args) error {
		return errOr(CheckName(a.Name), func() error { return o.Rmdir(ctx, a.Node, a.Name, a.Caller) })
	}),
	opRename: done(Origin.Rename),
	opOpen: on(func(o Origin, ctx context.Context, a *args) (Opened, error) {
		return o.Open(ctx, a.Node, a.Flags)
	}),
	opRead:  handleRead,
	opWrite: handleWrite,
	opFlush: done(func(o Origin, ctx context.Context, a *args) error { return o.Flush(ctx, a.FH, a.Owner) }),
	opFsync: done(func(o Origin, ctx context.Context, a *args) error { return o.Fsync(ctx, a.FH, a.Flags != 0) }),
	opFallocate: done(func(o Origin, ctx context.Context, a *args) error {
		return o.Fallocate(ctx, a.FH, a.Flags, a.Off, a.N)
	}),
	opLseek: on(func(o Origin, ctx context.Context, a *args) (int64, error) {
		return o.Lseek(ctx, a.FH, a.Off, a.Flags)
	}),
	opCopyRange: on(Origin.CopyRange),
	opOpendir:   on(func(o Origin, ctx context.Context, a *args) (Opened, error) { return o.Opendir(ctx, a.Node) }),
	opReaddir:   on(handleReaddir),
	opFsyncdir: done(func(o Origin, ctx context.Context, a *args) error {
		return o.Fsyncdir(ctx, a.FH, a.Flags != 0)
	}),
	opStatfs:      on(func(o Origin, ctx context.Context, a *args) (Statfs, error) { return o.Statfs(ctx, a.Node) }),
	opGetxattr:    on(Origin.Getxattr),
	opListxattr:   on(func(o Origin, ctx context.Context, a *args) ([]byte, error) { return o.Listxattr(ctx, a.Node) }),
	opSetxattr:    done(Origin.Setxattr),
	opRemovexattr: done(Origin.Removexattr),
	opGetlk:       on(Origin.Getlk),
	opSetlk:       done(Origin.Setlk),
	opGetflags:    on(func(o Origin, ctx context.Context, a *args) (uint32, error) { return o.Getflags(ctx, a.Node) }),
	opSetflags:    done(func(o Origin, ctx context.Context, a *args) error { return o.Setflags(ctx, a.Node, a.Flags) }),
}

func errOr(err error, f func() error) error {
	if err != nil {
		return err
	}
	return f()
}

func handleRead(ctx context.Context, o Origin, f frame) (any, []byte, error) {
	var a args
	if _, err := f.decode(&a); err != nil || a.N < 0 || a.N > MaxIO || a.Off < 0 {
		return nil, nil, syscall.EINVAL
	}
	data, err := o.Read(ctx, a.FH, a.Off, int(a.N))
	if err != nil {
		return nil, nil, err
	}
	if data == nil {
		data = []byte{}
	}
	return struct{}{}, data, nil
}

func handleWrite(ctx context.Context, o Origin, f frame) (any, []byte, error) {
	var in WriteIn
	data, err := f.decode(&in)
	if err != nil || f.parts != 4 || in.Off < 0 && !in.Append && !in.Stream {
		return nil, nil, syscall.EINVAL
	}
	in.Data = data
	n, err := o.Write(ctx, &in)
	if err != nil {
		return nil, nil, err
	}
	return n, nil, nil
}

// maxListing bounds the names and headers of one listing, in bytes.
const maxListing = 512 << 10

func handleReaddir(o Origin, ctx context.Context, a *args) ([]Dirent, error) {
	list, err := o.Readdir(ctx, a.FH, uint64(a.Off), int(min(max(a.N, 1), maxListing)))
	if list == nil {
		list = []Dirent{}
	}
	return list, err
}
