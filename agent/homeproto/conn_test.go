package homeproto

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"rexec/rer"
)

func pair(t *testing.T) (*Conn, *Conn) {
	t.Helper()
	a, b, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func same(t *testing.T, a, b *os.File) bool {
	t.Helper()
	x, err := a.Stat()
	if err != nil {
		t.Fatal(err)
	}
	y, err := b.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return os.SameFile(x, y)
}

// A 10 MB environment and 4,000 descriptors arrive whole and in order, with a
// Relay right behind them.
func TestAskLarge(t *testing.T) {
	a, b := pair(t)
	dir := t.TempDir()
	other := filepath.Join(dir, "other")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	null, file := open(t, "/dev/null"), open(t, other)
	ask := &Ask{Target: "loopback", Name: "x", Tty: true}
	ask.Request.Argv = [][]byte{[]byte("true")}
	for range 100 {
		ask.Request.Env = append(ask.Request.Env, bytes.Repeat([]byte{'x'}, 100<<10))
	}
	ask.Request.Descriptions = make([]rer.Description, 4000)
	files := []*os.File{file, null, null}
	for i := range ask.Request.Descriptions {
		if i%3 == 0 {
			files = append(files, file)
		} else {
			files = append(files, null)
		}
	}
	sent := make(chan error, 1)
	go func() {
		err := a.SendAsk(ask, files)
		if err == nil {
			err = a.SendRelay(&Relay{Resumed: true})
		}
		sent <- err
	}()
	got, gotFiles, err := b.RecvAsk()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, f := range gotFiles {
			f.Close()
		}
	}()
	if !reflect.DeepEqual(ask, got) {
		t.Fatal("the ask changed on its way")
	}
	if len(gotFiles) != len(files) {
		t.Fatalf("%d descriptors, not %d", len(gotFiles), len(files))
	}
	for i := range files {
		if !same(t, files[i], gotFiles[i]) {
			t.Fatalf("descriptor %d is another file", i)
		}
	}
	r, err := b.RecvRelay()
	if err != nil || !r.Resumed {
		t.Fatalf("relay %+v, %v", r, err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
}

// Sending a non-blocking descriptor leaves it so.
func TestAskKeepsNonblock(t *testing.T) {
	a, b := pair(t)
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	r, w := os.NewFile(uintptr(p[0]), "r"), os.NewFile(uintptr(p[1]), "w")
	defer r.Close()
	defer w.Close()
	ask := &Ask{}
	ask.Request.Login = true
	if err := a.SendAsk(ask, []*os.File{r, w}); err != nil {
		t.Fatal(err)
	}
	_, files, err := b.RecvAsk()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		defer f.Close()
	}
	flags, err := unix.FcntlInt(uintptr(p[0]), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Fatalf("flags %#x, %v", flags, err)
	}
}

func TestAnswers(t *testing.T) {
	a, b := pair(t)
	for _, want := range []*Answer{
		{Started: &rer.Started{Pid: 7}},
		{Refused: &rer.Refused{Reason: rer.ReasonNotFound, Text: "x"}},
		{Note: "line"},
		{Ended: &rer.Ended{Status: rer.Status{Signal: 9}}},
		{Listing: &Listing{Jobs: []Job{{Agent: 1}}}},
	} {
		if err := a.SendAnswer(want); err != nil {
			t.Fatal(err)
		}
		got, err := b.RecvAnswer()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatal(diff)
		}
	}
	a.Close()
	if _, err := b.RecvAnswer(); err != io.EOF {
		t.Fatalf("after close: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	a, _ := pair(t)
	ask := &Ask{}
	ask.Request.Login = true
	if err := a.SendAsk(ask, nil); err == nil {
		t.Fatal("an ask without its descriptors was sent")
	}
	if _, err := decodeAnswer([]byte{0xa0}); !errors.Is(err, errOne) {
		t.Fatal(err)
	}
	if _, err := decodeAsk([]byte{0xa0}); err == nil {
		t.Fatal("an ask without a command was taken")
	}
}

// A length out of bounds, a message cut short and descriptors that are not
// there are errors.
func TestRecvBad(t *testing.T) {
	header := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
	noFiles, err := encode(&Ask{Request: rer.Request{Login: true}})
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range [][]byte{header(maxMessage + 1), append(header(10), 1), {0, 0}, append(noFiles, 0)} {
		a, b := pair(t)
		if _, err := a.c.Write(bad); err != nil {
			t.Fatal(err)
		}
		a.Close()
		if _, _, err := b.RecvAsk(); err == nil {
			t.Fatalf("%d bytes were taken", len(bad))
		}
	}
}

func TestDialChecksPeer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	cred, err := c.Peer()
	if err != nil || int(cred.Pid) != os.Getpid() {
		t.Fatalf("peer %+v, %v", cred, err)
	}
}

func TestSocketPath(t *testing.T) {
	run := t.TempDir()
	t.Setenv("XDG_RUNTIME_DIR", run)
	one, err := SocketPath()
	if err != nil {
		t.Fatal(err)
	}
	two, err := SocketPath()
	if err != nil || one != two {
		t.Fatalf("%q, then %q, %v", one, two, err)
	}
	if !strings.HasPrefix(one, run+"/rexec/home-") {
		t.Fatalf("%q is not below %q", one, run)
	}
	st, err := os.Stat(filepath.Dir(one))
	if err != nil || st.Mode().Perm() != 0o700 {
		t.Fatalf("%v, %v", st.Mode(), err)
	}
	if err := os.Chmod(filepath.Dir(one), 0o777); err != nil {
		t.Fatal(err)
	}
	if three, err := SocketPath(); err == nil && strings.HasPrefix(three, run) {
		t.Fatalf("%q is in a directory that others can write", three)
	}
}

func TestPrivateDir(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if err := privateDir(link); err == nil {
		t.Fatal("a symbolic link passed")
	}
	foreign := filepath.Join(dir, "foreign")
	if err := os.Mkdir(foreign, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(foreign, 12345, -1); err != nil {
		t.Fatalf("this test needs root: %v", err)
	}
	if err := privateDir(foreign); err == nil {
		t.Fatal("another's directory passed")
	}
}

func FuzzDecode(f *testing.F) {
	for _, m := range []any{&Ask{Request: rer.Request{Login: true}}, &Relay{Signal: &rer.Signal{Signo: 15}}, &Answer{Note: "x"}} {
		b, err := encode(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[4:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, err := decodeAsk(b); err == nil && a.files() < 0 {
			t.Fatal("negative number of descriptors")
		}
		if a, err := decodeAnswer(b); err == nil && a.kinds() != 1 {
			t.Fatal("an answer of no kind")
		}
		_, _ = decodeRelay(b)
	})
}
