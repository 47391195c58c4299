package fsview

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rexec/fsview/fsproto"
)

func one(o fsproto.Origin, root fsproto.Node) Config {
	return Config{Mounts: []Mount{{Path: "/", Origin: o, Root: root}}}
}

func TestReadsAndSeesChanges(t *testing.T) {
	f := newFake()
	f.put("a", "one")
	m := mount(t, one(f, fakeRoot))
	for _, want := range []string{"one", "two", "two", "longer"} {
		f.put("a", want)
		got, err := os.ReadFile(m.path("a"))
		if err != nil || string(got) != want {
			t.Fatalf("read %q, %v, want %q", got, err, want)
		}
	}
	if _, err := os.Stat(m.path("b")); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("stat of what is not there: %v", err)
	}
}

func TestKeepsPagesOfUnchangedFile(t *testing.T) {
	f := newFake()
	f.put("a", "content")
	m := mount(t, one(f, fakeRoot))
	for range 3 {
		if got, err := os.ReadFile(m.path("a")); err != nil || string(got) != "content" {
			t.Fatalf("read %q, %v", got, err)
		}
	}
	if n := f.count("read"); n != 1 {
		t.Errorf("%d reads reached home, want 1", n)
	}
}

func TestLeaseAnswersUntilRecalled(t *testing.T) {
	f := newFake()
	f.lease = fsproto.LeaseEntry | fsproto.LeaseAttr | fsproto.LeaseData
	x := f.put("a", "one")
	m := mount(t, one(f, fakeRoot))
	stat := func(name string) error {
		var st unix.Stat_t
		return unix.Stat(m.path(name), &st)
	}
	for range 5 {
		if err := stat("a"); err != nil {
			t.Fatal(err)
		}
		if err := stat("b"); err != unix.ENOENT {
			t.Fatal(err)
		}
	}
	if n := f.count("lookup"); n != 2 {
		t.Errorf("%d lookups under a lease, want 2", n)
	}
	f.put("b", "now it is")
	f.put("a", "something else")
	m.Recall(f, []fsproto.Recall{
		{Parent: fakeRoot, Name: "b"},
		{Node: x.node, What: fsproto.LeaseAttr | fsproto.LeaseData},
	})
	m.Settle()
	if got, err := os.ReadFile(m.path("b")); err != nil || string(got) != "now it is" {
		t.Errorf("after the recall: %q, %v", got, err)
	}
	if got, err := os.ReadFile(m.path("a")); err != nil || string(got) != "something else" {
		t.Errorf("after the recall: %q, %v", got, err)
	}
}

func TestGrantNothingRecalledMeanwhile(t *testing.T) {
	const attr, entry = fsproto.LeaseAttr, fsproto.LeaseEntry
	node := subject{node: 5}
	var f flights
	for u := range uint64(10) {
		f.add(u)
	}
	if f.grant(1, attr, node) == 0 {
		t.Error("no lease although nothing was recalled")
	}
	wait := f.recall([]fsproto.Recall{{Node: 5, What: attr}, {Parent: 7, Name: "a"}})
	if len(wait) != 1 {
		t.Fatalf("%d replies to wait for, want 1", len(wait))
	}
	for _, c := range []struct {
		about subject
		want  fsproto.Lease
	}{
		{node, entry},
		{subject{}, 0},
		{subject{6, 7, "a"}, attr},
		{subject{5, 7, "a"}, 0},
		{subject{6, 7, "b"}, attr | entry},
		{subject{7, 5, "a"}, attr | entry},
	} {
		if got := f.grant(2, attr|entry, c.about); got != c.want {
			t.Errorf("%+v: granted %v, want %v", c.about, got, c.want)
		}
	}
	f.done(1)
	<-wait[0]
	f.add(10)
	if f.grant(10, attr, node) == 0 {
		t.Error("no lease after the recall")
	}
	for range 2 * maxRecent {
		f.recall([]fsproto.Recall{{Node: 9, What: attr}})
	}
	if f.grant(10, attr, node) != 0 {
		t.Error("a lease was believed after more recalls than are remembered")
	}
	if len(f.recent) > maxRecent {
		t.Errorf("%d recalls are remembered", len(f.recent))
	}
}

// blocked starts a process that waits for home in a lookup.
func blocked(t *testing.T, f *fake, m *mounted, name string) *exec.Cmd {
	t.Helper()
	cmd := child("stat", m.path(name))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	<-f.entered
	return cmd
}

func ends(t *testing.T, cmd *exec.Cmd) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	select {
	case err := <-done:
		return err
	case <-time.After(30 * time.Second):
		t.Fatal("the process still waits")
		return nil
	}
}

func TestKillOfWaitingProcess(t *testing.T) {
	f := newFake()
	m := mount(t, one(f, fakeRoot))
	cmd := blocked(t, f, m, "wait")
	cmd.Process.Kill()
	var exit *exec.ExitError
	if err := ends(t, cmd); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("the process ended with %v", err)
	}
}

func TestCloseFreesWaitingProcesses(t *testing.T) {
	f := newFake()
	m := mount(t, one(f, fakeRoot))
	a, b := blocked(t, f, m, "wait1"), blocked(t, f, m, "wait2")
	m.Close()
	for _, cmd := range []*exec.Cmd{a, b} {
		if err := ends(t, cmd); err == nil {
			t.Error("the lookup succeeded")
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(m.path("x"), &st); err != unix.ENOTCONN {
		t.Errorf("after the close: %v", err)
	}
}

func TestNodesGoBack(t *testing.T) {
	f := newFake()
	a := f.put("a", "x")
	m := mount(t, one(f, fakeRoot))
	for range 3 {
		if _, err := os.ReadFile(m.path("a")); err != nil {
			t.Fatal(err)
		}
	}
	m.Close()
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := f.handed[a.node]; n != 0 {
		t.Errorf("%d hand-outs were not given back", n)
	}
}

func TestAdoptedStream(t *testing.T) {
	f := newFake()
	x := f.put("log", "0123456789")
	m := mount(t, one(f, fakeRoot))
	released := make(chan bool, 1)
	p := m.Adopt(0, x.node, fsproto.FH(x.node), Adoption{Stream: true, Offset: 10, Release: func() { released <- true }})
	fd, err := unix.Open(m.path(p), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	opens := f.count("open")
	unix.Seek(fd, 10, 0)
	for _, s := range []string{"ab", "cd"} {
		if _, err := unix.Write(fd, []byte(s)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := unix.Pwrite(fd, []byte("X"), 0); err != nil {
		t.Fatal(err)
	}
	if opens != 0 {
		t.Errorf("home was asked to open %d times", opens)
	}
	f.mu.Lock()
	if got := string(x.data); got != "X123456789abcd" {
		t.Errorf("home has %q", got)
	}
	if len(f.streams) != 3 || f.streams[0] != "stream" || f.streams[1] != "stream" || f.streams[2] != "at" {
		t.Errorf("writes went %v", f.streams)
	}
	f.mu.Unlock()
	unix.Close(fd)
	select {
	case <-released:
	case <-time.After(30 * time.Second):
		t.Error("the handle was not released")
	}
}

func TestPathFindsNode(t *testing.T) {
	f := newFake()
	x := f.put("gone", "still here")
	m := mount(t, one(f, fakeRoot))
	f.mu.Lock()
	delete(f.files, "gone")
	f.mu.Unlock()
	got, err := os.ReadFile(m.path(m.Path(0, x.node)))
	if err != nil || string(got) != "still here" {
		t.Errorf("read %q, %v", got, err)
	}
	if _, err := os.Stat(m.path(m.Path(0, 77))); !errors.Is(err, syscall.ESTALE) {
		t.Errorf("unknown node: %v", err)
	}
}

// BenchmarkCalls measures single calls of another process.
func BenchmarkCalls(b *testing.B) {
	f := newFake()
	f.put("a", "x")
	m := mount(b, one(f, fakeRoot))
	for _, kind := range []string{"fstat", "stat", "open"} {
		b.Run(kind, func(b *testing.B) {
			for b.Loop() {
				out, err := child("time", kind, m.path("a")).Output()
				ns, perr := strconv.ParseFloat(string(out), 64)
				if err != nil || perr != nil {
					b.Fatal(err, perr, string(out))
				}
				b.ReportMetric(ns, "ns/call")
			}
		})
	}
}
