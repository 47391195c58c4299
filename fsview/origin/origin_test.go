package origin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rexec/fsview/fsproto"
	"rexec/fsview/posix"
)

const nobody = 65534

var ctx = context.Background()

func TestMain(m *testing.M) {
	unix.Umask(0)
	// What the runtime opens once must not look like a leak.
	r, w, err := os.Pipe()
	if err == nil {
		r.Close()
		w.Close()
	}
	os.Exit(m.Run())
}

// asUserEnv marks the child of TestUnprivileged.
const asUserEnv = "REXEC_ORIGIN_AS_USER"

// TestUnprivileged runs all tests again as a user without rights.
func TestUnprivileged(t *testing.T) {
	if os.Geteuid() != 0 || os.Getenv(asUserEnv) != "" {
		return
	}
	dir, err := os.MkdirTemp("/tmp", "origin-user-")
	must(t, err)
	defer os.RemoveAll(dir)
	must(t, os.Chmod(dir, 0o777))
	prog := filepath.Join(dir, "tests")
	self, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	must(t, os.WriteFile(prog, self, 0o755))
	cmd := exec.Command(prog, "-test.timeout", "100s")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), asUserEnv+"=1", "TMPDIR="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

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

func descriptors(t *testing.T) []string {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	var all []string
	for _, e := range list {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			all = append(all, e.Name()+" -> "+to)
		}
	}
	return all
}

// world is an origin over a new directory, reached through the codec.
type world struct {
	*fsproto.Client
	t    *testing.T
	o    *Origin
	dir  string
	root fsproto.Node
}

func start(t *testing.T, opt Options) *world {
	t.Helper()
	before := descriptors(t)
	t.Cleanup(func() {
		if after := descriptors(t); len(after) > len(before) {
			t.Errorf("descriptors left open: %q, before: %q", after, before)
		}
	})
	o, err := New(opt)
	must(t, err)
	a, b := newPipe()
	served := make(chan error, 1)
	go func() { served <- fsproto.Serve(b, o, fsproto.ServeOptions{}) }()
	c := fsproto.NewClient(a)
	t.Cleanup(func() {
		a.close()
		<-c.Done()
		if err := <-served; err != nil {
			t.Error(err)
		}
		o.Close()
	})
	w := &world{Client: c, t: t, o: o, dir: t.TempDir()}
	w.root, _, err = o.Root(w.dir)
	must(t, err)
	return w
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t *testing.T, err error, want syscall.Errno) {
	t.Helper()
	if err == nil || fsproto.Errno(err) != want {
		t.Fatalf("error %v, want %v", err, want)
	}
}

// walk looks a path below the root up, one name at a time.
func (w *world) walk(path string) fsproto.Entry {
	w.t.Helper()
	e := fsproto.Entry{Node: w.root}
	for _, name := range strings.Split(path, "/") {
		var err error
		if e, err = w.Lookup(ctx, e.Node, name); err != nil {
			w.t.Fatalf("%s: %v", path, err)
		}
	}
	return e
}

func (w *world) create(name string, flags uint32) fsproto.Created {
	w.t.Helper()
	c, err := w.Create(ctx, &fsproto.MakeIn{Parent: w.root, Name: name, Mode: 0o644, Flags: flags, Caller: self()})
	must(w.t, err)
	return c
}

func self() fsproto.Caller {
	return fsproto.Caller{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
}

func (w *world) put(name, content string) {
	w.t.Helper()
	must(w.t, os.WriteFile(w.dir+"/"+name, []byte(content), 0o644))
}

func (w *world) read(fh fsproto.FH) string {
	w.t.Helper()
	b, err := w.Read(ctx, fh, 0, 1<<16)
	must(w.t, err)
	return string(b)
}

func (w *world) want(name, content string) {
	w.t.Helper()
	b, err := os.ReadFile(w.dir + "/" + name)
	must(w.t, err)
	if string(b) != content {
		w.t.Fatalf("%s holds %q, want %q", name, b, content)
	}
}

func TestNodesAreObjects(t *testing.T) {
	w := start(t, Options{})
	w.put("a", "x")
	must(t, os.Link(w.dir+"/a", w.dir+"/b"))
	a, b := w.walk("a"), w.walk("b")
	if a.Node != b.Node || a.Attr.Nlink != 2 || a.Attr.Gen != b.Attr.Gen {
		t.Fatal(a, b)
	}
	must(t, os.Remove(w.dir+"/a"))
	must(t, os.Remove(w.dir+"/b"))
	w.put("a", "y")
	if again := w.walk("a"); again.Node == a.Node {
		t.Fatal("another file has the node of an open one")
	}
	r, err := w.Getattr(ctx, a.Node, 0)
	if err != nil || r.Attr.Nlink != 0 {
		t.Fatal(r, err)
	}
	w.Forget([]fsproto.Forgotten{{Node: a.Node, N: 2}})
	if _, err = w.Getattr(ctx, a.Node, 0); fsproto.Errno(err) != unix.ESTALE {
		t.Fatal(err)
	}
	_, err = w.Ref(ctx, a.Node)
	wantErr(t, err, unix.ESTALE)
}

func TestAttributesAreHomes(t *testing.T) {
	w := start(t, Options{})
	w.put("f", "hello")
	var st unix.Stat_t
	must(t, unix.Lstat(w.dir+"/f", &st))
	a := w.walk("f").Attr
	if a.Ino != st.Ino || a.Dev != st.Dev || a.Mode != st.Mode || a.Size != 5 || a.UID != st.Uid ||
		a.Mtime != (fsproto.Time{Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)}) || a.Blocks != uint64(st.Blocks) || a.Btime.Sec == 0 {
		t.Fatalf("%+v\n%+v", a, st)
	}
}

func TestUnlinkedFile(t *testing.T) {
	w := start(t, Options{})
	c := w.create("f", unix.O_RDWR|unix.O_CREAT)
	must(t, w.Unlink(ctx, w.root, "f", self()))
	n, err := w.Write(ctx, &fsproto.WriteIn{FH: c.FH, Data: []byte("data")})
	if n != 4 || err != nil {
		t.Fatal(n, err)
	}
	in := &fsproto.SetattrIn{Node: c.Entry.Node, Mode: 0o600, Size: 2, Mtime: fsproto.Time{Sec: 7, Nsec: 8},
		UID: self().UID, GID: self().GID,
		Valid: fsproto.SetMode | fsproto.SetSize | fsproto.SetMtime | fsproto.SetUID | fsproto.SetGID}
	r, err := w.Setattr(ctx, in)
	if err != nil || r.Attr.Mode != unix.S_IFREG|0o600 || r.Attr.Size != 2 || r.Attr.Mtime != in.Mtime || r.Attr.Nlink != 0 {
		t.Fatal(r, err)
	}
	again, err := w.Open(ctx, c.Entry.Node, unix.O_RDONLY)
	must(t, err)
	if got := w.read(again.FH); got != "da" {
		t.Fatal(got)
	}
	_, err = w.Link(ctx, c.Entry.Node, w.root, "g")
	wantErr(t, err, unix.ENOENT)
	w.Release(c.FH, 0, false)
	_, err = w.Read(ctx, c.FH, 0, 1)
	wantErr(t, err, unix.EBADF)
}

func TestTmpfileGetsAName(t *testing.T) {
	w := start(t, Options{})
	c, err := w.Tmpfile(ctx, &fsproto.MakeIn{Parent: w.root, Mode: 0o666, Umask: 0o22, Flags: unix.O_RDWR, Caller: self()})
	must(t, err)
	_, err = w.Write(ctx, &fsproto.WriteIn{FH: c.FH, Data: []byte("late")})
	must(t, err)
	e, err := w.Link(ctx, c.Entry.Node, w.root, "f")
	must(t, err)
	if e.Node != c.Entry.Node || e.Attr.Nlink != 1 || e.Attr.Mode&0o777 != 0o644 {
		t.Fatal(e)
	}
	w.want("f", "late")
}

func TestMakeAndRemove(t *testing.T) {
	w := start(t, Options{})
	mk := &fsproto.MakeIn{Parent: w.root, Name: "d", Mode: 0o777, Umask: 0o27, Caller: self()}
	d, err := w.Mkdir(ctx, mk)
	must(t, err)
	if d.Attr.Mode != unix.S_IFDIR|0o750 {
		t.Fatalf("%o", d.Attr.Mode)
	}
	_, err = w.Mkdir(ctx, mk)
	wantErr(t, err, unix.EEXIST)
	l, err := w.Symlink(ctx, &fsproto.MakeIn{Parent: d.Node, Name: "l", Target: "/etc/passwd", Caller: self()})
	must(t, err)
	if to, err := w.Readlink(ctx, l.Node); to != "/etc/passwd" || err != nil {
		t.Fatal(to, err)
	}
	_, err = w.Readlink(ctx, d.Node)
	wantErr(t, err, unix.EINVAL)
	_, err = w.Open(ctx, l.Node, unix.O_RDONLY)
	wantErr(t, err, unix.ELOOP)
	p, err := w.Mknod(ctx, &fsproto.MakeIn{Parent: d.Node, Name: "p", Mode: unix.S_IFIFO | 0o600, Caller: self()})
	must(t, err)
	for _, flags := range []uint32{unix.O_RDONLY, unix.O_RDWR, unix.O_WRONLY | unix.O_NONBLOCK} {
		_, err = w.Open(ctx, p.Node, flags)
		wantErr(t, err, unix.ENXIO)
	}
	// Nor by way of a name that turned out to exist.
	_, err = w.Create(ctx, &fsproto.MakeIn{Parent: d.Node, Name: "p", Mode: 0o600, Flags: unix.O_WRONLY, Caller: self()})
	wantErr(t, err, unix.ENXIO)
	_, err = w.Create(ctx, &fsproto.MakeIn{Parent: d.Node, Name: "l", Mode: 0o600, Flags: unix.O_WRONLY, Caller: self()})
	wantErr(t, err, unix.ESTALE)
	wantErr(t, w.Rmdir(ctx, w.root, "d", self()), unix.ENOTEMPTY)
	must(t, w.Unlink(ctx, d.Node, "l", self()))
	must(t, w.Unlink(ctx, d.Node, "p", self()))
	must(t, w.Rmdir(ctx, w.root, "d", self()))
	_, err = w.Lookup(ctx, w.root, "d")
	wantErr(t, err, unix.ENOENT)
}

func TestCreateExclusive(t *testing.T) {
	w := start(t, Options{})
	w.create("f", unix.O_RDWR|unix.O_EXCL)
	_, err := w.Create(ctx, &fsproto.MakeIn{Parent: w.root, Name: "f", Mode: 0o600, Flags: unix.O_RDWR | unix.O_EXCL, Caller: self()})
	wantErr(t, err, unix.EEXIST)
	w.put("f", "old")
	c := w.create("f", unix.O_RDWR|unix.O_TRUNC)
	if c.Entry.Attr.Size != 0 {
		t.Fatal(c.Entry.Attr.Size)
	}
}

func TestDefaultACL(t *testing.T) {
	w := start(t, Options{})
	// version 2; user rwx, group rwx, mask rwx, other none: acl(5) entries of
	// tag, permissions, id.
	acl := []byte{2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 4, 0, 7, 0, 255, 255, 255, 255,
		0x10, 0, 7, 0, 255, 255, 255, 255, 0x20, 0, 0, 0, 255, 255, 255, 255}
	must(t, w.Setxattr(ctx, &fsproto.XattrIn{Node: w.root, Name: "system.posix_acl_default", Value: acl}))
	c, err := w.Create(ctx, &fsproto.MakeIn{Parent: w.root, Name: "f", Mode: 0o666, Umask: 0o77, Flags: unix.O_RDWR, Caller: self()})
	must(t, err)
	if mode := c.Entry.Attr.Mode & 0o777; mode != 0o660 {
		t.Fatalf("%o", mode)
	}
}

func TestNamesAreChecked(t *testing.T) {
	w := start(t, Options{})
	for _, name := range []string{"", ".", "..", "a/b", "/etc", "x\x00y"} {
		_, err := w.o.Lookup(ctx, w.root, name)
		wantErr(t, err, unix.EINVAL)
		_, err = w.o.Mkdir(ctx, &fsproto.MakeIn{Parent: w.root, Name: name, Mode: 0o755})
		wantErr(t, err, unix.EINVAL)
		wantErr(t, w.o.Rename(ctx, &fsproto.RenameIn{Parent: w.root, Name: "a", NewParent: w.root, NewName: name}), unix.EINVAL)
		wantErr(t, w.o.Unlink(ctx, w.root, name, self()), unix.EINVAL)
	}
}

// TestDeep works where no path is short enough to be named.
func TestDeep(t *testing.T) {
	w := start(t, Options{})
	name := strings.Repeat("d", 250)
	dir := w.root
	for range 20 {
		e, err := w.Mkdir(ctx, &fsproto.MakeIn{Parent: dir, Name: name, Mode: 0o755, Caller: self()})
		must(t, err)
		dir = e.Node
	}
	c, err := w.Create(ctx, &fsproto.MakeIn{Parent: dir, Name: "f", Mode: 0o600, Flags: unix.O_RDWR, Caller: self()})
	must(t, err)
	must(t, w.Rename(ctx, &fsproto.RenameIn{Parent: dir, Name: "f", NewParent: dir, NewName: "g", Caller: self()}))
	_, err = w.Open(ctx, c.Entry.Node, unix.O_RDONLY)
	must(t, err)
	_, err = w.Link(ctx, c.Entry.Node, dir, "h")
	must(t, err)
}

func TestRename(t *testing.T) {
	w := start(t, Options{})
	w.put("a", "a")
	w.put("b", "b")
	must(t, os.Mkdir(w.dir+"/d", 0o755))
	d := w.walk("d")
	in := func(name string, to fsproto.Node, newName string, flags uint32) error {
		return w.Rename(ctx, &fsproto.RenameIn{Parent: w.root, Name: name, NewParent: to, NewName: newName, Flags: flags, Caller: self()})
	}
	wantErr(t, in("a", w.root, "b", unix.RENAME_NOREPLACE), unix.EEXIST)
	must(t, in("a", w.root, "b", unix.RENAME_EXCHANGE))
	w.want("a", "b")
	must(t, in("a", d.Node, "c", 0))
	w.want("d/c", "b")
	if os.Geteuid() == 0 { // needs CAP_MKNOD
		must(t, in("b", d.Node, "w", unix.RENAME_WHITEOUT))
		if e := w.walk("b"); e.Attr.Mode&unix.S_IFMT != unix.S_IFCHR {
			t.Fatalf("%o", e.Attr.Mode)
		} else {
			_, err := w.Open(ctx, e.Node, unix.O_RDONLY)
			wantErr(t, err, unix.EACCES)
		}
	}
}

func TestAppend(t *testing.T) {
	w := start(t, Options{})
	w.put("f", "home\n")
	n := w.walk("f")
	plain, err := w.Open(ctx, n.Node, unix.O_RDWR)
	must(t, err)
	app, err := w.Open(ctx, n.Node, unix.O_WRONLY|unix.O_APPEND)
	must(t, err)
	write := func(fh fsproto.FH, off int64, app bool, s string) {
		t.Helper()
		if m, err := w.Write(ctx, &fsproto.WriteIn{FH: fh, Off: off, Append: app, Data: []byte(s)}); m != len(s) || err != nil {
			t.Fatal(m, err)
		}
	}
	write(app.FH, 0, true, "one\n")
	w.want("f", "home\none\n")
	write(plain.FH, 0, true, "two\n") // O_APPEND set after the open
	write(app.FH, 0, false, "HOME")   // and taken away
	write(plain.FH, 5, false, "O")
	w.want("f", "HOME\nOne\ntwo\n")
	_, err = w.Write(ctx, &fsproto.WriteIn{FH: plain.FH, Stream: true, Data: []byte("x")})
	wantErr(t, err, unix.EINVAL)
}

func TestReadBounds(t *testing.T) {
	w := start(t, Options{})
	data := bytes.Repeat([]byte("0123456789abcdef"), 2<<20/16)
	must(t, os.WriteFile(w.dir+"/f", data, 0o600))
	op, err := w.Open(ctx, w.walk("f").Node, unix.O_RDONLY)
	must(t, err)
	for _, x := range []struct{ off, size, want int }{{0, fsproto.MaxIO, fsproto.MaxIO}, {1 << 20, 2 << 20, fsproto.MaxIO},
		{2<<20 - 5, 100, 5}, {2 << 20, 100, 0}, {5 << 20, 1, 0}, {7, 700000, 700000}} {
		b, err := w.Read(ctx, op.FH, int64(x.off), x.size)
		if err != nil || len(b) != x.want || x.want > 0 && !bytes.Equal(b, data[x.off:x.off+x.want]) {
			t.Fatal(x, len(b), err)
		}
	}
	_, err = w.Read(ctx, op.FH, -1, 1)
	wantErr(t, err, unix.EINVAL)
}

func TestSparseAndCopy(t *testing.T) {
	w := start(t, Options{})
	a, b := w.create("a", unix.O_RDWR), w.create("b", unix.O_RDWR)
	must(t, w.Fallocate(ctx, a.FH, 0, 0, 1<<20))
	if r, err := w.Getattr(ctx, a.Entry.Node, a.FH); err != nil || r.Attr.Size != 1<<20 {
		t.Fatal(r, err)
	}
	_, err := w.Write(ctx, &fsproto.WriteIn{FH: b.FH, Off: 1 << 20, Data: []byte("data")})
	must(t, err)
	if off, err := w.Lseek(ctx, b.FH, 0, unix.SEEK_DATA); err != nil || off != 1<<20 {
		t.Fatal(off, err)
	}
	_, err = w.Lseek(ctx, b.FH, 2<<20, unix.SEEK_DATA)
	wantErr(t, err, unix.ENXIO)
	n, err := w.CopyRange(ctx, &fsproto.CopyIn{In: b.FH, Out: a.FH, InOff: 1 << 20, OutOff: 3, Len: 100})
	if n != 4 || err != nil {
		t.Fatal(n, err)
	}
	if got := w.read(a.FH)[:8]; got != "\x00\x00\x00data\x00" {
		t.Fatalf("%q", got)
	}
	must(t, w.Fsync(ctx, a.FH, false))
	must(t, w.Fsync(ctx, a.FH, true))
	must(t, w.Flush(ctx, a.FH, 1))
}

func TestReaddir(t *testing.T) {
	w := start(t, Options{})
	const entries = 20000
	w.put("first", "")
	for i := range entries - 1 {
		must(t, os.Link(w.dir+"/first", fmt.Sprintf("%s/%d", w.dir, i)))
	}
	d, err := w.Opendir(ctx, w.root)
	must(t, err)
	var all []fsproto.Dirent
	for off := uint64(0); ; {
		list, err := w.Readdir(ctx, d.FH, off, 64<<10)
		must(t, err)
		if len(list) == 0 {
			break
		}
		all = append(all, list...)
		off = list[len(list)-1].Off
	}
	seen := make(map[string]bool)
	for _, e := range all {
		seen[e.Name] = true
	}
	if len(all) != entries+2 || len(seen) != entries+2 || !seen["."] || !seen[".."] {
		t.Fatal(len(all), len(seen))
	}
	for _, i := range []int{entries / 2, 3, entries - 1, 0} {
		list, err := w.Readdir(ctx, d.FH, all[i].Off, 1)
		if err != nil || list[0].Name != all[i+1].Name {
			t.Fatal(i, list, err)
		}
	}
	must(t, w.Fsyncdir(ctx, d.FH, false))
	w.Releasedir(d.FH)
	_, err = w.Readdir(ctx, d.FH, 0, 1)
	wantErr(t, err, unix.EBADF)
}

func TestXattr(t *testing.T) {
	w := start(t, Options{})
	w.put("f", "")
	n := w.walk("f").Node
	big := bytes.Repeat([]byte("v"), 2000)
	must(t, w.Setxattr(ctx, &fsproto.XattrIn{Node: n, Name: "user.a", Value: big}))
	if v, err := w.Getxattr(ctx, &fsproto.XattrIn{Node: n, Name: "user.a"}); err != nil || !bytes.Equal(v, big) {
		t.Fatal(len(v), err)
	}
	if v, err := w.Listxattr(ctx, n); err != nil || !bytes.Contains(v, []byte("user.a\x00")) {
		t.Fatal(v, err)
	}
	must(t, w.Removexattr(ctx, &fsproto.XattrIn{Node: n, Name: "user.a"}))
	_, err := w.Getxattr(ctx, &fsproto.XattrIn{Node: n, Name: "user.a"})
	wantErr(t, err, unix.ENODATA)
	must(t, os.Symlink("f", w.dir+"/l"))
	wantErr(t, w.Setxattr(ctx, &fsproto.XattrIn{Node: w.walk("l").Node, Name: "user.a", Value: big}), unix.EPERM)
}

func TestFlagsStatfsAccess(t *testing.T) {
	w := start(t, Options{})
	w.put("f", "")
	n := w.walk("f").Node
	flags, err := w.Getflags(ctx, n)
	must(t, err)
	const noDump = 0x40 // FS_NODUMP_FL
	must(t, w.Setflags(ctx, n, flags|noDump))
	if got, err := w.Getflags(ctx, n); err != nil || got&noDump == 0 {
		t.Fatal(got, err)
	}
	if st, err := w.Statfs(ctx, n); err != nil || st.Blocks == 0 || st.Namelen != 255 || st.Type == 0 {
		t.Fatal(st, err)
	}
	must(t, w.Access(ctx, n, unix.R_OK|unix.W_OK))
	wantErr(t, w.Access(ctx, n, unix.X_OK), unix.EACCES)
}

func TestKillSuid(t *testing.T) {
	w := start(t, Options{})
	c := w.create("f", unix.O_RDWR)
	mode := func() uint32 {
		r, err := w.Getattr(ctx, c.Entry.Node, 0)
		must(t, err)
		return r.Attr.Mode & 0o7777
	}
	must(t, os.Chmod(w.dir+"/f", os.ModeSetuid|os.ModeSetgid|0o775))
	_, err := w.Write(ctx, &fsproto.WriteIn{FH: c.FH, Data: []byte("x"), KillSuid: true})
	must(t, err)
	if mode() != 0o775 {
		t.Fatalf("%o", mode())
	}
	must(t, os.Chmod(w.dir+"/f", os.ModeSetuid|0o755))
	_, err = w.Setattr(ctx, &fsproto.SetattrIn{Node: c.Entry.Node, Valid: fsproto.SetSize | fsproto.KillSuid})
	must(t, err)
	if mode() != 0o755 {
		t.Fatalf("%o", mode())
	}
}

// TestCaller makes files as another user, which only root can.
func TestCaller(t *testing.T) {
	if os.Geteuid() != 0 {
		return
	}
	w := start(t, Options{})
	by := fsproto.Caller{UID: 1234, GID: 5678}
	c, err := w.Create(ctx, &fsproto.MakeIn{Parent: w.root, Name: "f", Mode: 0o600, Flags: unix.O_RDWR, Caller: by})
	must(t, err)
	d, err := w.Mkdir(ctx, &fsproto.MakeIn{Parent: w.root, Name: "d", Mode: 0o700, Caller: by})
	must(t, err)
	l, err := w.Symlink(ctx, &fsproto.MakeIn{Parent: d.Node, Name: "l", Target: "x", Caller: by})
	must(t, err)
	for _, a := range []fsproto.Attr{c.Entry.Attr, d.Attr, l.Attr} {
		if a.UID != by.UID || a.GID != by.GID {
			t.Fatalf("%+v", a)
		}
	}
	must(t, os.Chown(w.dir+"/d", 7, 8))
	must(t, os.Chmod(w.dir+"/d", os.ModeSetgid|0o777))
	sub, err := w.Mkdir(ctx, &fsproto.MakeIn{Parent: d.Node, Name: "sub", Mode: 0o755, Caller: by})
	if err != nil || sub.Attr.GID != 8 || sub.Attr.Mode&unix.S_ISGID == 0 || sub.Attr.UID != by.UID {
		t.Fatal(sub, err)
	}
	// No thread keeps those ids.
	for range 50 {
		if e := w.create("own", unix.O_RDWR); e.Entry.Attr.UID != 0 || e.Entry.Attr.GID != 0 {
			t.Fatal(e)
		}
		must(t, w.Unlink(ctx, w.root, "own", self()))
	}
}

func (w *world) lock(n fsproto.Node, owner uint64, kind uint32, start, end uint64) error {
	return w.Setlk(ctx, &fsproto.Lock{Node: n, Owner: owner, Type: kind, Start: start, End: end, Pid: int32(owner)})
}

const toEnd = 1<<63 - 1

func TestRecordLocks(t *testing.T) {
	w := start(t, Options{})
	w.put("f", "x")
	n := w.walk("f").Node
	other := posix.NewOther(t, w.dir+"/f")
	must(t, w.lock(n, 1, unix.F_WRLCK, 0, 9))
	wantErr(t, w.lock(n, 2, unix.F_RDLCK, 5, toEnd), unix.EAGAIN)
	must(t, w.lock(n, 2, unix.F_RDLCK, 10, toEnd))
	other.Tell("posix r 9 1")
	other.Want("EAGAIN")
	other.Tell("posix r 10 0")
	other.Want("ok")
	got, err := w.Getlk(ctx, &fsproto.Lock{Node: n, Owner: 2, Type: unix.F_WRLCK, Start: 3, End: 3})
	if err != nil || got.Type != unix.F_WRLCK || got.Pid != 1 || got.Start != 0 || got.End != 9 {
		t.Fatal(got, err)
	}
	must(t, w.lock(n, 2, unix.F_UNLCK, 0, toEnd))
	got, err = w.Getlk(ctx, &fsproto.Lock{Node: n, Owner: 2, Type: unix.F_WRLCK, Start: 20, End: toEnd})
	if err != nil || got.Type != unix.F_RDLCK || got.Pid != int32(other.Pid()) || got.Start != 10 || got.End != toEnd {
		t.Fatal(got, err)
	}
	got, err = w.Getlk(ctx, &fsproto.Lock{Node: n, Owner: 1, Type: unix.F_WRLCK, Start: 0, End: 9})
	if err != nil || got.Type != unix.F_UNLCK {
		t.Fatal(got, err)
	}
	// A close of any descriptor of the file by the owner drops its locks.
	op, err := w.Open(ctx, n, unix.O_RDONLY)
	must(t, err)
	must(t, w.Flush(ctx, op.FH, 1))
	other.Tell("posix w 0 0")
	other.Want("ok")
}

func TestLockWait(t *testing.T) {
	w := start(t, Options{})
	w.put("f", "x")
	n := w.walk("f").Node
	other := posix.NewOther(t, w.dir+"/f")
	other.Tell("posix w 0 0")
	other.Want("ok")
	waiting, cancel := context.WithCancel(ctx)
	got := make(chan error, 1)
	wish := &fsproto.Lock{Node: n, Owner: 1, Type: unix.F_WRLCK, End: toEnd, Wait: true}
	go func() { got <- w.Setlk(waiting, wish) }()
	for w.Counts()["setlk"] == 0 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	wantErr(t, <-got, unix.EINTR)
	go func() { got <- w.Setlk(ctx, wish) }()
	for w.Counts()["setlk"] < 2 {
		time.Sleep(time.Millisecond)
	}
	other.Tell("posix u 0 0")
	other.Want("ok")
	must(t, <-got)
	// Between two owners of this origin.
	second := *wish
	second.Owner = 2
	go func() { got <- w.Setlk(ctx, &second) }()
	for w.Counts()["setlk"] < 3 {
		time.Sleep(time.Millisecond)
	}
	must(t, w.lock(n, 1, unix.F_UNLCK, 0, toEnd))
	must(t, <-got)
}

func TestFlock(t *testing.T) {
	w := start(t, Options{})
	w.put("f", "x")
	n := w.walk("f").Node
	op, err := w.Open(ctx, n, unix.O_RDONLY)
	must(t, err)
	other := posix.NewOther(t, w.dir+"/f")
	flock := func(owner uint64, kind uint32) error {
		return w.Setlk(ctx, &fsproto.Lock{Node: n, FH: op.FH, Owner: owner, Type: kind, Flock: true})
	}
	must(t, flock(1, unix.F_RDLCK))
	must(t, flock(2, unix.F_RDLCK))
	wantErr(t, flock(1, unix.F_WRLCK), unix.EAGAIN)
	other.Tell("flock ex")
	other.Want("EAGAIN")
	must(t, flock(2, unix.F_UNLCK))
	must(t, flock(1, unix.F_WRLCK))
	other.Tell("flock sh")
	other.Want("EAGAIN")
	w.Release(op.FH, 1, true)
	must(t, w.Access(ctx, n, 0)) // the release was handled
	other.Tell("flock sh")
	other.Want("ok")
}

func TestReleaseDropsDescriptionLocks(t *testing.T) {
	w := start(t, Options{})
	w.put("f", "x")
	n := w.walk("f").Node
	op, err := w.Open(ctx, n, unix.O_RDWR)
	must(t, err)
	must(t, w.Setlk(ctx, &fsproto.Lock{Node: n, FH: op.FH, Owner: 9, Type: unix.F_WRLCK, End: toEnd}))
	other := posix.NewOther(t, w.dir+"/f")
	other.Tell("posix w 0 0")
	other.Want("EAGAIN")
	w.Release(op.FH, 0, false)
	must(t, w.Access(ctx, n, 0))
	other.Tell("posix w 0 0")
	other.Want("ok")
}

func TestAdopt(t *testing.T) {
	w := start(t, Options{})
	w.put("f", "0123456789")
	f, err := os.OpenFile(w.dir+"/f", os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	_, err = f.Seek(4, io.SeekStart)
	must(t, err)
	fh, err := w.o.AdoptFile(int(f.Fd()))
	must(t, err)
	n, attr, err := w.o.AdoptNode(int(f.Fd()))
	if err != nil || attr.Size != 10 || n != w.walk("f").Node {
		t.Fatal(n, attr, err)
	}
	must(t, os.Remove(w.dir+"/f")) // the description needs no name
	_, err = w.Write(ctx, &fsproto.WriteIn{FH: fh, Stream: true, Data: []byte("AB")})
	must(t, err)
	_, err = w.Write(ctx, &fsproto.WriteIn{FH: fh, Off: 0, Data: []byte("z")})
	must(t, err)
	if pos, err := w.o.Position(fh); pos != 6 || err != nil {
		t.Fatal(pos, err)
	}
	if off, err := w.Lseek(ctx, fh, 0, unix.SEEK_HOLE); off != 10 || err != nil {
		t.Fatal(off, err)
	}
	must(t, w.o.SetPosition(fh, 9))
	b := make([]byte, 5)
	if m, err := f.Read(b); m != 1 || err != nil || b[0] != '9' {
		t.Fatal(m, err)
	}
	if got := w.read(fh); got != "z123AB6789" {
		t.Fatal(got)
	}
	w.Release(fh, 0, false)
	must(t, w.Access(ctx, w.root, 0))
	_, err = f.WriteAt([]byte("x"), 0)
	must(t, err)
	w.o.Drop(n)
	w.Forget([]fsproto.Forgotten{{Node: n, N: 1}})
	_, err = w.Getattr(ctx, n, 0)
	wantErr(t, err, unix.ESTALE)
}

func TestAdoptKeepsRights(t *testing.T) {
	w := start(t, Options{})
	w.put("f", "one\n")
	ro, err := os.Open(w.dir + "/f")
	must(t, err)
	defer ro.Close()
	app, err := os.OpenFile(w.dir+"/f", os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	defer app.Close()
	fh, err := w.o.AdoptFile(int(ro.Fd()))
	must(t, err)
	_, err = w.Write(ctx, &fsproto.WriteIn{FH: fh, Data: []byte("x")})
	wantErr(t, err, unix.EBADF)
	fh2, err := w.o.AdoptFile(int(app.Fd()))
	must(t, err)
	_, err = w.Read(ctx, fh2, 0, 1)
	wantErr(t, err, unix.EBADF)
	for _, in := range []fsproto.WriteIn{{Stream: true, Append: true}, {Append: true}, {Stream: true}} {
		in.FH, in.Data = fh2, []byte("x\n")
		_, err = w.Write(ctx, &in)
		must(t, err)
	}
	w.want("f", "one\nx\nx\nx\n")
}

func TestHide(t *testing.T) {
	var dir string
	w := start(t, Options{Hide: func(path string) bool { return path == dir+"/secret" || strings.HasPrefix(path, dir+"/secret/") }})
	dir, _ = filepath.EvalSymlinks(w.dir)
	must(t, os.Mkdir(dir+"/secret", 0o755))
	must(t, os.Mkdir(dir+"/open", 0o755))
	_, err := w.Lookup(ctx, w.root, "secret")
	wantErr(t, err, unix.ENOENT)
	_, err = w.Mkdir(ctx, &fsproto.MakeIn{Parent: w.root, Name: "secret", Mode: 0o755})
	wantErr(t, err, unix.EACCES)
	wantErr(t, w.Rename(ctx, &fsproto.RenameIn{Parent: w.root, Name: "open", NewParent: w.root, NewName: "secret"}), unix.EACCES)
	d, err := w.Opendir(ctx, w.root)
	must(t, err)
	list, err := w.Readdir(ctx, d.FH, 0, 4096)
	must(t, err)
	var names []string
	for _, e := range list {
		names = append(names, e.Name)
	}
	slices.Sort(names)
	if !slices.Equal(names, []string{".", "..", "open"}) {
		t.Fatal(names)
	}
}

func TestPrivateKeys(t *testing.T) {
	w := start(t, Options{})
	must(t, os.MkdirAll(w.dir+"/.ssh", 0o700))
	must(t, os.MkdirAll(w.dir+"/.gnupg/private-keys-v1.d", 0o700))
	for name, hidden := range map[string]bool{".ssh/id_rsa": true, ".ssh/id_rsa.pub": false, ".ssh/config": false,
		".gnupg/private-keys-v1.d/key": true, ".gnupg/pubring.kbx": false} {
		w.put(name, "content")
		n := w.walk(name)
		_, err := w.Open(ctx, n.Node, unix.O_RDONLY)
		if got := fsproto.Errno(err) == unix.EACCES; got != hidden {
			t.Errorf("%s: %v", name, err)
		}
		_, err = w.Link(ctx, n.Node, w.root, "copy")
		if got := fsproto.Errno(err) == unix.EACCES; got != hidden {
			t.Errorf("link %s: %v", name, err)
		}
		os.Remove(w.dir + "/copy")
	}
	ssh := w.walk(".ssh").Node
	wantErr(t, w.Rename(ctx, &fsproto.RenameIn{Parent: ssh, Name: "id_rsa", NewParent: w.root, NewName: "x"}), unix.EACCES)
}

// TestFewDescriptors walks many more nodes than there are descriptors for.
func TestFewDescriptors(t *testing.T) {
	w := start(t, Options{MaxNodes: 20})
	var nodes []fsproto.Entry
	for i := range 20 {
		must(t, os.Mkdir(fmt.Sprintf("%s/%d", w.dir, i), 0o755))
		for j := range 10 {
			name := fmt.Sprintf("%d/%d", i, j)
			w.put(name, name)
			nodes = append(nodes, w.walk(name))
		}
	}
	if n := len(descriptors(t)); n > 100 {
		t.Fatalf("%d descriptors", n)
	}
	must(t, os.Remove(w.dir+"/7/3"))
	w.put("new", "")
	for i, e := range nodes {
		if i == 73 {
			continue // gone, unless something still pinned it
		}
		op, err := w.Open(ctx, e.Node, unix.O_RDONLY)
		must(t, err)
		if got, want := w.read(op.FH), fmt.Sprintf("%d/%d", i/10, i%10); got != want {
			t.Fatalf("%q, want %q", got, want)
		}
		w.Release(op.FH, 0, false)
		if again := w.walk(fmt.Sprintf("%d/%d", i/10, i%10)); again.Node != e.Node {
			t.Fatal("a node that was given up came back as another")
		}
	}
	if _, err := w.Getattr(ctx, nodes[73].Node, 0); err != nil && fsproto.Errno(err) != unix.ESTALE {
		t.Fatal(err)
	}
}

func TestConcurrentLookups(t *testing.T) {
	w := start(t, Options{MaxNodes: 5})
	for i := range 30 {
		w.put(fmt.Sprint(i), "x")
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 120 {
				e, err := w.Lookup(ctx, w.root, fmt.Sprint((i*7+g)%30))
				if err != nil {
					t.Error(err)
					return
				}
				op, err := w.Open(ctx, e.Node, unix.O_RDWR)
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := w.Read(ctx, op.FH, 0, 10); err != nil {
					t.Error(err)
				}
				w.Release(op.FH, 0, false)
				w.Forget([]fsproto.Forgotten{{Node: e.Node, N: 1}})
			}
		})
	}
	wg.Wait()
	must(t, w.Access(ctx, w.root, 0))
	w.o.mu.Lock()
	defer w.o.mu.Unlock()
	if len(w.o.nodes) != 1 || len(w.o.files) != 0 || w.o.evicted != 0 {
		t.Fatal(len(w.o.nodes), len(w.o.files), w.o.evicted)
	}
}

func TestMounts(t *testing.T) {
	w := start(t, Options{})
	list, err := w.o.Mounts()
	must(t, err)
	if list[0].Path != "/" {
		t.Fatal(list)
	}
	for i, m := range list {
		if m.Path == "/proc" || strings.HasPrefix(m.Path, "/sys/") || m.Type == "proc" {
			t.Error(m)
		}
		if i > 0 && m.Path <= list[i-1].Path {
			t.Error("order: ", m.Path)
		}
		if r, err := w.Getattr(ctx, fsproto.Node(m.Root), 0); err != nil || r.Attr.Dev != m.Dev {
			t.Error(m, err)
		}
	}
}

func TestParseMount(t *testing.T) {
	m, err := parseMount(`36 35 98:0 /mnt1 /mnt\0402 ro,noatime master:1 - ext4 /dev/a\134b rw,errors=continue`)
	if err != nil || m != (mountLine{36, "/mnt 2", "ext4", `/dev/a\b`, true}) {
		t.Fatalf("%+v %v", m, err)
	}
	for _, bad := range []string{"", "1 2 3", "x 35 98:0 / / rw - ext4 a rw", "36 35 98:0 / / rw -"} {
		if _, err := parseMount(bad); err == nil {
			t.Error(bad)
		}
	}
}

func FuzzParseMount(f *testing.F) {
	f.Add(`36 35 98:0 /mnt1 /mnt\0402 ro,noatime master:1 - ext4 /dev/a\134b rw`)
	f.Fuzz(func(t *testing.T, line string) { _, _ = parseMount(line) })
}

func TestClosed(t *testing.T) {
	w := start(t, Options{})
	c := w.create("f", unix.O_RDWR)
	w.o.Close()
	_, err := w.Lookup(ctx, w.root, "f")
	wantErr(t, err, unix.ESTALE)
	_, err = w.Read(ctx, c.FH, 0, 1)
	wantErr(t, err, unix.EBADF)
	if _, _, err := w.o.Root("/"); !errors.Is(err, unix.ESTALE) {
		t.Fatal(err)
	}
}
