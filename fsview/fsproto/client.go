package fsproto

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"
)

// cancelGrace is how long a call whose context ended waits for the answer to
// its cancellation.
const cancelGrace = time.Second

// Client is an [Origin] whose calls cross a channel. When the channel fails
// every call, pending and later, ends with ENOTCONN.
//
// A call whose context ends before the answer tells the far side so and
// returns the answer if that comes within a second, else EINTR; what a later
// answer hands out is given back at once.
type Client struct {
	out    sender
	counts Counts
	done   chan struct{}

	mu      sync.Mutex // guards what follows; nothing is called under it
	nextID  uint64
	pending map[uint64]*pending
	err     error // why the channel ended
	recall  func([]Recall)
}

var _ Origin = (*Client)(nil)

// pending is a request that was sent and not answered.
type pending struct {
	reply chan frame  // of one; closed when the channel failed
	late  func(frame) // set when nobody waits any more
}

// NewClient makes the Origin that Serve answers at the other end of ch.
// Nobody else may use ch. It works until ch fails.
func NewClient(ch Messages) *Client {
	c := &Client{out: sender{ch: ch}, pending: make(map[uint64]*pending), done: make(chan struct{})}
	go c.receive(ch)
	return c
}

// Counts gives the number of requests sent, and of recalls received, by name.
func (c *Client) Counts() map[string]uint64 { return c.counts.Map() }

// Done is closed when the channel has failed.
func (c *Client) Done() <-chan struct{} { return c.done }

// Err says why the channel failed; nil before.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Recalled takes a message that Serve sent by ServeOptions.Recalls. An error
// says that it was none.
func (c *Client) Recalled(msg []byte) error {
	f, err := parseFrame(msg)
	if err == nil && f.id != 0 {
		err = errMalformed
	}
	if err != nil {
		return err
	}
	return c.push(f)
}

// SetRecall is as [Origin.SetRecall] says. f runs before any later answer is
// seen, unless recalls come a way of their own, and must not call the client.
func (c *Client) SetRecall(f func([]Recall)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.recall = f
}

func (c *Client) receive(ch Messages) {
	for {
		b, err := ch.Recv()
		if err == nil {
			err = c.deliver(b)
		}
		if err != nil {
			c.fail(err)
			return
		}
	}
}

func (c *Client) deliver(b []byte) error {
	f, err := parseFrame(b)
	if err != nil {
		return err
	}
	if f.id == 0 {
		return c.push(f)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.pending[f.id]
	delete(c.pending, f.id)
	switch {
	case p == nil:
		return fmt.Errorf("answer to request %d that nobody made: %w", f.id, errMalformed)
	case p.late != nil:
		go p.late(f) // it may send, and this goroutine must go on receiving
	default:
		p.reply <- f // has room
	}
	return nil
}

func (c *Client) push(f frame) error {
	if f.code != opRecall {
		return nil // of a later version
	}
	var list []Recall
	if _, err := f.decode(&list); err != nil {
		return err
	}
	c.counts.add(opRecall)
	c.mu.Lock()
	recall := c.recall
	c.mu.Unlock()
	if recall != nil {
		recall(list)
	}
	return nil
}

func (c *Client) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.err = err
	for id, p := range c.pending {
		delete(c.pending, id)
		if p.late == nil {
			close(p.reply)
		}
	}
	close(c.done)
}

// start registers and sends a request.
func (c *Client) start(op uint64, in any, data []byte) (uint64, *pending, error) {
	p := &pending{reply: make(chan frame, 1)}
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return 0, nil, syscall.ENOTCONN
	}
	c.nextID++
	id := c.nextID
	c.pending[id] = p
	c.mu.Unlock()
	c.counts.add(op)
	if err := send(&c.out, id, op, in, data); err != nil {
		c.mu.Lock()
		delete(c.pending, id)
		c.mu.Unlock()
		if Errno(err) == errTooLong {
			return 0, nil, err
		}
		return 0, nil, syscall.ENOTCONN
	}
	return id, p, nil
}

// roundTrip sends a request and waits for its answer. late, which may be nil,
// gets a successful answer that comes when nobody waits any more.
func (c *Client) roundTrip(ctx context.Context, op uint64, in any, data []byte, late func(frame)) (frame, error) {
	if ctx.Err() != nil {
		return frame{}, syscall.EINTR
	}
	id, p, err := c.start(op, in, data)
	if err != nil {
		return frame{}, err
	}
	select {
	case f, ok := <-p.reply:
		return answer(f, ok)
	case <-ctx.Done():
	}
	c.oneWay(id, opCancel, nil)
	grace := time.NewTimer(cancelGrace)
	defer grace.Stop()
	select {
	case f, ok := <-p.reply:
		return answer(f, ok)
	case <-grace.C:
	}
	return c.abandon(p, late)
}

// abandon gives up waiting, unless the answer has come meanwhile.
func (c *Client) abandon(p *pending, late func(frame)) (frame, error) {
	c.mu.Lock()
	p.late = func(f frame) {
		if f.code == 0 && late != nil {
			late(f)
		}
	}
	c.mu.Unlock()
	select {
	case f, ok := <-p.reply: // it came before late was set
		return answer(f, ok)
	default:
		return frame{}, syscall.EINTR
	}
}

func answer(f frame, ok bool) (frame, error) {
	switch {
	case !ok:
		return f, syscall.ENOTCONN
	case f.code > 4095: // more than the kernel's MAX_ERRNO
		return f, syscall.EPROTO
	case f.code != 0:
		return f, syscall.Errno(f.code)
	}
	return f, nil
}

// oneWay sends what has no answer. A failed channel shows in later calls.
func (c *Client) oneWay(id, op uint64, in any) {
	c.counts.add(op)
	_ = send(&c.out, id, op, in, nil)
}

// call is roundTrip with a body in the answer. undo gives back what a late
// answer handed out.
func call[Out any](ctx context.Context, c *Client, op uint64, in any, undo func(*Out)) (out Out, err error) {
	var late func(frame)
	if undo != nil {
		late = func(f frame) {
			var v Out
			if _, err := f.decode(&v); err == nil {
				undo(&v)
			}
		}
	}
	f, err := c.roundTrip(ctx, op, in, nil, late)
	if err != nil {
		return out, err
	}
	if _, err := f.decode(&out); err != nil {
		return out, fmt.Errorf("%w: %w", syscall.EPROTO, err)
	}
	return out, nil
}

// do is roundTrip for calls that only succeed or fail.
func (c *Client) do(ctx context.Context, op uint64, in any) error {
	_, err := c.roundTrip(ctx, op, in, nil, nil)
	return err
}

func (c *Client) undoEntry(e *Entry) {
	if e.Node != 0 {
		c.Forget([]Forgotten{{Node: e.Node, N: 1}})
	}
}

func (c *Client) entry(ctx context.Context, op uint64, in any) (Entry, error) {
	return call(ctx, c, op, in, c.undoEntry)
}

func (c *Client) created(ctx context.Context, op uint64, in *MakeIn) (Created, error) {
	return call(ctx, c, op, in, func(v *Created) {
		c.Release(v.FH, 0, false)
		c.undoEntry(&v.Entry)
	})
}

// Lookup is part of [Origin], as are all methods below.
func (c *Client) Lookup(ctx context.Context, parent Node, name string) (Entry, error) {
	return c.entry(ctx, opLookup, &args{Node: parent, Name: name})
}

// maxForget bounds one Forget message.
const maxForget = 16 << 10

func (c *Client) Forget(list []Forgotten) {
	for len(list) > 0 {
		n := min(len(list), maxForget)
		c.oneWay(0, opForget, list[:n])
		list = list[n:]
	}
}

func (c *Client) Ref(ctx context.Context, n Node) (Entry, error) {
	return c.entry(ctx, opRef, &args{Node: n})
}

func (c *Client) Getattr(ctx context.Context, n Node, fh FH) (AttrReply, error) {
	return call[AttrReply](ctx, c, opGetattr, &args{Node: n, FH: fh}, nil)
}

func (c *Client) Setattr(ctx context.Context, in *SetattrIn) (AttrReply, error) {
	return call[AttrReply](ctx, c, opSetattr, in, nil)
}

func (c *Client) Access(ctx context.Context, n Node, mask uint32) error {
	return c.do(ctx, opAccess, &args{Node: n, Flags: mask})
}

func (c *Client) Readlink(ctx context.Context, n Node) (string, error) {
	s, err := call[string](ctx, c, opReadlink, &args{Node: n}, nil)
	if err == nil && (len(s) > 4096 || strings.ContainsRune(s, 0)) {
		return "", syscall.EPROTO
	}
	return s, err
}

func (c *Client) Create(ctx context.Context, in *MakeIn) (Created, error) {
	return c.created(ctx, opCreate, in)
}

func (c *Client) Tmpfile(ctx context.Context, in *MakeIn) (Created, error) {
	return c.created(ctx, opTmpfile, in)
}

func (c *Client) Mknod(ctx context.Context, in *MakeIn) (Entry, error) {
	return c.entry(ctx, opMknod, in)
}

func (c *Client) Mkdir(ctx context.Context, in *MakeIn) (Entry, error) {
	return c.entry(ctx, opMkdir, in)
}

func (c *Client) Symlink(ctx context.Context, in *MakeIn) (Entry, error) {
	return c.entry(ctx, opSymlink, in)
}

func (c *Client) Link(ctx context.Context, n, parent Node, name string) (Entry, error) {
	return c.entry(ctx, opLink, &args{Node: n, Parent: parent, Name: name})
}

func (c *Client) Unlink(ctx context.Context, parent Node, name string, by Caller) error {
	return c.do(ctx, opUnlink, &args{Node: parent, Name: name, Caller: by})
}

func (c *Client) Rmdir(ctx context.Context, parent Node, name string, by Caller) error {
	return c.do(ctx, opRmdir, &args{Node: parent, Name: name, Caller: by})
}

func (c *Client) Rename(ctx context.Context, in *RenameIn) error {
	return c.do(ctx, opRename, in)
}

func (c *Client) Open(ctx context.Context, n Node, flags uint32) (Opened, error) {
	return call(ctx, c, opOpen, &args{Node: n, Flags: flags}, func(v *Opened) { c.Release(v.FH, 0, false) })
}

func (c *Client) Read(ctx context.Context, fh FH, off int64, size int) ([]byte, error) {
	if size < 0 || off < 0 {
		return nil, syscall.EINVAL
	}
	size = min(size, MaxIO)
	f, err := c.roundTrip(ctx, opRead, &args{FH: fh, Off: off, N: int64(size)}, nil, nil)
	if err != nil {
		return nil, err
	}
	var none struct{}
	data, err := f.decode(&none)
	if err != nil || f.parts != 4 || len(data) > size {
		return nil, syscall.EPROTO
	}
	return data, nil
}

func (c *Client) Write(ctx context.Context, in *WriteIn) (int, error) {
	if len(in.Data) > MaxIO {
		return 0, syscall.EINVAL
	}
	head, data := *in, in.Data
	head.Data = nil
	if data == nil {
		data = []byte{}
	}
	f, err := c.roundTrip(ctx, opWrite, &head, data, nil)
	if err != nil {
		return 0, err
	}
	var n int
	if _, err := f.decode(&n); err != nil || n < 0 || n > len(data) {
		return 0, syscall.EPROTO
	}
	return n, nil
}

func (c *Client) Flush(ctx context.Context, fh FH, owner uint64) error {
	return c.do(ctx, opFlush, &args{FH: fh, Owner: owner})
}

func (c *Client) Release(fh FH, owner uint64, flock bool) {
	c.oneWay(0, opRelease, &args{FH: fh, Owner: owner, Flags: bit(flock)})
}

func bit(b bool) uint32 {
	if b {
		return 1
	}
	return 0
}

func (c *Client) Fsync(ctx context.Context, fh FH, dataOnly bool) error {
	return c.do(ctx, opFsync, &args{FH: fh, Flags: bit(dataOnly)})
}

func (c *Client) Fallocate(ctx context.Context, fh FH, mode uint32, off, n int64) error {
	return c.do(ctx, opFallocate, &args{FH: fh, Flags: mode, Off: off, N: n})
}

func (c *Client) Lseek(ctx context.Context, fh FH, off int64, whence uint32) (int64, error) {
	return call[int64](ctx, c, opLseek, &args{FH: fh, Off: off, Flags: whence}, nil)
}

func (c *Client) CopyRange(ctx context.Context, in *CopyIn) (int, error) {
	n, err := call[int](ctx, c, opCopyRange, in, nil)
	if err == nil && (n < 0 || uint64(n) > in.Len) {
		return 0, syscall.EPROTO
	}
	return n, err
}

func (c *Client) Opendir(ctx context.Context, n Node) (Opened, error) {
	return call(ctx, c, opOpendir, &args{Node: n}, func(v *Opened) { c.Releasedir(v.FH) })
}

func (c *Client) Readdir(ctx context.Context, fh FH, off uint64, max int) ([]Dirent, error) {
	list, err := call[[]Dirent](ctx, c, opReaddir, &args{FH: fh, Off: int64(off), N: int64(max)}, nil)
	if err != nil {
		return nil, err
	}
	for i := range list {
		if name := list[i].Name; name != "." && name != ".." && CheckName(name) != nil {
			return nil, syscall.EPROTO
		}
	}
	return list, nil
}

func (c *Client) Releasedir(fh FH) {
	c.oneWay(0, opReleasedir, &args{FH: fh})
}

func (c *Client) Fsyncdir(ctx context.Context, fh FH, dataOnly bool) error {
	return c.do(ctx, opFsyncdir, &args{FH: fh, Flags: bit(dataOnly)})
}

func (c *Client) Statfs(ctx context.Context, n Node) (Statfs, error) {
	return call[Statfs](ctx, c, opStatfs, &args{Node: n}, nil)
}

func (c *Client) Getxattr(ctx context.Context, in *XattrIn) ([]byte, error) {
	return call[[]byte](ctx, c, opGetxattr, in, nil)
}

func (c *Client) Listxattr(ctx context.Context, n Node) ([]byte, error) {
	return call[[]byte](ctx, c, opListxattr, &args{Node: n}, nil)
}

func (c *Client) Setxattr(ctx context.Context, in *XattrIn) error {
	return c.do(ctx, opSetxattr, in)
}

func (c *Client) Removexattr(ctx context.Context, in *XattrIn) error {
	return c.do(ctx, opRemovexattr, in)
}

func (c *Client) Getlk(ctx context.Context, l *Lock) (Lock, error) {
	return call[Lock](ctx, c, opGetlk, l, nil)
}

func (c *Client) Setlk(ctx context.Context, l *Lock) error {
	unlock := *l
	unlock.Type, unlock.Wait = syscall.F_UNLCK, false
	_, err := c.roundTrip(ctx, opSetlk, l, nil, func(frame) {
		_ = c.do(context.Background(), opSetlk, &unlock)
	})
	return err
}

func (c *Client) Getflags(ctx context.Context, n Node) (uint32, error) {
	return call[uint32](ctx, c, opGetflags, &args{Node: n}, nil)
}

func (c *Client) Setflags(ctx context.Context, n Node, flags uint32) error {
	return c.do(ctx, opSetflags, &args{Node: n, Flags: flags})
}
