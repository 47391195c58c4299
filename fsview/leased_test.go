package fsview

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rexec/fsview/fsproto"
	"rexec/fsview/origin"
)

// wire is one end of a channel of messages in memory.
type wire struct {
	in, out chan []byte
	closed  chan struct{}
	once    *sync.Once
}

func wires() (a, b *wire) {
	x, y, closed, once := make(chan []byte, 16), make(chan []byte, 16), make(chan struct{}), new(sync.Once)
	return &wire{x, y, closed, once}, &wire{y, x, closed, once}
}

func (w *wire) Send(b []byte) error {
	select {
	case w.out <- append([]byte(nil), b...):
		return nil
	case <-w.closed:
		return io.ErrClosedPipe
	}
}

func (w *wire) Recv() ([]byte, error) {
	select {
	case b := <-w.in:
		return b, nil
	case <-w.closed:
		return nil, io.EOF
	}
}

func (w *wire) Close() error {
	w.once.Do(func() { close(w.closed) })
	return nil
}

// leased serves a directory as a session does: over a channel, with leases,
// each reply after the recalls of what happened before it.
type leased struct {
	*mounted
	home   *origin.Origin
	client *fsproto.Client
}

func mountLeased(t *testing.T, dir string) *leased {
	t.Helper()
	umaskOnce.Do(func() { unix.Umask(0) })
	o, err := origin.New(origin.Options{Leases: true})
	if err != nil {
		t.Fatal(err)
	}
	root, _, err := o.Root(dir)
	if err != nil {
		t.Fatal(err)
	}
	near, far := wires()
	served := make(chan error, 1)
	go func() { served <- fsproto.Serve(far, o, fsproto.ServeOptions{BeforeReply: o.Settle}) }()
	client := fsproto.NewClient(near)
	t.Cleanup(func() {
		near.Close()
		<-served
		o.Close()
	})
	var view *View
	ready := make(chan struct{})
	client.SetRecall(func(list []fsproto.Recall) {
		<-ready
		view.Recall(client, list)
	})
	m := mountReady(t, one(client, root), func(v *View) { view = v; close(ready) })
	return &leased{m, o, client}
}

// settle has everything that happened at home seen in the view.
func (l *leased) settle(t *testing.T) {
	t.Helper()
	l.home.Settle()
	// What was sent before this reply has arrived when it does.
	if _, err := l.client.Ref(t.Context(), 1<<60); err == nil {
		t.Fatal("an unknown node was found")
	}
	l.Settle()
}

func TestPosixSuiteLeased(t *testing.T) {
	suite(t, "posix", mountLeased(t, homeDir(t)).dir)
}

// tmpfs is a directory on a file system that is leased.
func tmpfs(t *testing.T) string {
	t.Helper()
	dir := homeDir(t)
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func TestLeasedNamesAskOnce(t *testing.T) {
	home := tmpfs(t)
	mkdirs(t, home, "a/b/c")
	l := mountLeased(t, home)
	const calls = 100
	if out, err := child("stats", l.path("a/b/c"), fmt.Sprint(calls)).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	n := l.client.Counts()
	if asked := n["lookup"] + n["getattr"]; asked >= calls {
		t.Errorf("%d calls asked home %d times: %v", calls, asked, n)
	}
}

func TestHomesChangesUnderLease(t *testing.T) {
	home := tmpfs(t)
	mkdirs(t, home, "d")
	at := func(name string) string { return filepath.Join(home, name) }
	l := mountLeased(t, home)
	look := func() (content string, mode os.FileMode, missing bool) {
		b, _ := os.ReadFile(l.path("d/f"))
		st, err := os.Stat(l.path("d/f"))
		if errors.Is(err, os.ErrNotExist) {
			return "", 0, true
		}
		if err != nil {
			t.Fatal(err)
		}
		return string(b), st.Mode(), false
	}
	steps := []struct {
		do      func() error
		content string
		mode    os.FileMode
		missing bool
	}{
		{func() error { return nil }, "", 0, true},
		{func() error { return os.WriteFile(at("d/f"), []byte("one"), 0o644) }, "one", 0o644, false},
		{func() error { return os.WriteFile(at("d/f"), []byte("two"), 0o644) }, "two", 0o644, false},
		{func() error { return os.Chmod(at("d/f"), 0o600) }, "two", 0o600, false},
		{func() error { return os.Rename(at("d/f"), at("d/g")) }, "", 0, true},
		{func() error { return os.WriteFile(at("d/h"), []byte("other"), 0o644) }, "", 0, true},
		{func() error { return os.Rename(at("d/h"), at("d/f")) }, "other", 0o644, false},
		{func() error { return os.RemoveAll(at("d")) }, "", 0, true},
	}
	for i, s := range steps {
		look()
		look()
		if err := s.do(); err != nil {
			t.Fatal(err)
		}
		l.settle(t)
		content, mode, missing := look()
		if content != s.content || mode != s.mode || missing != s.missing {
			t.Errorf("step %d: %q %v %v, want %q %v %v", i, content, mode, missing, s.content, s.mode, s.missing)
		}
	}
}

// TestSharedOpens has a file that nobody changes opened at home once, however
// often it is opened here, and anew after each change.
func TestSharedOpens(t *testing.T) {
	home := tmpfs(t)
	l := mountLeased(t, home)
	at := filepath.Join(home, "f")
	for round := range 20 {
		want := fmt.Sprintf("content %d", round)
		if round%2 == 0 {
			os.Remove(at)
		}
		if err := os.WriteFile(at, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		l.settle(t)
		before := l.client.Counts()
		for range 20 {
			if got, err := os.ReadFile(l.path("f")); err != nil || string(got) != want {
				t.Fatalf("round %d: read %q, %v", round, got, err)
			}
		}
		after := l.client.Counts()
		if n := after["open"] - before["open"]; n > 10 {
			t.Errorf("round %d: opened %d times at home", round, n)
		}
		if n := after["read"] - before["read"]; n > 10 {
			t.Errorf("round %d: read %d times at home", round, n)
		}
	}
}

// TestReadAhead has a large file read through with few requests, rewritten
// between passes and in the middle of one.
func TestReadAhead(t *testing.T) {
	home := tmpfs(t)
	l := mountLeased(t, home)
	at := filepath.Join(home, "f")
	content := func(seed int) []byte {
		b := make([]byte, 5<<20+123)
		for i := range b {
			b[i] = byte(i>>12 + seed)
		}
		return b
	}
	for round := range 4 {
		if err := os.WriteFile(at, content(round), 0o644); err != nil {
			t.Fatal(err)
		}
		l.settle(t)
		before := l.client.Counts()["read"]
		got, err := os.ReadFile(l.path("f"))
		if err != nil || !bytes.Equal(got, content(round)) {
			t.Fatalf("round %d: wrong content (%d bytes), %v", round, len(got), err)
		}
		if n := l.client.Counts()["read"] - before; n > 20 {
			t.Errorf("round %d: %d reads at home", round, n)
		}
	}
	f, err := os.Open(l.path("f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, 2<<20)
	if _, err := io.ReadFull(f, buf); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at, content(9), 0o644); err != nil {
		t.Fatal(err)
	}
	l.settle(t)
	rest, err := io.ReadAll(f)
	if err != nil || !bytes.Equal(rest, content(9)[2<<20:]) {
		t.Errorf("after a change in the middle: wrong rest (%d bytes), %v", len(rest), err)
	}
}

// TestSharedOpensLock has two opens of one shared file lock against each
// other, and the second get the lock when the first is closed.
func TestSharedOpensLock(t *testing.T) {
	home := tmpfs(t)
	if err := os.WriteFile(filepath.Join(home, "f"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	l := mountLeased(t, home)
	a, err := os.Open(l.path("f"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.Open(l.path("f"))
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := unix.Flock(int(a.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(b.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != unix.EWOULDBLOCK {
		t.Fatalf("second lock: %v, want EWOULDBLOCK", err)
	}
	a.Close()
	if err := unix.Flock(int(b.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
}

// TestWorkingDirectoryOutlivesRecall has a process whose directory is
// recalled: getcwd(2) must go on.
func TestWorkingDirectoryOutlivesRecall(t *testing.T) {
	home := homeDir(t)
	mkdirs(t, home, "work/dir")
	l := mountLeased(t, home)
	cmd := child("getcwd", l.path("work/dir"))
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	one := make([]byte, 1)
	io.ReadFull(out, one) // it is there
	for _, name := range []string{"work", "dir"} {
		st, err := os.Stat(l.path("work/dir"))
		if err != nil || !st.IsDir() {
			t.Fatal(err)
		}
		root, _, _ := l.home.Root(home)
		e, err := l.home.Lookup(t.Context(), root, "work")
		if err != nil {
			t.Fatal(err)
		}
		parent := root
		if name == "dir" {
			parent = e.Node
		}
		l.Recall(l.client, []fsproto.Recall{{Parent: parent, Name: name}})
	}
	l.Settle()
	in.Close()
	got, _ := io.ReadAll(out)
	if err := cmd.Wait(); err != nil || string(got) != l.path("work/dir") {
		t.Errorf("working directory %q, %v", got, err)
	}
}

// TestWritesDropCapability: a write takes a file's capabilities away, as it
// does at home, and asks home nothing about them.
func TestWritesDropCapability(t *testing.T) {
	home := homeDir(t)
	file := filepath.Join(home, "f")
	if err := os.WriteFile(file, []byte("old"), 0o755); err != nil {
		t.Fatal(err)
	}
	// struct vfs_cap_data: revision 2, effective; CAP_NET_RAW.
	value := []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	const name = "security.capability"
	if err := unix.Setxattr(file, name, value, 0); err != nil {
		t.Fatal(err)
	}
	l := mountLeased(t, home)
	f, err := os.OpenFile(l.path("f"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for range 10 {
		if _, err := f.Write([]byte("new")); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Stat(); err != nil {
			t.Fatal(err)
		}
	}
	if n := l.client.Counts()["getxattr"]; n > 0 {
		t.Errorf("home was asked for attributes %d times", n)
	}
	for _, path := range []string{file, l.path("f")} {
		if n, err := unix.Getxattr(path, name, make([]byte, 64)); err != unix.ENODATA {
			t.Errorf("%s: got %d bytes of capability, %v, want %v", path, n, err, unix.ENODATA)
		}
	}
}

// TestReadsLeaveAttributes: the kernel doubts the time of access of what was
// read; home is not asked where it cannot have changed, and is where it can.
func TestReadsLeaveAttributes(t *testing.T) {
	home := tmpfs(t)
	const files = 20
	long := time.Now().Add(time.Hour) // later than ctime will be
	for i := range files {
		name := filepath.Join(home, fmt.Sprint(i))
		if err := os.WriteFile(name, []byte("content"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(name, long, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(home, "new"), []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	l := mountLeased(t, home)
	readAndLook := func(name string) os.FileInfo {
		if _, err := os.ReadFile(l.path(name)); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(l.path(name))
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	for i := range files {
		readAndLook(fmt.Sprint(i))
	}
	if n := l.client.Counts()["getattr"]; n > files/2 {
		t.Errorf("%d files were read and looked at, home was asked for attributes %d times", files, n)
	}
	atime := func(st os.FileInfo) unix.Timespec { return unix.Timespec(st.Sys().(*syscall.Stat_t).Atim) }
	there := atime(readAndLook("new"))
	st, err := os.Stat(filepath.Join(home, "new"))
	if err != nil {
		t.Fatal(err)
	}
	if here := atime(st); there != here {
		t.Errorf("after a read the time of access is %v there and %v at home", there, here)
	}
}
