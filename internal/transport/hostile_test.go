package transport

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// raw is a peer that writes frames by hand.
type raw struct {
	t *testing.T
	net.Conn
}

// hostile gives a server and the peer that torments it.
func hostile(t *testing.T, opt Options) (*Conn, *raw) {
	t.Helper()
	noLeak(t)
	ours, theirs, err := socketpair()
	if err != nil {
		t.Fatal(err)
	}
	peer := must(net.FileConn(theirs))
	theirs.Close()
	c := New(ours, false, opt)
	t.Cleanup(func() { peer.Close(); c.Close() })
	return c, &raw{t, peer}
}

func (r *raw) frame(kind frameType, flags uint8, channel uint32, payload []byte) {
	b := appendHeader(nil, header{kind, flags, len(payload), channel})
	r.Write(append(b, payload...))
}

// next reads frames until one of kind comes.
func (r *raw) next(kind frameType) (header, []byte) {
	r.t.Helper()
	r.SetReadDeadline(time.Now().Add(patience))
	var buf [headerSize]byte
	for {
		h, err := readHeader(r, &buf)
		if err != nil {
			r.t.Fatalf("wait for frame of type %d: %v", kind, err)
		}
		payload := make([]byte, h.length)
		io.ReadFull(r, payload)
		if h.kind == kind {
			return h, payload
		}
	}
}

func (r *raw) greet() {
	io.WriteString(r, helloClient)
	io.ReadFull(r, make([]byte, len(helloServer)))
}

func ends(t *testing.T, c *Conn, want error) {
	t.Helper()
	within(t, "link ends", func() { <-c.Done() })
	if !errors.Is(c.Err(), want) {
		t.Fatalf("%v, want %v", c.Err(), want)
	}
}

func TestBreaches(t *testing.T) {
	big := make([]byte, maxPayload)
	for name, attack := range map[string]func(*raw){
		"type":          func(r *raw) { r.frame(99, 0, 0, nil) },
		"flags":         func(r *raw) { r.frame(frameData, 4, 0, nil) },
		"flag of close": func(r *raw) { r.frame(frameClose, 1, 0, nil) },
		"credit length": func(r *raw) { r.frame(frameCredit, 0, 0, []byte{1}) },
		"credit":        func(r *raw) { r.frame(frameCredit, 0, 0, []byte{255, 255, 255, 255}) },
		"long frame":    func(r *raw) { r.frame(frameData, 0, 0, make([]byte, maxPayload+1)) },
		"open order":    func(r *raw) { r.frame(frameOpen, 0, 5, []byte{0}) },
		"open parity":   func(r *raw) { r.frame(frameOpen, 0, 4, []byte{0}) },
		"open class":    func(r *raw) { r.frame(frameOpen, 0, 3, []byte{3}) },
		"open twice":    func(r *raw) { r.frame(frameOpen, 0, 3, []byte{0}); r.frame(frameOpen, 0, 3, []byte{0}) },
		"beyond credit": func(r *raw) {
			for range 20 {
				r.frame(frameData, 0, 2, big)
			}
		},
		"empty messages": func(r *raw) {
			for range 1<<20/frameCost + 1 {
				r.frame(frameData, 0, 2, nil)
			}
		},
		"endless message": func(r *raw) {
			go io.Copy(io.Discard, r)
			for range 21 {
				r.frame(frameData, flagMore, 2, big)
				time.Sleep(time.Millisecond) // lets credit come
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, r := hostile(t, Options{})
			r.greet()
			attack(r)
			ends(t, c, syscall.EPROTO)
		})
	}
}

func TestGreetings(t *testing.T) {
	for sent, want := range map[string]string{
		"Welcome to eagle!\n": "Welcome to eagle!",
		helloServer:           "same role",
		"x":                   `"x"`,
		"":                    "link lost",
	} {
		c, r := hostile(t, Options{})
		io.WriteString(r, sent)
		r.Conn.(*net.UnixConn).CloseWrite()
		within(t, "link ends", func() { <-c.Done() })
		if !strings.Contains(c.Err().Error(), want) {
			t.Errorf("%q: %v", sent, c.Err())
		}
	}
}

func TestUnknownChannel(t *testing.T) {
	c, r := hostile(t, Options{})
	r.greet()
	for _, id := range []uint32{5, 7, 8, 1 << 31} {
		for _, kind := range []frameType{frameData, frameCredit, frameClose} {
			r.frame(kind, 0, id, map[frameType][]byte{frameCredit: {0, 0, 0, 1}}[kind])
			if h, why := r.next(frameReset); h.channel != id || string(why) != "no such channel" {
				t.Fatalf("reset of %d: %q", h.channel, why)
			}
		}
		r.frame(frameReset, 0, id, nil) // not answered
	}
	r.frame(framePing, 0, 0, []byte("12345678"))
	if _, p := r.next(framePong); string(p) != "12345678" || c.Err() != nil {
		t.Fatal(string(p), c.Err())
	}
}

// The window widens for a peer that waits for credit, unless the user here is
// what it waits for.
func TestWiden(t *testing.T) {
	for _, taken := range []bool{true, false} {
		t.Run(fmt.Sprintf("taken %v", taken), func(t *testing.T) {
			c, r := hostile(t, Options{})
			r.greet()
			ch := must(c.Channel(2))
			if taken {
				ch.Handle(func([]byte) {})
			}
			for range 10 { // within the first credit
				r.frame(frameData, flagStarved, 2, make([]byte, 20<<10))
			}
			r.frame(framePing, 0, 0, make([]byte, 8))
			r.next(framePong)
			c.mu.Lock()
			defer c.mu.Unlock()
			if taken && ch.window != maxCredit || !taken && ch.window > 4<<20 || ch.allowance > maxCredit {
				t.Errorf("window of %d, allowance of %d", ch.window, ch.allowance)
			}
		})
	}
}

func TestTooManyChannels(t *testing.T) {
	c, r := hostile(t, Options{})
	r.greet()
	go func() {
		for i := range uint32(maxChannels) {
			r.frame(frameOpen, 0, 3+2*i, []byte{2})
		}
	}()
	h, why := r.next(frameReset)
	// Three were there from the start.
	if h.channel != 3+2*(maxChannels-3) || string(why) != "too many channels" {
		t.Fatalf("reset of %d: %q", h.channel, why)
	}
	if _, err := c.Open(ClassBulk); !errors.Is(err, syscall.EMFILE) {
		t.Fatal(err)
	}
}

// A peer that provokes answers and reads none loses the link.
func TestUnreadAnswers(t *testing.T) {
	c, r := hostile(t, Options{})
	r.greet()
	ping := appendHeader(nil, header{framePing, 0, 8, 0})
	ping = append(ping, make([]byte, 8)...)
	all := make([]byte, 0, 4000*len(ping))
	for range 4000 {
		all = append(all, ping...)
	}
	for range 1000 {
		if _, err := r.Write(all); err != nil {
			break
		}
	}
	ends(t, c, syscall.EPROTO)
}

func TestSilence(t *testing.T) {
	c, r := hostile(t, Options{Dead: 300 * time.Millisecond})
	r.greet()
	r.next(framePing)
	ends(t, c, syscall.ETIMEDOUT)
}

// Idle peers keep each other.
func TestKeepAlive(t *testing.T) {
	noLeak(t)
	a, b := PipeOptions(Options{Dead: 3 * time.Second}, Options{Dead: 3 * time.Second})
	defer b.Close()
	defer a.Close()
	eventually(t, "a few pings", func() bool { return a.Stats().FramesIn > 3 })
	if a.Err() != nil || b.Err() != nil {
		t.Fatal(a.Err(), b.Err())
	}
}

// Silence and a writer that the peer blocks: everything wakes.
func TestDeadWhileSending(t *testing.T) {
	c, r := hostile(t, Options{Dead: 300 * time.Millisecond})
	r.greet()
	for range 4 {
		r.frame(frameCredit, 0, 2, []byte{0, 0x30, 0, 0})
	}
	ch := must(c.Channel(2))
	within(t, "Send ends", func() {
		for {
			if err := ch.Send(make([]byte, 1<<20)); err != nil {
				if !errors.Is(err, syscall.ETIMEDOUT) {
					t.Error(err)
				}
				return
			}
		}
	})
}

// A peer that reads nothing delays Close for seconds, not for ever.
func TestCloseWithDeafPeer(t *testing.T) {
	c, r := hostile(t, Options{})
	r.greet()
	r.frame(frameCredit, 0, 2, []byte{0, 0x40, 0, 0})
	ch := must(c.Channel(2))
	eventually(t, "credit", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return ch.credit > 3<<20 })
	for range 3 {
		if err := ch.Send(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	within(t, "Close", func() { c.Close() })
	if c.Err() != net.ErrClosed {
		t.Fatal(c.Err())
	}
}

func TestCutInFrame(t *testing.T) {
	c, r := hostile(t, Options{})
	r.greet()
	r.Write(appendHeader(nil, header{frameData, 0, 1000, 2}))
	r.Close()
	within(t, "link ends", func() { <-c.Done() })
	if !strings.Contains(c.Err().Error(), "link lost") {
		t.Fatal(c.Err())
	}
	if _, err := must(c.Channel(2)).Recv(); err == nil || err == io.EOF {
		t.Fatal(err)
	}
}

// The peer's last words are read though writing to it fails.
func TestWordsBeforeEnd(t *testing.T) {
	c, r := hostile(t, Options{})
	r.greet()
	r.frame(frameData, 0, 2, []byte("last words"))
	r.Close()
	must(c.Channel(0)).Send([]byte("too late"))
	if got, err := must(c.Channel(2)).Recv(); string(got) != "last words" {
		t.Fatal(got, err)
	}
}

func TestDialCommand(t *testing.T) {
	noLeak(t)
	rw, err := DialCommand(context.Background(), []string{"cat"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(rw, "echo")
	b := make([]byte, 4)
	if _, err := io.ReadFull(rw, b); err != nil || string(b) != "echo" {
		t.Fatal(string(b), err)
	}
	rw.Close()
	if p := rw.(*process); p.cmd.ProcessState == nil {
		t.Fatal("not reaped")
	}
	if _, err := DialCommand(context.Background(), []string{"/nonexistent"}, nil); !errors.Is(err, syscall.ENOENT) {
		t.Fatal(err)
	}
}

const echoChild = "REXEC_TEST_ECHO"

// TestMain lets the test program be the far end of DialCommand.
func TestMain(m *testing.M) {
	if os.Getenv(echoChild) == "" {
		os.Exit(m.Run())
	}
	c := New(must(Stdio()), false, Options{})
	fmt.Println("this goes to standard error")
	ch := must(c.Channel(0))
	for {
		msg, err := ch.Recv()
		if err != nil {
			c.Close()
			os.Exit(0)
		}
		ch.Send(msg)
	}
}

// A link over a child's standard input and output, by socket and by pipes.
func TestStdio(t *testing.T) {
	for _, argv := range [][]string{{os.Args[0]}, {"sh", "-c", `cat | "$0" | cat`, os.Args[0]}} {
		noLeak(t)
		rw := must(DialCommand(context.Background(), argv, append(os.Environ(), echoChild+"=1")))
		c := New(rw, true, Options{})
		ch := must(c.Channel(0))
		for _, size := range []int{0, 10, 5 << 20} {
			if err := ch.Send(make([]byte, size)); err != nil {
				t.Fatal(err)
			}
			if msg, err := ch.Recv(); len(msg) != size || err != nil {
				t.Fatal(len(msg), err)
			}
		}
		within(t, "Close", func() { c.Close() })
		p := rw.(*process)
		if p.exit != nil || !strings.Contains(p.tail.last(), "standard error") {
			t.Errorf("%v: %v, %s", argv, p.exit, p.tail.last())
		}
	}
}

func TestCloseKills(t *testing.T) {
	rw, err := DialCommand(context.Background(), []string{"sh", "-c", "trap '' TERM; while :; do sleep 1; done"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	within(t, "Close", func() { rw.Close() })
	if p := rw.(*process); syscall.Kill(-p.cmd.Process.Pid, 0) == nil {
		eventually(t, "group is gone", func() bool { return syscall.Kill(-p.cmd.Process.Pid, 0) != nil })
	}
}

// fakeSSH is a program that notes its arguments and then does as body says.
func fakeSSH(t *testing.T, body string) (program, args string) {
	dir := t.TempDir()
	program, args = filepath.Join(dir, "ssh"), filepath.Join(dir, "args")
	script := fmt.Sprintf("#!/bin/sh\nprintf '%%s\\n' \"$@\" >%s\n%s\n", args, body)
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return program, args
}

func TestDialSSH(t *testing.T) {
	program, args := fakeSSH(t, "echo noise >&2; echo 'ssh: connect to host eagle: No route to host' >&2; exit 255")
	var stderr strings.Builder
	rw, err := DialSSH(context.Background(), SSH{Program: program + " -v", User: "u", Host: "eagle", Port: "222", Stderr: &stderr})
	if err != nil {
		t.Fatal(err)
	}
	noLeak(t)
	c := New(rw, true, Options{})
	within(t, "link ends", func() { <-c.Done() })
	c.Close()
	for _, want := range []string{"No route to host", "exit status 255"} {
		if !strings.Contains(c.Err().Error(), want) {
			t.Errorf("%v lacks %q", c.Err(), want)
		}
	}
	if got := string(must(os.ReadFile(args))); got != "-v\n-T\n-l\nu\n-p\n222\n--\neagle\nrexecd stdio\n" {
		t.Errorf("arguments %q", got)
	}
	if !strings.Contains(stderr.String(), "noise") {
		t.Errorf("standard error %q", stderr.String())
	}
	for _, host := range []string{"", "-oProxyCommand=x", "a b"} {
		if _, err := DialSSH(context.Background(), SSH{Host: host}); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("host %q: %v", host, err)
		}
	}
}

func TestDialUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l := must(net.Listen("unix", path))
	defer l.Close()
	noLeak(t)
	a := New(must(DialUnix(context.Background(), path)), true, Options{})
	b := New(must(l.Accept()), false, Options{})
	must(a.Channel(0)).Send([]byte("hi"))
	must(must(b.Channel(0)).Recv())
	b.Close()
	a.Close()
	if a.Err() != io.EOF {
		t.Fatal(a.Err())
	}
	if _, err := DialUnix(context.Background(), path+"x"); !errors.Is(err, syscall.ENOENT) {
		t.Fatal(err)
	}
}

// Stdio's stream works over a socket and over two pipes, and Close wakes it.
func TestTake(t *testing.T) {
	ours, theirs, err := socketpair()
	if err != nil {
		t.Fatal(err)
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	for _, fds := range [][2]*os.File{{theirs, theirs}, {pr, pw}} {
		s, err := take(int(fds[0].Fd()), int(fds[1].Fd()))
		if err != nil {
			t.Fatal(err)
		}
		if _, same := s.(*net.UnixConn); same != (fds[0] == fds[1]) {
			t.Errorf("%T", s)
		}
		done := make(chan struct{})
		go func() { io.Copy(io.Discard, s); close(done) }()
		s.Close()
		within(t, "reader wakes", func() { <-done })
		fds[0].Close()
		fds[1].Close()
	}
	ours.Close()
}

// stream is a peer of fixed words.
type stream struct{ io.Reader }

func (stream) Write(p []byte) (int, error) { return len(p), nil }
func (stream) Close() error                { return nil }

// No bytes of a peer make the reader panic, hang or hoard.
func FuzzFrames(f *testing.F) {
	add := func(frames ...[]byte) {
		var b []byte
		for _, x := range frames {
			b = append(b, x...)
		}
		f.Add(b)
	}
	one := func(kind frameType, flags uint8, channel uint32, payload string) []byte {
		return append(appendHeader(nil, header{kind, flags, len(payload), channel}), payload...)
	}
	add(one(frameOpen, 0, 3, "\x02"), one(frameData, 1, 3, "half"), one(frameData, 0, 3, " whole"), one(frameClose, 0, 3, ""))
	add(one(frameCredit, 0, 0, "\x00\x01\x00\x00"), one(framePing, 0, 0, "12345678"), one(frameBye, 0, 0, ""))
	add(one(frameReset, 0, 2, "why"), one(frameData, 0, 2, "late"), one(frameData, 0, 77, "unknown"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c := New(stream{io.MultiReader(strings.NewReader(helloClient), strings.NewReader(string(b)))}, false, Options{})
		total := make(chan int)
		go func() {
			n := 0
			for {
				msg, err := must(c.Channel(2)).Recv()
				if err != nil {
					total <- n
					return
				}
				n += len(msg)
			}
		}()
		c.workers.Wait()
		if n := <-total; n > len(b) {
			t.Fatalf("%d bytes of %d", n, len(b))
		}
		if c.Err() == nil {
			t.Fatal("link stands though the stream ended")
		}
	})
}

func FuzzHeader(f *testing.F) {
	f.Add([]byte{1, 1, 0, 5, 0, 0, 0, 2})
	f.Fuzz(func(t *testing.T, b []byte) {
		var buf [headerSize]byte
		h, err := readHeader(strings.NewReader(string(b)), &buf)
		if err != nil {
			return
		}
		if got := appendHeader(nil, h); string(got) != string(b[:headerSize]) {
			t.Fatalf("%x became %x", b, got)
		}
		if h.length != int(binary.BigEndian.Uint16(b[2:])) || h.length > maxPayload {
			t.Fatal(h.length)
		}
	})
}
