package fsproto

import (
	"bytes"
	"context"
	"errors"
	"io"
	"reflect"
	"sync"
	"syscall"
	"testing"
	"time"
)

// pipeEnd is one end of a channel in memory.
type pipeEnd struct {
	in, out chan []byte
	closed  chan struct{}
	once    *sync.Once
}

func newPipe() (a, b *pipeEnd) {
	x, y := make(chan []byte, 16), make(chan []byte, 16)
	closed, once := make(chan struct{}), new(sync.Once)
	return &pipeEnd{x, y, closed, once}, &pipeEnd{y, x, closed, once}
}

func (p *pipeEnd) Send(b []byte) error {
	select {
	case p.out <- bytes.Clone(b):
		return nil
	case <-p.closed:
		return io.ErrClosedPipe
	}
}

func (p *pipeEnd) Recv() ([]byte, error) {
	select {
	case b := <-p.in:
		return b, nil
	case <-p.closed:
		return nil, io.EOF
	}
}

func (p *pipeEnd) close() { p.once.Do(func() { close(p.closed) }) }

// fake answers a few operations; the rest panic by the nil interface.
type fake struct {
	Origin
	recall func([]Recall)

	mu       sync.Mutex
	log      []string
	release  chan struct{} // Lookup of "slow" waits for it
	canceled chan struct{} // closed when a lock wait saw its context end
	forgot   chan Forgotten
}

func (f *fake) SetRecall(r func([]Recall)) { f.recall = r }

func (f *fake) Lookup(ctx context.Context, parent Node, name string) (Entry, error) {
	switch name {
	case "none":
		return Entry{}, syscall.ENOENT
	case "slow":
		<-f.release
	case "recalled":
		f.recall([]Recall{{Node: 5, What: LeaseAttr}, {Parent: 1, Name: "\xff\x00x"}})
	}
	return Entry{Node: parent + 1, Attr: Attr{Ino: 7, Size: 1 << 40, Mtime: Time{Sec: -1, Nsec: 5}}, Lease: LeaseAttr}, nil
}

func (f *fake) Forget(list []Forgotten) {
	for _, x := range list {
		f.forgot <- x
	}
}

func (f *fake) Read(ctx context.Context, fh FH, off int64, size int) ([]byte, error) {
	return bytes.Repeat([]byte{byte(off)}, size), nil
}

func (f *fake) Write(ctx context.Context, in *WriteIn) (int, error) {
	f.note("write " + string(in.Data[:min(len(in.Data), 3)]))
	return len(in.Data), nil
}

func (f *fake) Release(fh FH, owner uint64, flock bool) { f.note("release") }

func (f *fake) Flush(ctx context.Context, fh FH, owner uint64) error { return nil }

func (f *fake) Setlk(ctx context.Context, l *Lock) error {
	<-ctx.Done()
	close(f.canceled)
	return ctx.Err()
}

func (f *fake) Readdir(ctx context.Context, fh FH, off uint64, max int) ([]Dirent, error) {
	if off == 1<<63+1 {
		return nil, nil
	}
	return []Dirent{{Ino: 1, Off: 1<<63 + 1, Type: syscall.S_IFDIR, Name: "."}, {Name: "\xfe\xff", Off: 2}}, nil
}

func (f *fake) note(s string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log = append(f.log, s)
}

func start(t *testing.T) (*Client, *fake) {
	t.Helper()
	f := &fake{release: make(chan struct{}), canceled: make(chan struct{}), forgot: make(chan Forgotten, 100)}
	a, b := newPipe()
	served := make(chan error, 1)
	go func() { served <- Serve(b, f, ServeOptions{Counts: new(Counts)}) }()
	t.Cleanup(func() {
		a.close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	c := NewClient(a)
	t.Cleanup(func() {
		a.close()
		<-c.Done()
	})
	return c, f
}

func TestRoundTrips(t *testing.T) {
	c, _ := start(t)
	ctx := context.Background()
	e, err := c.Lookup(ctx, 41, "a\xffb")
	if err != nil || e.Node != 42 || e.Attr.Mtime != (Time{Sec: -1, Nsec: 5}) || e.Attr.Size != 1<<40 || e.Lease != LeaseAttr {
		t.Fatal(e, err)
	}
	if _, err = c.Lookup(ctx, 1, "none"); err != syscall.ENOENT {
		t.Fatal(err)
	}
	for _, bad := range []string{"", ".", "..", "a/b", "a\x00"} {
		if _, err = c.Lookup(ctx, 1, bad); err != syscall.EINVAL {
			t.Fatalf("%q: %v", bad, err)
		}
	}
	list, err := c.Readdir(ctx, 1, 0, 1000)
	want := []Dirent{{Ino: 1, Off: 1<<63 + 1, Type: syscall.S_IFDIR, Name: "."}, {Name: "\xfe\xff", Off: 2}}
	if err != nil || !reflect.DeepEqual(list, want) {
		t.Fatal(list, err)
	}
	if list, err = c.Readdir(ctx, 1, 1<<63+1, 1000); err != nil || len(list) != 0 {
		t.Fatal(list, err)
	}
	if n := c.Counts()["lookup"]; n != 7 {
		t.Fatal(n)
	}
}

func TestData(t *testing.T) {
	c, _ := start(t)
	ctx := context.Background()
	for _, n := range []int{0, 1, 23, 24, 255, 256, 65535, 65536, MaxIO} {
		b, err := c.Read(ctx, 1, 'x', n)
		if err != nil || len(b) != n || bytes.Count(b, []byte("x")) != n {
			t.Fatal(n, len(b), err)
		}
		if m, err := c.Write(ctx, &WriteIn{FH: 1, Data: b}); err != nil || m != n {
			t.Fatal(n, m, err)
		}
	}
	if _, err := c.Write(ctx, &WriteIn{Data: make([]byte, MaxIO+1)}); Errno(err) != syscall.EINVAL {
		t.Fatal(err)
	}
}

func TestRecallComesBeforeTheAnswer(t *testing.T) {
	c, _ := start(t)
	var got []Recall
	c.SetRecall(func(l []Recall) { got = append(got, l...) })
	if _, err := c.Lookup(context.Background(), 1, "recalled"); err != nil {
		t.Fatal(err)
	}
	if want := []Recall{{Node: 5, What: LeaseAttr}, {Parent: 1, Name: "\xff\x00x"}}; !reflect.DeepEqual(got, want) {
		t.Fatal(got)
	}
}

func TestReleaseFollowsWrite(t *testing.T) {
	c, f := start(t)
	for range 100 {
		if _, err := c.Write(context.Background(), &WriteIn{Data: []byte("abc")}); err != nil {
			t.Fatal(err)
		}
		c.Release(1, 0, false)
	}
	if err := c.Flush(context.Background(), 1, 0); err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.log) != 200 {
		t.Fatal(len(f.log))
	}
	for i, s := range f.log {
		if want := []string{"write abc", "release"}[i%2]; s != want {
			t.Fatal(i, s)
		}
	}
}

func TestCancel(t *testing.T) {
	c, f := start(t)
	ctx, cancel := context.WithCancel(context.Background())
	errs := make(chan error)
	go func() { errs <- c.Setlk(ctx, &Lock{Wait: true}) }()
	cancel()
	if err := <-errs; err != syscall.EINTR {
		t.Fatal(err)
	}
	if c.Counts()["setlk"] == 1 { // else it ended before it was sent
		<-f.canceled
	}
}

func TestLateAnswerIsGivenBack(t *testing.T) {
	c, f := start(t)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if _, err := c.Lookup(ctx, 8, "slow"); err != syscall.EINTR {
		t.Fatal(err)
	}
	close(f.release)
	if x := <-f.forgot; x != (Forgotten{Node: 9, N: 1}) {
		t.Fatal(x)
	}
}

func TestLinkDeath(t *testing.T) {
	f := &fake{release: make(chan struct{})}
	a, b := newPipe()
	served := make(chan error, 1)
	go func() { served <- Serve(b, f, ServeOptions{}) }()
	c := NewClient(a)
	errs := make(chan error)
	go func() {
		_, err := c.Lookup(context.Background(), 1, "slow")
		errs <- err
	}()
	for c.Counts()["lookup"] == 0 {
		time.Sleep(time.Millisecond)
	}
	a.close()
	if err := <-errs; err != syscall.ENOTCONN {
		t.Fatal(err)
	}
	if _, err := c.Lookup(context.Background(), 1, "x"); err != syscall.ENOTCONN {
		t.Fatal(err)
	}
	close(f.release)
	if err := <-served; err != nil {
		t.Fatal(err)
	}
}

func TestManyAtOnce(t *testing.T) {
	c, _ := start(t)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			for range 50 {
				if e, err := c.Lookup(context.Background(), Node(i), "x"); err != nil || e.Node != Node(i+1) {
					t.Error(e, err)
				}
			}
		})
	}
	wg.Wait()
}

func TestErrno(t *testing.T) {
	for _, x := range []struct {
		err  error
		want syscall.Errno
	}{
		{nil, 0}, {syscall.ENOENT, syscall.ENOENT}, {errors.Join(errors.New("x"), syscall.EPERM), syscall.EPERM},
		{context.Canceled, syscall.EINTR}, {errors.New("x"), syscall.EIO},
	} {
		if got := Errno(x.err); got != x.want {
			t.Error(x.err, got)
		}
	}
}

// everything answers all with nothing, to fuzz what stands before it.
type everything struct{ Origin }

func FuzzServe(f *testing.F) {
	f.Add([]byte{0x82, 1, 1})
	for op := opLookup; op < opEnd; op++ {
		for _, in := range []any{&args{Name: "x"}, &MakeIn{Name: "x"}, &RenameIn{Name: "a", NewName: "b"}, &Lock{}, &XattrIn{}, []Forgotten{{}}} {
			var b bytes.Buffer
			if err := encodeTo(&b, 1, op, in, nil); err != nil {
				f.Fatal(err)
			}
			f.Add(b.Bytes())
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		fr, err := parseFrame(b)
		if err != nil || fr.code >= opEnd {
			return
		}
		defer func() {
			// The nil origin is reached: the request was well formed.
			if r := recover(); r != nil {
				if _, ok := r.(interface{ RuntimeError() }); !ok {
					panic(r)
				}
			}
		}()
		s := &server{origin: everything{}}
		if fr.code == opForget || fr.code == opRelease || fr.code == opReleasedir {
			_ = s.oneWay(fr)
			return
		}
		_, _, _ = s.handle(context.Background(), fr)
	})
}

func FuzzClient(f *testing.F) {
	for _, body := range []any{Entry{}, AttrReply{}, Created{}, []Dirent{{Name: "x"}}, "s", 5, Lock{}, Statfs{}, []byte("x"), []Recall{{}}} {
		for _, id := range []uint64{0, 1} {
			var b bytes.Buffer
			if err := encodeTo(&b, id, opRecall*(1-id), body, []byte("data")); err != nil {
				f.Fatal(err)
			}
			f.Add(b.Bytes())
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for which := range 8 {
			c := &Client{pending: map[uint64]*pending{}, done: make(chan struct{})}
			c.out.ch = replier{c, b}
			fuzzCall(c, which)
		}
	})
}

// replier answers each message with b, and then fails.
type replier struct {
	c *Client
	b []byte
}

func (r replier) Send([]byte) error {
	if err := r.c.deliver(bytes.Clone(r.b)); err != nil {
		r.c.fail(err)
	}
	r.c.fail(io.EOF)
	return nil
}

func (r replier) Recv() ([]byte, error) { return nil, io.EOF }

func fuzzCall(c *Client, which int) {
	ctx := context.Background()
	switch which {
	case 0:
		_, _ = c.Lookup(ctx, 1, "x")
	case 1:
		_, _ = c.Create(ctx, &MakeIn{})
	case 2:
		_, _ = c.Read(ctx, 1, 0, 10)
	case 3:
		_, _ = c.Readdir(ctx, 1, 0, 10)
	case 4:
		_, _ = c.Statfs(ctx, 1)
	case 5:
		_, _ = c.Getlk(ctx, &Lock{})
	case 6:
		_, _ = c.Getxattr(ctx, &XattrIn{})
	case 7:
		_, _ = c.Write(ctx, &WriteIn{Data: []byte("abc")})
	}
}
