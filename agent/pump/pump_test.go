package pump

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// limit is how long anything may take.
const limit = 20 * time.Second

// fake is the session's side of a channel.
type fake struct {
	mu     sync.Mutex
	cond   sync.Cond
	toHome [][]byte
	got    [][]byte
	closed bool
}

func newFake() *fake {
	f := &fake{}
	f.cond.L = &f.mu
	return f
}

func (f *fake) Send(b []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return os.ErrClosed
	}
	f.got = append(f.got, bytes.Clone(b))
	f.cond.Broadcast()
	return nil
}

func (f *fake) Recv() ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.toHome) == 0 && !f.closed {
		f.cond.Wait()
	}
	if len(f.toHome) == 0 {
		return nil, io.EOF
	}
	b := f.toHome[0]
	f.toHome = f.toHome[1:]
	return b, nil
}

func (f *fake) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	f.cond.Broadcast()
	return nil
}

// say sends a message to home.
func (f *fake) say(kind byte, body ...byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.toHome = append(f.toHome, append([]byte{kind}, body...))
	f.cond.Broadcast()
}

func (f *fake) data(s string) { f.say('d', []byte(s)...) }

func (f *fake) consumed(n uint64) { f.say('c', binary.BigEndian.AppendUint64(nil, n)...) }

// until waits until ok holds of all that home has sent.
func (f *fake) until(t *testing.T, what string, ok func(data []byte, kinds string) bool) {
	t.Helper()
	eventually(t, what, func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		var data []byte
		kinds := ""
		for _, m := range f.got {
			if m[0] == 'd' {
				data = append(data, m[1:]...)
			} else {
				kinds += string(m[:1])
			}
		}
		return ok(data, kinds)
	})
}

func (f *fake) untilData(t *testing.T, want string) {
	t.Helper()
	f.until(t, "data "+want, func(data []byte, _ string) bool { return string(data) == want })
}

func (f *fake) untilKind(t *testing.T, want string) {
	t.Helper()
	f.until(t, "message "+want, func(_ []byte, kinds string) bool { return kinds == want })
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %s after %v", what, limit)
		}
	}
}

func within(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(limit):
		t.Fatalf("%s: not after %v", what, limit)
	}
}

// descriptors counts those of this process.
func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func testPoller(t *testing.T) *Poller {
	t.Helper()
	before := descriptors(t)
	p, err := NewPoller()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Close()
		eventually(t, "end of descriptors", func() bool { return descriptors(t) <= before })
	})
	return p
}

func pipe(t *testing.T) (r, w int) {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	return fds[0], fds[1]
}

func write(t *testing.T, fd int, s string) {
	t.Helper()
	if _, err := unix.Write(fd, []byte(s)); err != nil {
		t.Fatal(err)
	}
}

func start(t *testing.T, opt Options) *Pump {
	t.Helper()
	p, err := Start(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// blocking fails if the description of fd was made non-blocking.
func blocking(t *testing.T, fd int) {
	t.Helper()
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_NONBLOCK != 0 {
		t.Errorf("status flags %#x, %v", flags, err)
	}
}

func TestPlainInput(t *testing.T) {
	poller, ch := testPoller(t), newFake()
	r, w := pipe(t)
	settled := 0
	p := start(t, Options{Poller: poller, Channel: ch, FD: r, Flags: unix.O_RDONLY, Settle: func() { settled++ }})
	write(t, w, "one ")
	ch.untilData(t, "one ")
	write(t, w, "two")
	unix.Close(w)
	ch.untilData(t, "one two")
	ch.untilKind(t, "e")
	blocking(t, r)
	unix.Close(r)
	p.Finish()
	within(t, "end", p.Done())
	if settled < 3 {
		t.Errorf("settled %d times for 3 messages", settled)
	}
}

func TestInputStopsWhenFarReaderIsGone(t *testing.T) {
	poller, ch := testPoller(t), newFake()
	r, w := pipe(t)
	p := start(t, Options{Poller: poller, Channel: ch, FD: r, Flags: unix.O_RDONLY})
	unix.Close(r)
	ch.say('h')
	p.Finish()
	within(t, "end", p.Done())
	if _, err := unix.Write(w, []byte("x")); err != unix.EPIPE {
		t.Errorf("write after the last reader: %v", err)
	}
	unix.Close(w)
}

func TestOutput(t *testing.T) {
	poller, ch := testPoller(t), newFake()
	r, w := pipe(t)
	p := start(t, Options{Poller: poller, Channel: ch, FD: w, Flags: unix.O_WRONLY})
	blocking(t, w)
	unix.Close(w)
	big := bytes.Repeat([]byte("0123456789abcdef"), 3<<10) // 48 KiB, thrice: more than the pipe holds
	for range 3 {
		ch.say('d', big...)
	}
	ch.say('e')
	got := make(chan []byte)
	go func() {
		f := os.NewFile(uintptr(r), "r")
		defer f.Close()
		b, _ := io.ReadAll(f)
		got <- b
	}()
	p.WaitWritten(uint64(3*len(big)), nil)
	if p.Written() != uint64(3*len(big)) {
		t.Errorf("written %d", p.Written())
	}
	p.Finish()
	if b := <-got; !bytes.Equal(b, bytes.Repeat(big, 3)) {
		t.Errorf("%d bytes came, not the same", len(b))
	}
	within(t, "end", p.Done())
}

func TestOutputReaderGone(t *testing.T) {
	poller, ch := testPoller(t), newFake()
	r, w := pipe(t)
	p := start(t, Options{Poller: poller, Channel: ch, FD: w, Flags: unix.O_WRONLY})
	unix.Close(w)
	unix.Close(r)
	ch.untilKind(t, "h") // though nothing is written
	ch.data("dropped")
	p.WaitWritten(7, nil)
	ch.say('e')
	p.Finish()
	within(t, "end", p.Done())
}

func TestOutputReaderGoneWhileBlocked(t *testing.T) {
	poller, ch := testPoller(t), newFake()
	r, w := pipe(t)
	p := start(t, Options{Poller: poller, Channel: ch, FD: w, Flags: unix.O_WRONLY})
	unix.Close(w)
	for range 3 {
		ch.say('d', make([]byte, MaxData)...)
	}
	eventually(t, "full pipe", func() bool {
		n, _ := unix.IoctlGetInt(r, unix.TIOCINQ)
		return n == 64<<10
	})
	unix.Close(r)
	ch.untilKind(t, "h")
	p.WaitWritten(3*MaxData, nil)
}

func TestCloseWhileBlocked(t *testing.T) {
	poller := testPoller(t)
	r, w := pipe(t)
	out, in := newFake(), newFake()
	a := start(t, Options{Poller: poller, Channel: out, FD: w, Flags: unix.O_WRONLY})
	b := start(t, Options{Poller: poller, Channel: in, FD: r, Flags: unix.O_RDONLY, Paced: true})
	for range 3 {
		out.say('d', make([]byte, MaxData)...)
	}
	in.until(t, "some data", func(data []byte, _ string) bool { return len(data) > 0 })
	a.Close()
	b.Close()
	unix.Close(r)
	unix.Close(w)
}

// drain reads what is left in a pipe whose writers are gone.
func drain(t *testing.T, fd int) string {
	t.Helper()
	f := os.NewFile(uintptr(fd), "rest")
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestPacedPipe(t *testing.T) {
	for _, c := range []struct {
		name string
		read uint64
		left string
	}{{"nothing", 0, "a\nb\nc\nd\n"}, {"a line", 2, "b\nc\nd\n"}, {"all", 8, ""}, {"more than there is", 99, ""}} {
		t.Run(c.name, func(t *testing.T) {
			poller, ch := testPoller(t), newFake()
			r, w := pipe(t)
			write(t, w, "a\nb\nc\nd\n")
			unix.Close(w)
			p := start(t, Options{Poller: poller, Channel: ch, FD: r, Flags: unix.O_RDONLY, Paced: true})
			ch.untilData(t, "a\nb\nc\nd\n")
			ch.untilKind(t, "e")
			p.Consume(c.read, nil)
			p.Finish()
			within(t, "end", p.Done())
			if left := drain(t, r); left != c.left {
				t.Errorf("left %q, not %q", left, c.left)
			}
		})
	}
}

func TestPacedPipeMovesOn(t *testing.T) {
	poller, ch := testPoller(t), newFake()
	r, w := pipe(t)
	p := start(t, Options{Poller: poller, Channel: ch, FD: r, Flags: unix.O_RDONLY, Paced: true})
	want := ""
	for i := range 200 {
		line := string(bytes.Repeat([]byte{byte('a' + i%26)}, 1000))
		want += line
		write(t, w, line)
		if i%3 == 0 {
			ch.consumed(uint64(len(want)))
		}
		if i%7 == 0 {
			ch.untilData(t, want)
			ch.consumed(uint64(len(want)))
			p.Consume(uint64(len(want)), nil)
		}
	}
	write(t, w, "unread")
	ch.untilData(t, want+"unread")
	ch.consumed(uint64(len(want)))
	p.Consume(uint64(len(want)), nil)
	p.Finish()
	unix.Close(w)
	if left := drain(t, r); left != "unread" {
		t.Errorf("left %d bytes", len(left))
	}
}

func TestPacedSocket(t *testing.T) {
	poller, ch := testPoller(t), newFake()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours := os.NewFile(uintptr(fds[0]), "ours")
	defer ours.Close()
	p := start(t, Options{Poller: poller, Channel: ch, FD: fds[1], Flags: unix.O_RDWR,
		SockTyp: unix.SOCK_STREAM, Paced: true})
	write(t, fds[0], "hello")
	ch.untilData(t, "hello")
	write(t, fds[0], " world")
	ch.untilData(t, "hello world")
	ch.data("answer")
	buf := make([]byte, 64)
	if n, err := unix.Read(fds[0], buf); string(buf[:n]) != "answer" || err != nil {
		t.Errorf("got %q, %v", buf[:n], err)
	}
	p.Consume(6, nil)
	ch.say('e')
	ch.say('h') // closed there: no shutdown here
	p.Finish()
	within(t, "end", p.Done())
	if n, err := unix.Read(fds[1], buf); string(buf[:n]) != "world" || err != nil {
		t.Errorf("left %q, %v", buf[:n], err)
	}
	if _, err := unix.Write(fds[1], []byte("still open")); err != nil {
		t.Error(err)
	}
	unix.Close(fds[1])
}

func TestSocketHalfClose(t *testing.T) {
	poller, ch := testPoller(t), newFake()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	p := start(t, Options{Poller: poller, Channel: ch, FD: fds[1], Flags: unix.O_RDWR, SockTyp: unix.SOCK_STREAM})
	unix.Close(fds[1])
	ch.data("last")
	ch.say('e')
	buf := make([]byte, 64)
	n, _ := unix.Read(fds[0], buf)
	if string(buf[:n]) != "last" {
		t.Fatalf("got %q", buf[:n])
	}
	if n, err := unix.Read(fds[0], buf); n != 0 || err != nil {
		t.Errorf("after the far shutdown: %d, %v", n, err)
	}
	write(t, fds[0], "still")
	ch.untilData(t, "still")
	if err := unix.Shutdown(fds[0], unix.SHUT_WR); err != nil {
		t.Fatal(err)
	}
	ch.untilKind(t, "e")
	ch.say('h')
	p.Finish()
	within(t, "end", p.Done())
}

func TestDatagrams(t *testing.T) {
	poller, ch := testPoller(t), newFake()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	start(t, Options{Poller: poller, Channel: ch, FD: fds[1], Flags: unix.O_RDWR, SockTyp: unix.SOCK_DGRAM})
	unix.Close(fds[1])
	for _, m := range []string{"one", "", "two"} {
		if err := unix.Sendto(fds[0], []byte(m), 0, nil); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "three messages", func() bool {
		ch.mu.Lock()
		defer ch.mu.Unlock()
		return len(ch.got) == 3 && string(ch.got[1]) == "d" && string(ch.got[2]) == "dtwo"
	})
	ch.say('d')
	buf := make([]byte, 8)
	if n, err := unix.Read(fds[0], buf); n != 0 || err != nil {
		t.Errorf("empty message: %d, %v", n, err)
	}
}

func TestLinkEnds(t *testing.T) {
	poller, ch := testPoller(t), newFake()
	r, w := pipe(t)
	p := start(t, Options{Poller: poller, Channel: ch, FD: r, Flags: unix.O_RDONLY})
	ch.Close()
	within(t, "end", p.Done())
	p.Finish()
	unix.Close(r)
	unix.Close(w)
}
