package exercise

import (
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// change is something done to a file, and how the file is before it.
type change struct {
	name   string
	before func(path string) error // by a local process
	op     []any                   // by a worker; "P" is the path
}

var changes = []change{
	{"write", file, []any{"pwrite-path", "P"}},
	{"create", absent, []any{"create", "P"}},
	{"replace", file, []any{"replace", "P"}},
	{"rename away", file, []any{"rename", "P", "P.away", 0}},
	{"unlink", file, []any{"unlink", "P"}},
	{"mkdir", absent, []any{"mkdir", "P", 0o755}},
	{"rmdir", directory, []any{"rmdir", "P"}},
	{"truncate", file, []any{"truncate", "P", 3}},
	{"chmod", file, []any{"chmod", "P", 0o600}},
	{"chmod directory", directory, []any{"chmod", "P", 0o700}},
	{"link", file, []any{"link", "P", "P.away"}},
	{"symlink", absent, []any{"symlink", "/nowhere", "P"}},
}

func absent(path string) error {
	return os.RemoveAll(path)
}

func file(path string) error {
	if err := absent(path); err != nil {
		return err
	}
	return os.WriteFile(path, []byte("what was there before"), 0o644)
}

func directory(path string) error {
	if err := absent(path); err != nil {
		return err
	}
	return os.Mkdir(path, 0o755)
}

// order is a job and a local process that change and look in turn.
type order struct {
	t          *testing.T
	r          *rig
	job, local *worker
	rnd        *rand.Rand
	n          int
}

func newOrder(t *testing.T) *order {
	r := newRig(t)
	for _, d := range []string{"a", "b"} {
		if err := os.Mkdir(filepath.Join(r.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return &order{
		t: t, r: r, job: r.start("job", r.job, r.dir), local: r.start("local", r.local, r.dir),
		rnd: rand.New(rand.NewSource(1)),
	}
}

// round prepares a file, which both sides have then seen, and returns what to
// do to it.
func (o *order) round() (c change, path string, op []any) {
	o.t.Helper()
	o.n++
	c = changes[o.n%len(changes)]
	path = fmt.Sprintf("%s/f%d", pick(o.rnd, "a", "b"), o.rnd.Intn(3))
	full := filepath.Join(o.r.dir, path)
	if err := absent(full + ".away"); err != nil {
		o.t.Fatal(err)
	}
	if err := c.before(full); err != nil {
		o.t.Fatal(err)
	}
	for _, a := range c.op {
		if s, ok := a.(string); ok {
			a = strings.Replace(s, "P", path, 1)
		}
		op = append(op, a)
	}
	o.job.ask("look", path)
	if local, job := o.local.do("look", path), o.job.answer(); job != local {
		o.t.Fatalf("round %d, before %s of %s: job %q, local %q", o.n, c.name, path, job, local)
	}
	return c, path, op
}

// TestOrderOut: a job changes a file, then writes a byte. Who acts on the byte
// sees the change.
func TestOrderOut(t *testing.T) {
	o := newOrder(t)
	for range times(500, 100_000) {
		c, path, op := o.round()
		o.job.ok(op[0].(string), op[1:]...)
		// The local process first: what the job sees could bring it about.
		local := o.local.do("look", path)
		if job := o.job.do("look", path); job != local {
			t.Fatalf("round %d, after %s of %s by the job: job %q, local %q", o.n, c.name, path, job, local)
		}
	}
}

// TestOrderIn: a file is changed here, then a byte goes to the job.
func TestOrderIn(t *testing.T) {
	o := newOrder(t)
	for range times(500, 100_000) {
		c, path, op := o.round()
		o.local.ok(op[0].(string), op[1:]...)
		job := o.job.do("look", path)
		if local := o.local.do("look", path); job != local {
			t.Fatalf("round %d, after %s of %s: job %q, local %q", o.n, c.name, path, job, local)
		}
	}
}

// TestOrderSignal: a file is changed here, then the job gets a signal.
func TestOrderSignal(t *testing.T) {
	o := newOrder(t)
	for range times(200, 100_000) {
		c, path, op := o.round()
		o.job.ok("await", path) // its first line; it waits from then on
		o.local.ok(op[0].(string), op[1:]...)
		if err := o.job.cmd.Process.Signal(unix.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		job := o.job.answer()
		if local := o.local.do("look", path); job != local {
			t.Fatalf("round %d, after %s of %s and a signal: job %q, local %q", o.n, c.name, path, job, local)
		}
	}
}

// TestMaps: what one side writes through a shared map, and syncs, the other
// one sees, by read and by its own map.
func TestMaps(t *testing.T) {
	o := newOrder(t)
	if err := os.WriteFile(filepath.Join(o.r.dir, "m"), make([]byte, 1<<16), 0o644); err != nil {
		t.Fatal(err)
	}
	sides := []*worker{o.job, o.local}
	for _, w := range sides {
		w.ok("open", 0, unix.O_RDWR, 0, "m")
		w.ok("map", 0, 0, unix.PROT_READ|unix.PROT_WRITE)
	}
	for i := range times(200, 20_000) {
		at, n := o.rnd.Intn(1<<15), 1+o.rnd.Intn(1<<14)
		writer, reader := sides[i%2], sides[1-i%2]
		op := pick(o.rnd, "mapwrite", "pwrite")
		writer.ok(op, 0, at, n, i)
		for _, look := range []string{"mapread", "pread"} {
			want, got := writer.ok(look, 0, at, n), reader.ok(look, 0, at, n)
			if want != got {
				t.Fatalf("round %d, %s of %d bytes at %d by %s: %s by %s: %q, want %q", i, op, n, at, writer.name, look, reader.name, got, want)
			}
		}
	}
}

// TestLocks: two sides that count under a lock lose nothing, a wait ends with
// a signal, and a lock with its holder.
func TestLocks(t *testing.T) {
	for _, kind := range []string{"posix", "ofd", "flock"} {
		t.Run(kind, func(t *testing.T) {
			o := newOrder(t)
			o.contend(kind)
			o.interrupt(kind)
			o.kill(kind)
		})
	}
}

func (o *order) contend(kind string) {
	o.t.Helper()
	counter := filepath.Join(o.r.dir, "counter")
	if err := os.WriteFile(counter, []byte("0\n"), 0o644); err != nil {
		o.t.Fatal(err)
	}
	n := times(200, 10_000)
	o.job.ask("count", kind, "counter", n)
	o.local.ask("count", kind, "counter", n)
	for _, w := range []*worker{o.job, o.local} {
		if got := w.answer(); got != "ok 0" {
			o.t.Fatalf("%s: %s", w.name, got)
		}
	}
	got, err := os.ReadFile(counter)
	if err != nil || string(got) != fmt.Sprintln(2*n) {
		o.t.Fatalf("counted to %q, %v; want %d", got, err, 2*n)
	}
}

// interrupt has each side wait for what the other holds.
func (o *order) interrupt(kind string) {
	o.t.Helper()
	sides := []*worker{o.job, o.local}
	for i, holder := range sides {
		waiter := sides[1-i]
		for _, w := range sides {
			w.ok("open", 0, unix.O_RDWR|unix.O_CREAT, 0o644, "lock")
		}
		holder.ok("lock", kind, 0, unix.F_WRLCK)
		if got := waiter.do("lock", kind, 0, unix.F_RDLCK); got != "EAGAIN" {
			o.t.Fatalf("lock held by %s, tried by %s: %s", holder.name, waiter.name, got)
		}
		if got := waiter.do("lockwait", kind, 0, unix.F_WRLCK, 1); got != "EINTR" {
			o.t.Fatalf("wait of %s ended by a signal: %s", waiter.name, got)
		}
		waiter.ask("lockwait", kind, 0, unix.F_WRLCK)
		holder.ok("close", 0)
		if got := waiter.answer(); got != "ok 0" {
			o.t.Fatalf("%s waited for a lock that was given back: %s", waiter.name, got)
		}
		waiter.ok("close", 0)
	}
}

// kill kills a job that holds a lock, by its agent or by itself.
func (o *order) kill(kind string) {
	o.t.Helper()
	for _, by := range []string{"agent", "job"} {
		w := o.r.start("holder", o.r.job, o.r.dir)
		w.ok("open", 0, unix.O_RDWR, 0, "lock")
		w.ok("lock", kind, 0, unix.F_WRLCK)
		o.local.ok("open", 0, unix.O_RDWR, 0, "lock")
		o.local.ask("lockwait", kind, 0, unix.F_WRLCK)
		if by == "agent" {
			if err := w.cmd.Process.Kill(); err != nil {
				o.t.Fatal(err)
			}
		} else {
			w.ask("die")
		}
		if got := o.local.answer(); got != "ok 0" {
			o.t.Fatalf("lock of a killed %s: %s", by, got)
		}
		o.local.ok("close", 0)
		timer := time.AfterFunc(answerLimit, func() { _ = w.cmd.Process.Kill() })
		err := w.cmd.Wait()
		if !timer.Stop() || err == nil {
			o.t.Fatalf("holder killed by %s: %v", by, err)
		}
	}
}

// TestAppend: writers on both sides, at once, at the end of one file.
func TestAppend(t *testing.T) {
	o := newOrder(t)
	name := filepath.Join(o.r.dir, "log")
	if err := os.WriteFile(name, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	n := times(1000, 100_000)
	for i, w := range []*worker{o.job, o.local} {
		w.ask("append", "log", n, i)
	}
	for _, w := range []*worker{o.job, o.local} {
		if got := w.answer(); got != "ok 0" {
			t.Fatalf("%s: %s", w.name, got)
		}
	}
	got, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var next [2]int
	for line := range strings.Lines(string(got)) {
		var who, i int
		if _, err := fmt.Sscanf(line, "%d %d\n", &who, &i); err != nil || who < 0 || who > 1 || i != next[who] {
			t.Fatalf("line %q, with %v written in order before it: %v", line, next, err)
		}
		next[who]++
	}
	if next != [2]int{n, n} {
		t.Fatalf("%v lines, want %d of each", next, n)
	}
}
