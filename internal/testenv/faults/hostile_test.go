package faults

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rexec/fsview/fsproto"
	"rexec/internal/transport"
	"rexec/rer"
)

// playHostile is a server that asks home for what it must not get. What home
// grants all the same it writes to the file $REPORT, with a last line "done".
func playHostile() int {
	rw, err := transport.Stdio()
	if err != nil {
		return 1
	}
	h := &hostile{conn: transport.New(rw, false, transport.Options{})}
	if h.control, err = h.conn.Channel(rer.ControlChannel); err != nil {
		return 1
	}
	files, err := h.conn.Channel(rer.FilesChannel)
	if err != nil {
		return 1
	}
	h.files = fsproto.NewClient(files)
	for {
		b, err := h.control.Recv()
		if err != nil {
			return 0
		}
		m, err := rer.DecodeMessage(b)
		switch {
		case err != nil:
			return 1
		case m.Hello != nil:
			h.root = fsproto.Node(m.Hello.Mounts[0].Root)
			h.send(&rer.Message{Hello: &rer.Hello{Versions: [2]int{rer.VersionMin, rer.VersionMax}}})
		case m.Launch != nil:
			h.send(&rer.Message{Started: &rer.Started{ID: m.Launch.ID, Pid: m.Launch.Pid}})
			h.names()
			h.numbers()
			h.kernel()
			h.strangers()
			h.crowd()
			h.found = append(h.found, "done")
			_ = os.WriteFile(os.Getenv("REPORT"), []byte(strings.Join(h.found, "\n")), 0o644)
			h.send(&rer.Message{Ended: &rer.Ended{ID: m.Launch.ID, Status: rer.Status{Code: 42}}})
		}
	}
}

type hostile struct {
	conn    *transport.Conn
	control *transport.Channel
	files   *fsproto.Client
	root    fsproto.Node
	found   []string
}

func (h *hostile) send(m *rer.Message) {
	if b, err := m.Encode(); err == nil {
		_ = h.control.Send(b)
	}
}

func (h *hostile) complain(format string, args ...any) {
	h.found = append(h.found, fmt.Sprintf(format, args...))
}

// within bounds one request.
func within() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	context.AfterFunc(ctx, cancel)
	return ctx
}

// names asks for what is no name.
func (h *hostile) names() {
	for _, name := range []string{"", ".", "..", "/", "/etc", "etc/passwd", "../etc", "etc/", "a\x00b", strings.Repeat("n", 256), strings.Repeat("n", 5000)} {
		try := map[string]func() error{
			"lookup": func() error { _, err := h.files.Lookup(within(), h.root, name); return err },
			"mkdir": func() error {
				_, err := h.files.Mkdir(within(), &fsproto.MakeIn{Parent: h.root, Name: name, Mode: 0o755})
				return err
			},
			"create": func() error {
				_, err := h.files.Create(within(), &fsproto.MakeIn{Parent: h.root, Name: name, Mode: 0o644, Flags: unix.O_RDWR})
				return err
			},
			"symlink": func() error {
				_, err := h.files.Symlink(within(), &fsproto.MakeIn{Parent: h.root, Name: name, Target: "x"})
				return err
			},
			"unlink": func() error { return h.files.Unlink(within(), h.root, name, fsproto.Caller{}) },
			"rmdir":  func() error { return h.files.Rmdir(within(), h.root, name, fsproto.Caller{}) },
			"link":   func() error { _, err := h.files.Link(within(), h.root, h.root, name); return err },
		}
		for what, f := range try {
			if err := f(); !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENAMETOOLONG) {
				h.complain("%s of %.20q: %v", what, name, err)
			}
		}
	}
}

// numbers uses numbers that home never gave.
func (h *hostile) numbers() {
	for _, n := range []fsproto.Node{0, h.root + 1000, 1 << 40, 1<<64 - 1} {
		if _, err := h.files.Getattr(within(), n, 0); !refused(err) {
			h.complain("getattr of node %d: %v", n, err)
		}
		if _, err := h.files.Lookup(within(), n, "etc"); !refused(err) {
			h.complain("lookup in node %d: %v", n, err)
		}
		if _, err := h.files.Open(within(), n, unix.O_RDWR); !refused(err) {
			h.complain("open of node %d: %v", n, err)
		}
	}
	for _, fh := range []fsproto.FH{0, 1, 1000, 1 << 40, 1<<64 - 1} {
		if _, err := h.files.Read(within(), fh, 0, 10); !refused(err) {
			h.complain("read of file %d: %v", fh, err)
		}
		if _, err := h.files.Write(within(), &fsproto.WriteIn{FH: fh, Data: []byte("x")}); !refused(err) {
			h.complain("write to file %d: %v", fh, err)
		}
	}
}

func refused(err error) bool {
	return errors.Is(err, unix.ESTALE) || errors.Is(err, unix.EBADF) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT)
}

// kernel tries to reach home's /proc, /sys and /dev.
func (h *hostile) kernel() {
	for _, path := range []string{"proc/self/mem", "proc/1/root", "proc/version", "sys/kernel/notes", "dev/null", "dev/tty"} {
		at, reached := h.root, true
		for name := range strings.SplitSeq(path, "/") {
			e, err := h.files.Lookup(within(), at, name)
			if err != nil || e.Node == 0 {
				reached = false
				break
			}
			at = e.Node
		}
		if !reached {
			continue
		}
		if o, err := h.files.Open(within(), at, unix.O_RDONLY); err == nil {
			h.complain("/%s opened as file %d", path, o.FH)
		}
	}
}

// strangers opens a pipe without a writer: home must stay able to answer.
func (h *hostile) strangers() {
	at, err := h.walk(os.Getenv("HOME"))
	if err != nil {
		h.complain("home directory: %v", err)
		return
	}
	e, err := h.files.Lookup(within(), at, "pipe")
	if err != nil || e.Node == 0 {
		h.complain("pipe: %v", err)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, _ = h.files.Open(ctx, e.Node, unix.O_RDONLY)
	_, _ = h.files.Open(ctx, e.Node, unix.O_WRONLY)
	if _, err := h.files.Getattr(within(), h.root, 0); err != nil {
		h.complain("after opening a pipe: %v", err)
	}
}

func (h *hostile) walk(path string) (fsproto.Node, error) {
	at := h.root
	for name := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		e, err := h.files.Lookup(within(), at, name)
		if err != nil {
			return 0, err
		}
		if e.Node == 0 {
			return 0, unix.ENOENT
		}
		at = e.Node
	}
	return at, nil
}

// crowd asks very much at once, and signals and ends jobs that there are not.
func (h *hostile) crowd() {
	var all sync.WaitGroup
	for range 5000 {
		all.Go(func() { _, _ = h.files.Lookup(within(), h.root, "etc") })
	}
	all.Wait()
	for k := range 1000 {
		h.send(&rer.Message{Ended: &rer.Ended{ID: [16]byte{byte(k), byte(k >> 8), 1}}})
		h.send(&rer.Message{Stopped: &rer.Stopped{ID: [16]byte{byte(k), 2}, Signo: 19}})
	}
}

// TestHostileServer has a server ask home for what it must not get.
func TestHostileServer(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	report := filepath.Join(r.Dir, "report")
	if err := unix.Mkfifo(filepath.Join(r.Home, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	res := r.rexec([]string{"REXEC_SSH=" + r.self + " peer hostile", "REPORT=" + report}, "ssh://there", "true")
	if res.status != 42 || res.stderr != "" {
		t.Errorf("%v", res)
	}
	b, err := os.ReadFile(report)
	if string(b) != "done" {
		t.Errorf("home granted: %v\n%s", err, b)
	}
	r.works(nil, "loopback")
}
