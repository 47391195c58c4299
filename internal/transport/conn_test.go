package transport

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand"
	"net"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"rexec/rer"
)

// patience is how long a test waits for what must happen.
const patience = 30 * time.Second

// eventually waits until ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("did not happen in %v: %s", patience, what)
		}
	}
}

// within fails the test when f does not return in time.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { f(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
		buf := make([]byte, 1<<20)
		t.Fatalf("not done in %v: %s\n%s", patience, what, buf[:runtime.Stack(buf, true)])
	}
}

// noLeak checks at the test's end that no goroutine of this package stays.
func noLeak(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		t.Helper()
		eventually(t, "goroutines end", func() bool {
			buf := make([]byte, 1<<20)
			return !strings.Contains(string(buf[:runtime.Stack(buf, true)]), "transport.(*Conn)")
		})
	})
}

func pair(t *testing.T) (client, server *Conn) {
	t.Helper()
	noLeak(t)
	a, b := Pipe()
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// both gives the two ends of a channel that a opens.
func both(t *testing.T, a, b *Conn, class Class) (x, y *Channel) {
	t.Helper()
	x = must(a.Open(class))
	eventually(t, "peer learns of the channel", func() bool {
		var err error
		y, err = b.Channel(x.ID())
		return err == nil
	})
	return x, y
}

func TestWellKnown(t *testing.T) {
	a, b := pair(t)
	for _, id := range []uint32{rer.ControlChannel, rer.RecallsChannel, rer.FilesChannel} {
		x, y := must(a.Channel(id)), must(b.Channel(id))
		for _, msg := range []string{"", "hello", strings.Repeat("x", 1<<20)} {
			if err := x.Send([]byte(msg)); err != nil {
				t.Fatal(err)
			}
			if got := must(y.Recv()); string(got) != msg || got == nil {
				t.Fatalf("channel %d: %d bytes, want %d", id, len(got), len(msg))
			}
		}
	}
}

// TestRecallsPrecede: recalls arrive before the control messages and the bytes
// that were sent after them, however busy the link is.
func TestRecallsPrecede(t *testing.T) {
	a, b := pair(t)
	files := must(a.Channel(rer.FilesChannel))
	control, recalls := must(a.Channel(rer.ControlChannel)), must(a.Channel(rer.RecallsChannel))
	bulk, farBulk := both(t, a, b, ClassBulk)
	must(b.Channel(rer.FilesChannel)).Handle(func([]byte) {})
	var recalled uint64 // the reader's only
	const total = 3000
	over := make(chan struct{}, 2)
	must(b.Channel(rer.RecallsChannel)).Handle(func(msg []byte) {
		if msg != nil {
			recalled = binary.BigEndian.Uint64(msg)
		}
	})
	follows := func(msg []byte) {
		if msg == nil {
			return
		}
		n := binary.BigEndian.Uint64(msg)
		if recalled < n {
			t.Errorf("message %d came after recall %d", n, recalled)
		}
		if n > total-2 {
			over <- struct{}{}
		}
	}
	must(b.Channel(rer.ControlChannel)).Handle(follows)
	farBulk.Handle(follows)
	stop := make(chan struct{})
	load := make(chan struct{})
	go func() {
		defer close(load)
		for block := make([]byte, 200<<10); ; {
			select {
			case <-stop:
				return
			default:
				if files.Send(block) != nil {
					return
				}
			}
		}
	}()
	for n := uint64(1); n <= total; n++ {
		recall, msg := make([]byte, 8+int(n)*7), make([]byte, 8+int(n)*3)
		binary.BigEndian.PutUint64(recall, n)
		binary.BigEndian.PutUint64(msg, n)
		ch := control
		if n%2 == 0 {
			ch = bulk
		}
		if err := errors.Join(recalls.Send(recall), ch.Send(msg)); err != nil {
			t.Fatal(err)
		}
	}
	within(t, "the last messages", func() { <-over; <-over })
	close(stop)
	within(t, "end of load", func() { <-load })
}

func TestNumbers(t *testing.T) {
	a, b := pair(t)
	x, y := must(a.Open(ClassBulk)), must(b.Open(ClassFiles))
	if x.ID() != 3 || y.ID() != 4 || must(a.Open(ClassBulk)).ID() != 5 {
		t.Fatalf("numbers %d and %d", x.ID(), y.ID())
	}
	if _, err := a.Channel(99); !errors.Is(err, syscall.EBADF) {
		t.Fatal(err)
	}
	if _, err := a.Open(numClasses); !errors.Is(err, syscall.EINVAL) {
		t.Fatal(err)
	}
	eventually(t, "open arrives", func() bool { _, err := a.Channel(4); return err == nil })
	if must(a.Channel(4)).Class() != ClassFiles {
		t.Fatal("class lost")
	}
}

// A channel's number may be told on the control channel at once.
func TestOpenThenTell(t *testing.T) {
	a, b := pair(t)
	got := make(chan error, 100)
	must(b.Channel(0)).Handle(func(msg []byte) {
		if msg != nil {
			_, err := b.Channel(binary.BigEndian.Uint32(msg))
			got <- err
		}
	})
	for range 100 {
		ch := must(a.Open(ClassBulk))
		must(a.Channel(0)).Send(binary.BigEndian.AppendUint32(nil, ch.ID()))
		if err := <-got; err != nil {
			t.Fatal(err)
		}
	}
}

func TestCloseOfChannel(t *testing.T) {
	a, b := pair(t)
	x, y := both(t, a, b, ClassBulk)
	x.Send([]byte("last"))
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	if err := x.Close(); !errors.Is(err, net.ErrClosed) {
		t.Fatal(err)
	}
	if err := x.Send(nil); !errors.Is(err, net.ErrClosed) {
		t.Fatal(err)
	}
	if got := must(y.Recv()); string(got) != "last" {
		t.Fatal(string(got))
	}
	if _, err := y.Recv(); err != io.EOF {
		t.Fatal(err)
	}
	if err := y.Send(nil); !errors.Is(err, syscall.EPIPE) {
		t.Fatal(err)
	}
	y.Close()
	if z := must(a.Open(ClassBulk)); z.ID() == x.ID() {
		t.Fatal("number used again")
	}
}

// What was on its way to a channel that is closed is dropped in silence.
func TestLateFrames(t *testing.T) {
	a, b := pair(t)
	for range 200 {
		x, y := both(t, a, b, ClassBulk)
		go func() { y.Send(make([]byte, 1000)); y.Close() }()
		x.Close()
	}
	x, y := both(t, a, b, ClassBulk)
	x.Send([]byte("still here"))
	must(y.Recv())
}

func TestReset(t *testing.T) {
	a, b := pair(t)
	x, y := both(t, a, b, ClassBulk)
	x.Send([]byte("before"))
	x.Reset("bad\nthing")
	must(y.Recv())
	_, err := y.Recv()
	var reset *ResetError
	if !errors.As(err, &reset) || reset.Reason != "bad\nthing" || strings.Contains(err.Error(), "\n") {
		t.Fatal(err)
	}
	if err := y.Send(nil); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatal(err)
	}
}

func TestHandle(t *testing.T) {
	a, b := pair(t)
	x, y := both(t, a, b, ClassBulk)
	for i := range 50 {
		x.Send([]byte{byte(i)})
	}
	var got []byte
	over := make(chan struct{})
	y.Handle(func(msg []byte) {
		if msg == nil {
			close(over)
			return
		}
		got = append(got, msg[0])
	})
	for i := range 50 {
		x.Send([]byte{byte(50 + i)})
	}
	x.Close()
	within(t, "end of handler", func() { <-over })
	for i, v := range got {
		if len(got) != 100 || int(v) != i {
			t.Fatalf("%d messages, %v", len(got), got)
		}
	}
}

func TestHandleAtEndOfLink(t *testing.T) {
	a, b := pair(t)
	over := make(chan struct{}, 3)
	f := func(msg []byte) {
		if msg == nil {
			over <- struct{}{}
		}
	}
	must(b.Channel(0)).Handle(f)
	must(a.Channel(0)).Handle(f)
	a.Close()
	within(t, "both handlers end", func() { <-over; <-over })
	must(b.Channel(0)).Handle(f) // too late: at once
	within(t, "late handler", func() { <-over })
	if a.Err() != net.ErrClosed || b.Err() != io.EOF {
		t.Fatal(a.Err(), b.Err())
	}
}

func TestCloseFromHandler(t *testing.T) {
	a, b := pair(t)
	over := make(chan struct{})
	must(b.Channel(0)).Handle(func(msg []byte) {
		if msg == nil {
			close(over)
			return
		}
		b.Close()
	})
	must(a.Channel(0)).Send([]byte("end it"))
	within(t, "both ends close", func() { <-over; <-a.Done() })
	if a.Err() != io.EOF || b.Err() != net.ErrClosed {
		t.Fatal(a.Err(), b.Err())
	}
}

// Close writes what Send accepted.
func TestCloseFlushes(t *testing.T) {
	a, b := pair(t)
	x, y := both(t, a, b, ClassBulk)
	msg := bytes.Repeat([]byte("m"), 900<<10) // within the window
	eventually(t, "credit comes", func() bool { a.mu.Lock(); defer a.mu.Unlock(); return x.credit > len(msg)+1000 })
	if err := x.Send(msg); err != nil {
		t.Fatal(err)
	}
	a.Close()
	if got := must(y.Recv()); !bytes.Equal(got, msg) {
		t.Fatalf("%d bytes", len(got))
	}
	if _, err := y.Recv(); err != io.EOF {
		t.Fatal(err)
	}
}

// A peer that takes nothing stops Send; Close wakes it.
func TestBackPressure(t *testing.T) {
	a, b := pair(t)
	x, y := both(t, a, b, ClassBulk)
	result := make(chan int)
	go func() {
		n := 0
		for x.Send(make([]byte, 10<<10)) == nil {
			n++
		}
		result <- n
	}()
	eventually(t, "sender waits", func() bool { a.mu.Lock(); defer a.mu.Unlock(); return x.credit < 10<<10 })
	// Other channels go on.
	must(a.Channel(0)).Send([]byte("hi"))
	must(must(b.Channel(0)).Recv())
	for range 30 {
		must(y.Recv())
	}
	a.Close()
	within(t, "sender wakes", func() {
		if n := <-result; n < 50 || n > 140 {
			t.Errorf("%d messages sent", n)
		}
	})
}

// Messages longer than the window pass, but do not pile up.
func TestLongMessages(t *testing.T) {
	noLeak(t)
	opt := Options{Window: initialCredit, MaxMessage: 3 << 20}
	a, b := PipeOptions(opt, opt)
	defer b.Close()
	defer a.Close()
	x, y := both(t, a, b, ClassBulk)
	go func() {
		for i := range 20 {
			x.Send(bytes.Repeat([]byte{byte(i)}, 3<<20))
		}
		x.Close()
	}()
	eventually(t, "first message waits", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return len(y.waiting) == 1 })
	for i := range 20 {
		b.mu.Lock()
		if len(y.waiting)*(3<<20) > maxCredit+y.max {
			t.Errorf("%d messages of 3 MiB wait", len(y.waiting))
		}
		b.mu.Unlock()
		if got := must(y.Recv()); len(got) != 3<<20 || got[0] != byte(i) {
			t.Fatalf("message %d: %d bytes of %d", i, len(got), got[0])
		}
	}
	if err := y.Send(make([]byte, 3<<20+1)); !errors.Is(err, syscall.EMSGSIZE) {
		t.Fatal(err)
	}
}

func TestControlTakesLargestMessage(t *testing.T) {
	if testing.Short() {
		return
	}
	a, b := pair(t)
	go must(a.Channel(0)).Send(make([]byte, rer.MaxMessage))
	if got := must(must(b.Channel(0)).Recv()); len(got) != rer.MaxMessage {
		t.Fatal(len(got))
	}
}

// stamp is a message that tells of itself: number, channel, checksum.
func stamp(r *rand.Rand, channel uint32, seq int, size int) []byte {
	msg := make([]byte, 12+size)
	binary.BigEndian.PutUint32(msg, channel)
	binary.BigEndian.PutUint32(msg[4:], uint32(seq))
	r.Read(msg[12:])
	binary.BigEndian.PutUint32(msg[8:], crc32.ChecksumIEEE(msg[12:]))
	return msg
}

func checkStamp(msg []byte, channel uint32, seq int) error {
	if len(msg) < 12 || binary.BigEndian.Uint32(msg) != channel || int(binary.BigEndian.Uint32(msg[4:])) != seq ||
		binary.BigEndian.Uint32(msg[8:]) != crc32.ChecksumIEEE(msg[12:]) {
		return fmt.Errorf("channel %d: message %d is not whole or not in its place", channel, seq)
	}
	return nil
}

// Property: whatever is sent at once on many channels, both ways, arrives
// whole and in each channel's order, and no side exceeds its credit (the peer
// would end the link).
func TestManyChannels(t *testing.T) {
	a, b := pair(t)
	const channels, messages = 20, 150
	var all sync.WaitGroup
	run := func(x, y *Channel, seed int64) {
		all.Add(2)
		go func() {
			defer all.Done()
			r := rand.New(rand.NewSource(seed))
			for i := range messages {
				size := r.Intn(200)
				if r.Intn(20) == 0 {
					size = r.Intn(600 << 10)
				}
				if err := x.Send(stamp(r, x.ID(), i, size)); err != nil {
					t.Error(err)
					return
				}
			}
			x.Send([]byte("end"))
		}()
		go func() {
			defer all.Done()
			for i := range messages {
				msg, err := y.Recv()
				if err == nil {
					err = checkStamp(msg, y.ID(), i)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
			if msg, err := y.Recv(); string(msg) != "end" {
				t.Error(err)
			}
		}()
	}
	for i := range channels {
		x, y := both(t, a, b, Class(i%numClasses))
		run(x, y, int64(i))
		run(y, x, int64(i+1000))
	}
	within(t, "all messages", all.Wait)
	if a.Err() != nil || b.Err() != nil {
		t.Fatal(a.Err(), b.Err())
	}
}

// recorder keeps what one side writes.
type recorder struct {
	io.ReadWriteCloser
	mu   sync.Mutex
	data []byte
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	r.data = append(r.data, p...)
	r.mu.Unlock()
	return r.ReadWriteCloser.Write(p)
}

// Property: messages that one goroutine sends in turn are on the wire so that
// each is whole before any frame of a later one of the same or a higher class.
func TestPriorities(t *testing.T) {
	noLeak(t)
	p, q := newBuffer(), newBuffer()
	tape := &recorder{ReadWriteCloser: &memory{r: p, w: q}}
	a := New(tape, true, Options{})
	b := New(&memory{r: q, w: p}, false, Options{})
	r := rand.New(rand.NewSource(1))
	var chs []*Channel
	for i := range 9 {
		x, y := both(t, a, b, Class(i%numClasses))
		y.Handle(func([]byte) {})
		chs = append(chs, x)
	}
	const total = 2000
	class := make([]Class, total)
	for i := range total {
		ch := chs[r.Intn(len(chs))]
		class[i] = ch.Class()
		size := r.Intn(300)
		if r.Intn(10) == 0 {
			size = r.Intn(200 << 10)
		}
		if err := ch.Send(stamp(r, ch.ID(), i, size)); err != nil {
			t.Fatal(err)
		}
	}
	a.Close()
	b.Close()
	first, last, overtook := pieces(t, tape.data, total)
	for i := range total {
		for j := i + 1; j < total; j++ {
			if class[i] <= class[j] && last[i] > first[j] {
				t.Fatalf("message %d of class %d ends at frame %d, later %d of class %d starts at %d",
					i, class[i], last[i], j, class[j], first[j])
			}
		}
	}
	t.Logf("%d messages went ahead of earlier ones", overtook)
}

// pieces says at which frames each stamped message starts and ends.
func pieces(t *testing.T, wire []byte, total int) (first, last []int, overtook int) {
	in := bytes.NewReader(wire[len(helloClient):])
	first, last = make([]int, total), make([]int, total)
	open := map[uint32]int{}
	high := -1
	var buf [headerSize]byte
	for n := 0; ; n++ {
		h, err := readHeader(in, &buf)
		if err == io.EOF {
			return first, last, overtook
		}
		if err != nil {
			t.Fatal(err)
		}
		payload := make([]byte, h.length)
		io.ReadFull(in, payload)
		if h.kind != frameData {
			continue
		}
		seq, ok := open[h.channel]
		if !ok {
			seq = int(binary.BigEndian.Uint32(payload[4:]))
			first[seq], open[h.channel] = n, seq
			if seq < high {
				overtook++
			}
			high = max(high, seq)
		}
		if h.flags&flagMore == 0 {
			last[seq] = n
			delete(open, h.channel)
		}
	}
}

// The oldest frames go now and then, but never before what they follow.
func TestQueueFairness(t *testing.T) {
	var q queue
	bulk := make([]byte, maxPayload)
	q.frame(ClassBulk, header{kind: frameData, channel: 9}, bulk)
	for range 3 * fairness {
		q.frame(ClassFiles, header{kind: frameData, channel: 2}, bulk)
	}
	q.frame(ClassBulk, header{kind: frameData, channel: 11}, bulk)
	var at []int
	for i := 0; !q.empty(); i++ {
		k := q.take()
		if binary.BigEndian.Uint32(k.buf[4:]) > 2 {
			at = append(at, i)
		}
	}
	if len(at) != 2 || at[0] >= fairness || at[1] != 3*fairness+1 {
		t.Fatalf("bulk went at %v", at)
	}
}

// Many goroutines open, use and close while the link ends from both sides.
func TestEndUnderLoad(t *testing.T) {
	for round := range 4 {
		a, b := pair(t)
		x, y := both(t, a, b, ClassBulk)
		var all sync.WaitGroup
		for i := range 8 {
			all.Add(1)
			go func() {
				defer all.Done()
				c := []*Conn{a, b}[i%2]
				for {
					ch, err := c.Open(Class(i % numClasses))
					if err != nil {
						return
					}
					ch.Send(make([]byte, 5000))
					ch.Close()
				}
			}()
		}
		all.Add(2)
		go func() { defer all.Done(); drain(y) }()
		go func() {
			defer all.Done()
			for x.Send(make([]byte, 100<<10)) == nil {
			}
		}()
		eventually(t, "traffic", func() bool { return b.Stats().FramesIn > 500 })
		all.Add(2)
		go func() { defer all.Done(); a.Close() }()
		go func() {
			defer all.Done()
			if round%2 == 0 {
				b.Close()
			}
		}()
		within(t, "everything ends", all.Wait)
	}
}

func drain(ch *Channel) {
	for {
		if _, err := ch.Recv(); err != nil {
			return
		}
	}
}

func TestStats(t *testing.T) {
	a, b := pair(t)
	must(a.Channel(0)).Send(make([]byte, 5000))
	must(must(b.Channel(0)).Recv())
	a.Close()
	b.Close()
	s, r := a.Stats(), b.Stats()
	if s.BytesOut < 5000 || s.BytesOut != r.BytesIn || r.FramesIn == 0 {
		t.Fatalf("%+v %+v", s, r)
	}
}

func BenchmarkBulk(b *testing.B) {
	x, y := Pipe()
	benchmark(b, x, y, 1<<20)
}

func BenchmarkBulkSocket(b *testing.B) {
	ours, theirs, err := socketpair()
	if err != nil {
		b.Fatal(err)
	}
	peer := must(net.FileConn(theirs))
	theirs.Close()
	benchmark(b, New(ours, true, Options{}), New(peer, false, Options{}), 1<<20)
}

func benchmark(b *testing.B, x, y *Conn, size int) {
	defer y.Close()
	defer x.Close()
	from, to := must(x.Channel(2)), must(y.Channel(2))
	msg := make([]byte, size)
	b.SetBytes(int64(size))
	b.ResetTimer()
	go func() {
		for range b.N {
			from.Send(msg)
		}
	}()
	for range b.N {
		must(to.Recv())
	}
}

func BenchmarkRoundTrip(b *testing.B) {
	ours, theirs, err := socketpair()
	if err != nil {
		b.Fatal(err)
	}
	peer := must(net.FileConn(theirs))
	theirs.Close()
	x, y := New(ours, true, Options{}), New(peer, false, Options{})
	defer y.Close()
	defer x.Close()
	from, to := must(x.Channel(0)), must(y.Channel(0))
	go func() {
		for {
			msg, err := to.Recv()
			if err != nil {
				return
			}
			to.Send(msg)
		}
	}()
	msg := make([]byte, 100)
	b.ResetTimer()
	for range b.N {
		from.Send(msg)
		must(from.Recv())
	}
}
