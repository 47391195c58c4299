package origin

import (
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rexec/fsview/fsproto"
)

// recalls collects what was taken back.
type recalls struct {
	mu  sync.Mutex
	all []fsproto.Recall
}

func (r *recalls) add(list []fsproto.Recall) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, list...)
}

func (r *recalls) take() []fsproto.Recall {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := r.all
	r.all = nil
	return all
}

// leasing starts an origin that leases, without the codec: a recall is there
// when Settle returns.
func leasing(t *testing.T) (*world, *recalls) {
	t.Helper()
	w := start(t, Options{Leases: true})
	if w.o.leases == nil {
		t.Fatal("no inotify instance to be had")
	}
	r := new(recalls)
	must(t, w.Access(ctx, w.root, 0)) // Serve has set its own
	w.o.SetRecall(r.add)
	return w, r
}

func attrOfNode(list []fsproto.Recall, n fsproto.Node) bool {
	return slices.ContainsFunc(list, func(r fsproto.Recall) bool { return r.Node == n && r.What&fsproto.LeaseAttr != 0 })
}

func entryOf(list []fsproto.Recall, parent fsproto.Node, name string) bool {
	return slices.ContainsFunc(list, func(r fsproto.Recall) bool { return r.Parent == parent && r.Name == name })
}

const full = fsproto.LeaseEntry | fsproto.LeaseAttr

// leased looks a name up until it is leased: what happened just before may
// still be under way.
func (w *world) leased(name string) fsproto.Entry {
	w.t.Helper()
	w.o.Settle()
	e, err := w.o.Lookup(ctx, w.root, name)
	must(w.t, err)
	if e.Lease != full && e.Node != 0 || e.Lease != fsproto.LeaseEntry && e.Node == 0 {
		w.t.Fatalf("%s: lease %d", name, e.Lease)
	}
	return e
}

func TestLeaseRecalls(t *testing.T) {
	for _, c := range []struct {
		name        string
		do          func(dir string) error
		attr, entry bool
	}{
		{"write", func(d string) error { return appendTo(d + "/f") }, true, false},
		{"write by another link", func(d string) error { return appendTo(d + "/sub/other") }, true, false},
		{"chmod", func(d string) error { return os.Chmod(d+"/f", 0o600) }, true, false},
		{"chmod by another link", func(d string) error { return os.Chmod(d+"/sub/other", 0o600) }, true, false},
		{"truncate", func(d string) error { return os.Truncate(d+"/f", 1) }, true, false},
		{"utimes", func(d string) error { return os.Chtimes(d+"/f", time.Time{}, time.Unix(5, 0)) }, true, false},
		{"xattr", func(d string) error { return unix.Setxattr(d+"/f", "user.x", nil, 0) }, true, false},
		{"link", func(d string) error { return os.Link(d+"/f", d+"/new") }, true, false},
		{"unlink of another link", func(d string) error { return os.Remove(d + "/sub/other") }, true, false},
		{"unlink", func(d string) error { return os.Remove(d + "/f") }, true, true},
		{"rename", func(d string) error { return os.Rename(d+"/f", d+"/g") }, true, true},
		{"rename over", func(d string) error { return os.Rename(d+"/h", d+"/f") }, true, true},
		{"exchange", func(d string) error {
			return unix.Renameat2(unix.AT_FDCWD, d+"/f", unix.AT_FDCWD, d+"/sub/other", unix.RENAME_EXCHANGE)
		}, false, false},
		{"exchange with another", func(d string) error {
			return unix.Renameat2(unix.AT_FDCWD, d+"/f", unix.AT_FDCWD, d+"/h", unix.RENAME_EXCHANGE)
		}, true, true},
		{"read", func(d string) error { _, err := os.ReadFile(d + "/f"); return err }, false, false},
		{"unrelated", func(d string) error { return os.Remove(d + "/h") }, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, r := leasing(t)
			w.put("f", "content")
			w.put("h", "h")
			must(t, os.Mkdir(w.dir+"/sub", 0o755))
			must(t, os.Link(w.dir+"/f", w.dir+"/sub/other"))
			f := w.leased("f")
			w.o.Settle()
			r.take()
			must(t, c.do(w.dir))
			w.o.Settle()
			got := r.take()
			if attrOfNode(got, f.Node) != c.attr || entryOf(got, w.root, "f") != c.entry {
				t.Fatalf("recalled %+v of node %d", got, f.Node)
			}
		})
	}
}

func appendTo(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString("more")
	return err
}

func TestLeaseOfNothing(t *testing.T) {
	w, r := leasing(t)
	if e := w.leased("none"); e.Node != 0 {
		t.Fatal(e)
	}
	w.put("none", "")
	w.o.Settle()
	if got := r.take(); !entryOf(got, w.root, "none") {
		t.Fatal(got)
	}
	w.leased("none")
}

func TestLeaseOfDirectory(t *testing.T) {
	w, r := leasing(t)
	must(t, os.Mkdir(w.dir+"/d", 0o755))
	d := w.leased("d")
	for _, do := range []func() error{
		func() error { return os.WriteFile(w.dir+"/d/f", nil, 0o600) },
		func() error { return os.Remove(w.dir + "/d/f") },
		func() error { return os.Chmod(w.dir+"/d", 0o700) },
		func() error { return os.Mkdir(w.dir+"/d/sub", 0o755) },
	} {
		must(t, do())
		w.o.Settle()
		if got := r.take(); !attrOfNode(got, d.Node) {
			t.Fatal(got)
		}
		w.leased("d")
	}
}

// TestNoLeaseWithWriter: stores through a map make no event.
func TestNoLeaseWithWriter(t *testing.T) {
	w, r := leasing(t)
	w.put("f", "content")
	f, err := os.OpenFile(w.dir+"/f", os.O_RDWR, 0)
	must(t, err)
	e := w.walk("f")
	if e.Lease != fsproto.LeaseEntry {
		t.Fatal(e.Lease)
	}
	m, err := unix.Mmap(int(f.Fd()), 0, 7, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	must(t, f.Close())
	w.o.Settle()
	if a, err := w.o.Getattr(ctx, e.Node, 0); err != nil || a.Lease != 0 {
		t.Fatal("a lease in spite of a map: ", a.Lease, err)
	}
	must(t, unix.Munmap(m))
	must(t, appendTo(w.dir+"/f")) // a close of a writer: looked at again
	w.leased("f")
	r.take()
	f, err = os.OpenFile(w.dir+"/f", os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	w.o.Settle()
	if got := r.take(); !attrOfNode(got, e.Node) {
		t.Fatal("a writer came and nothing was recalled: ", got)
	}
}

func TestLeaseAfterOwnWriter(t *testing.T) {
	w, _ := leasing(t)
	c := w.create("f", unix.O_RDWR)
	_, err := w.Write(ctx, &fsproto.WriteIn{FH: c.FH, Data: []byte("data")})
	must(t, err)
	if a, err := w.Getattr(ctx, c.Entry.Node, 0); err != nil || a.Lease != 0 || a.Attr.Size != 4 {
		t.Fatal(a, err)
	}
	w.Release(c.FH, 0, false)
	must(t, w.Access(ctx, w.root, 0))
	w.leased("f")
}

// TestRecallUnasked waits for a recall that nothing else sends along.
func TestRecallUnasked(t *testing.T) {
	w, r := leasing(t)
	w.put("f", "")
	f := w.leased("f")
	must(t, os.Chmod(w.dir+"/f", 0o600))
	var got []fsproto.Recall
	for deadline := time.Now().Add(20 * time.Second); !attrOfNode(got, f.Node); time.Sleep(time.Millisecond) {
		if got = append(got, r.take()...); time.Now().After(deadline) {
			t.Fatal(got)
		}
	}
}

// TestLeaseOverflow loses events: everything is recalled.
func TestLeaseOverflow(t *testing.T) {
	w, r := leasing(t)
	w.put("f", "")
	w.put("g", "")
	f := w.leased("f")
	w.leased("none")
	w.o.leases.turn.Lock() // nobody reads meanwhile
	b, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	must(t, err)
	var limit int
	_, err = fmt.Sscan(string(b), &limit)
	must(t, err)
	must(t, os.Mkdir(w.dir+"/sub", 0o755))
	for i := 0; i <= limit; i += 2 {
		must(t, unix.Mknod(w.dir+"/x", unix.S_IFREG|0o600, 0))
		must(t, unix.Unlink(w.dir+"/x"))
	}
	must(t, os.Chmod(w.dir+"/f", 0o600)) // lost
	w.o.leases.turn.Unlock()
	w.o.Settle()
	if got := r.take(); !attrOfNode(got, f.Node) || !entryOf(got, w.root, "f") || !entryOf(got, w.root, "none") {
		t.Fatal(got)
	}
}

func TestMountRecallsAll(t *testing.T) {
	if os.Geteuid() != 0 {
		return // may not mount
	}
	w, r := leasing(t)
	must(t, os.Mkdir(w.dir+"/d", 0o755))
	d := w.leased("d")
	must(t, unix.Mount("none", w.dir+"/d", "tmpfs", 0, ""))
	defer unix.Unmount(w.dir+"/d", unix.MNT_DETACH)
	w.o.Settle()
	if got := r.take(); !attrOfNode(got, d.Node) || !entryOf(got, w.root, "d") {
		t.Fatal(got)
	}
}

// TestCausalOrder changes a file, and then looks at once whether the recall
// has left, many times while others look the file up.
func TestCausalOrder(t *testing.T) {
	w, r := leasing(t)
	w.put("f", "")
	stop, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for stop.Err() == nil {
				if _, err := w.o.Lookup(ctx, w.root, "f"); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	f := w.walk("f").Node
	for i := range 300 {
		if a, err := w.o.Getattr(ctx, f, 0); err != nil {
			t.Fatal(err)
		} else if a.Lease == 0 {
			continue
		}
		r.take()
		must(t, unix.Chmod(w.dir+"/f", 0o600+uint32(i%8)))
		w.o.Settle()
		if !attrOfNode(r.take(), f) {
			t.Fatal("round ", i)
		}
	}
	cancel()
	wg.Wait()
}

func TestForgottenWatches(t *testing.T) {
	w, _ := leasing(t)
	for i := range 50 {
		name := fmt.Sprint(i)
		w.put(name, "")
		e := w.leased(name)
		w.o.Drop(e.Node)
	}
	l := w.o.leases
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.watches) != 1 || len(l.nodes) != 1 || l.names != 50 {
		t.Fatal(len(l.watches), len(l.nodes), l.names)
	}
}

func FuzzParseEvent(f *testing.F) {
	f.Add([]byte("\x01\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x10\x00\x00\x00name\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for ok := true; ok; {
			_, b, ok = parseEvent(b)
		}
	})
}

// Two users' homes that lease one file must not wake each other for ever: the
// look of one is an open that the other sees.
func TestProbesComeToRest(t *testing.T) {
	a, _ := leasing(t)
	path := a.dir + "/f"
	must(t, os.WriteFile(path, []byte("x"), 0o644))
	a.leased("f")
	homes := []*Origin{a.o}
	for range 5 {
		b := start(t, Options{Leases: true})
		homes = append(homes, b.o)
		root, _, err := b.o.Root(a.dir)
		must(t, err)
		if e, err := b.o.Lookup(ctx, root, "f"); err != nil || e.Lease != full {
			t.Fatalf("lookup by another: lease %d, %v", e.Lease, err)
		}
	}
	// Each start compares what is open, the others' files too.
	defer func() {
		for _, o := range homes {
			o.leases.mu.Lock()
			for _, w := range o.leases.watches {
				o.leases.letGo(w)
			}
			o.leases.mu.Unlock()
		}
	}()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	must(t, err)
	defer unix.Close(fd)
	_, err = unix.InotifyAddWatch(fd, path, unix.IN_OPEN|unix.IN_CLOSE)
	must(t, err)
	f, err := os.Open(path)
	must(t, err)
	must(t, f.Close())
	buf := make([]byte, 4096)
	for rounds := 0; ; rounds++ {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 1000)
		switch {
		case err == unix.EINTR:
		case err != nil:
			t.Fatal(err)
		case n == 0:
			return // quiet
		case rounds > 1000:
			t.Fatal("the file is opened for ever")
		default:
			_, _ = unix.Read(fd, buf)
		}
	}
}

// TestBusyFileStaysLeased: a file that every program here opens, such as
// /etc/ld.so.cache, is leased all the same, until someone writes.
func TestBusyFileStaysLeased(t *testing.T) {
	w, r := leasing(t)
	w.put("f", "content")
	e := w.leased("f")
	r.take()
	for range 5 * maxLooks {
		f, err := os.Open(w.dir + "/f")
		must(t, err)
		must(t, f.Close())
		w.o.Settle()
	}
	if got := r.take(); len(got) > 0 {
		t.Error("recalled, though only read: ", got)
	}
	if a, err := w.o.Getattr(ctx, e.Node, 0); err != nil || a.Lease != fsproto.LeaseAttr {
		t.Error("lease ", a.Lease, err)
	}
	f, err := os.OpenFile(w.dir+"/f", os.O_RDWR, 0)
	must(t, err)
	w.o.Settle()
	if got := r.take(); !attrOfNode(got, e.Node) {
		t.Error("a writer came and nothing was recalled: ", got)
	}
	must(t, f.Close())
	w.leased("f")
	must(t, os.Remove(w.dir+"/f"))
	w.o.Forget([]fsproto.Forgotten{{Node: e.Node, N: 100}})
	w.o.Settle()
	w.o.leases.mu.Lock()
	defer w.o.leases.mu.Unlock()
	if n := w.o.leases.kept; n != 0 {
		t.Errorf("%d files are kept open", n)
	}
}
