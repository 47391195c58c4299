package launch

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"rexec/fsview/mounts"
)

// patience is how long a test waits for what should happen soon.
const patience = 30 * time.Second

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		os.Exit(Main())
	}
	unix.Umask(0o022)
	os.Exit(m.Run())
}

// session is an init with one view, its root a passthrough of "/".
type session struct {
	t       testing.TB
	init    *Init
	view    View
	servers []*fuse.Server

	mu     sync.Mutex
	cond   *sync.Cond
	events map[[16]byte][]Event
	closed bool
}

func newSession(t testing.TB) *session {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Program: self, UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), Hostname: "home",
		Privileged: os.Getuid() == 0, FuseDevice: os.Getenv("LAUNCH_TEST_FUSE"), Verbose: t.Logf}
	i, err := Start(cfg)
	if err != nil {
		t.Fatalf("start: %v", err)
	}
	s := &session{t: t, init: i, events: make(map[[16]byte][]Event)}
	s.cond = sync.NewCond(&s.mu)
	go s.collect()
	t.Cleanup(s.close)
	s.view = s.build(ViewSpec{FUSE: []mounts.FUSE{{Path: "/", Source: "home", Type: "rexec"}},
		Files: []mounts.File{{Path: "/etc/hostname", Data: []byte("made\n")}}, DefaultPermissions: os.Getuid() == 0})
	return s
}

func (s *session) build(spec ViewSpec) View {
	s.t.Helper()
	v, err := s.init.BuildView(spec, s.serve)
	if err != nil {
		s.t.Fatalf("view: %v", err)
	}
	return v
}

func (s *session) serve(_ int, dev *os.File) error { return s.serveRoot("/", dev) }

func (s *session) serveRoot(dir string, dev *os.File) error {
	root, err := fs.NewLoopbackRoot(dir)
	if err != nil {
		return err
	}
	fd, err := unix.FcntlInt(dev.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	dev.Close()
	if err != nil {
		return err
	}
	server, err := fs.Mount(fmt.Sprintf("/dev/fd/%d", fd), root, &fs.Options{RootStableAttr: &fs.StableAttr{Ino: 2}})
	if err != nil {
		return err
	}
	s.servers = append(s.servers, server)
	return nil
}

func (s *session) close() {
	if err := s.init.Close(); err != nil {
		s.t.Error(err)
	}
	for _, server := range s.servers {
		server.Wait()
	}
}

func (s *session) collect() {
	for e := range s.init.Events() {
		s.mu.Lock()
		s.events[e.ID] = append(s.events[e.ID], e)
		s.cond.Broadcast()
		s.mu.Unlock()
	}
	s.mu.Lock()
	s.closed = true
	s.cond.Broadcast()
	s.mu.Unlock()
}

// await gives the next event of a job, which must be of that kind.
func (s *session) await(id [16]byte, kind EventKind) Event {
	s.t.Helper()
	e := s.next(id)
	if e.Kind != kind {
		s.t.Fatalf("event %+v, want kind %d", e, kind)
	}
	return e
}

func (s *session) next(id [16]byte) Event {
	s.t.Helper()
	late := time.AfterFunc(patience, func() { panic("no event of a job") })
	defer late.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.events[id]) == 0 {
		if s.closed {
			s.t.Fatal("init has ended")
		}
		s.cond.Wait()
	}
	e := s.events[id][0]
	s.events[id] = s.events[id][1:]
	return e
}

// shell is a job that runs text, with its output on file 0.
func (s *session) shell(text string, args ...string) *Job {
	argv := append([]string{"sh", "-c", text, "sh"}, args...)
	return s.job("/bin/sh", argv...)
}

func (s *session) job(path string, argv ...string) *Job {
	j := &Job{View: s.view, Paths: [][]byte{[]byte(path)}, Cwd: []byte("/"), Umask: 0o22,
		UID: uint32(os.Getuid()), GID: uint32(os.Getgid()),
		Env: [][]byte{[]byte("PATH=/usr/local/bin:/usr/bin:/bin")}, Pid: 5200, Ppid: 5000, Pgrp: 5200, Sid: 5000}
	rand.Read(j.ID[:])
	desc := binary.NativeEndian.Uint64(j.ID[:]) | 1<<63
	for _, a := range argv {
		j.Argv = append(j.Argv, []byte(a))
	}
	j.FDs = []FD{{Num: 0, Source: SourceOpen, Path: []byte("/dev/null")},
		{Num: 1, Desc: desc, Source: SourceFile}, {Num: 2, Desc: desc, Source: SourceFile}}
	return j
}

// output runs a job and gives what it wrote and how it ended.
func (s *session) output(j *Job) (string, Event) {
	s.t.Helper()
	r, done := s.start(j)
	out, err := io.ReadAll(r)
	if err != nil {
		s.t.Fatal(err)
	}
	<-done
	e := s.await(j.ID, EventEnded)
	s.await(j.ID, EventGone)
	return string(out), e
}

// blockingPipe is a pipe as jobs expect it: Go's own do not block.
func blockingPipe() (r, w *os.File, err error) {
	if r, w, err = os.Pipe(); err != nil {
		return nil, nil, err
	}
	for _, f := range []*os.File{r, w} {
		if err := unix.SetNonblock(int(f.Fd()), false); err != nil {
			return nil, nil, err
		}
	}
	return r, w, nil
}

// start launches a job whose file 0 is a pipe.
func (s *session) start(j *Job, more ...*os.File) (*os.File, chan Launched) {
	s.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { r.Close() })
	l, f, err := s.init.Launch(j, append([]*os.File{w}, more...))
	w.Close()
	if err != nil || f != nil {
		s.t.Fatalf("launch: %v %+v", err, f)
	}
	done := make(chan Launched, 1)
	done <- l
	return r, done
}

func (s *session) check(j *Job, want string) {
	s.t.Helper()
	got, e := s.output(j)
	if got != want || e.Status.Code != 0 || e.Status.Signal != 0 {
		s.t.Fatalf("got %q, status %+v; want %q", got, e.Status, want)
	}
}

// everywhere runs a test as root and, in a process of its own, as a user
// without privilege.
func everywhere(t *testing.T, f func(t *testing.T)) {
	if os.Getenv("LAUNCH_TEST_USER") != "" {
		f(t)
		return
	}
	if os.Getuid() != 0 {
		t.Fatal("must run as root: the tests make a FUSE device node and change users")
	}
	t.Run("root", f)
	t.Run("user", func(t *testing.T) { rerun(t, strings.Split(t.Name(), "/")[0]) })
}

func rerun(t *testing.T, name string) {
	dir, err := os.MkdirTemp("", "launch")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	node, program := filepath.Join(dir, "fuse"), filepath.Join(dir, "program")
	if err := unix.Mknod(node, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 229))); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(node, 0o666); err != nil {
		t.Fatal(err)
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, self, 0o755); err != nil {
		t.Fatal(err)
	}
	home := filepath.Join(dir, "tmp")
	if err := os.Mkdir(home, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(home, 0o777); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-test.run=^"+name+"$", "-test.v", "-test.timeout=100s")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "LAUNCH_TEST_USER=1", "LAUNCH_TEST_FUSE="+node, "TMPDIR="+home)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+name)) {
		t.Fatalf("as a user: %v\n%s", err, out)
	}
}

func BenchmarkLaunch(b *testing.B) {
	s := newSession(b)
	v := s.build(ViewSpec{FUSE: []mounts.FUSE{{Path: "/", Source: "home", Type: "rexec"}}, DefaultPermissions: true, Binds: []string{"/usr"}})
	for b.Loop() {
		j := s.job("/usr/bin/true", "true")
		j.View, j.FDs = v, nil
		if _, f, err := s.init.Launch(j, nil); err != nil || f != nil {
			b.Fatal(err, f)
		}
		s.await(j.ID, EventEnded)
	}
}

// Whatever a job is, telling init of it must not crash either side.
func FuzzJob(f *testing.F) {
	b, err := cbor.Marshal(&Job{Argv: [][]byte{[]byte("x")}, FDs: []FD{{Num: 1, Path: []byte("/")}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var j Job
		if (&message{body: b}).decode(&j) != nil {
			return
		}
		a, block, err := new(server).newJobBlock(&j, make([]int, len(j.FDs)))
		if err != nil {
			t.Fatal(err)
		}
		if block.nfds != len(j.FDs) {
			t.Fatal("descriptors lost")
		}
		a.free()
	})
}

func TestRun(t *testing.T) {
	everywhere(t, func(t *testing.T) {
		s := newSession(t)
		s.check(s.shell("echo hello; uname -n; cat /etc/hostname; pwd"), "hello\nhome\nmade\n/\n")
		s.check(s.shell(`echo $$ $PPID; read a b c d e f g h </proc/self/stat; echo $d $f`), "5200 5000\n5000 5000\n")
		out, e := s.output(s.shell("exit 7"))
		if e.Status.Code != 7 {
			t.Fatalf("%q %+v", out, e)
		}
		out, e = s.output(s.shell("kill -USR1 $$"))
		if e.Status.Signal != int(unix.SIGUSR1) {
			t.Fatalf("%q %+v", out, e)
		}
	})
}

// TestInitDiesAtOnce starts an init that ends before it says anything.
func TestInitDiesAtOnce(t *testing.T) {
	ended := make(chan error, 1)
	go func() {
		_, err := Start(Config{Program: "/bin/true", Privileged: os.Getuid() == 0})
		ended <- err
	}()
	select {
	case err := <-ended:
		if !errors.Is(err, ErrGone) {
			t.Errorf("start: %v, not %v", err, ErrGone)
		}
	case <-time.After(patience):
		t.Fatal("start waits for an init that has ended")
	}
}
