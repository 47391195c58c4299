package exercise

import (
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestRandom does random operations on few names and few open files, by the
// job and by a local process in turn. Each answer must be the twin's.
func TestRandom(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = time.Now().UnixNano()
	}
	t.Logf("seed %d", seed)
	r := newRig(t)
	twin := filepath.Join(r.Dir, "twin")
	if err := os.Mkdir(twin, 0o755); err != nil {
		t.Fatal(err)
	}
	e := &exerciser{
		t: t, seed: seed, rnd: rand.New(rand.NewSource(seed)),
		sides: [2]*worker{r.start("job", r.job, r.dir), r.start("local", r.local, r.dir)},
		twin:  r.start("twin", r.local, twin),
	}
	count := times(3000, 1_000_000)
	for i := range count {
		e.step()
		if i%100 == 99 || i == count-1 {
			e.same("tree", ".")
		}
	}
}

// slotsOfASide open files and maps has each side; the twin has those of both.
const slotsOfASide = 6

type exerciser struct {
	t     *testing.T
	seed  int64
	rnd   *rand.Rand
	sides [2]*worker
	twin  *worker
	done  []string // the last operations and their answers
}

// step does one random operation on one of the sides and on the twin.
func (e *exerciser) step() {
	side := e.rnd.Intn(2)
	op := e.operation(side * slotsOfASide)
	if o := op[0].(string); o == "stat" || o == "lstat" {
		e.same(o, op[1:]...)
		return
	}
	if op[0] == "copy" && side == 0 {
		e.on(e.sides[side], []any{"fstat", op[1]}) // a listed deviation, as below
	}
	got, want := e.on(e.sides[side], op), e.on(e.twin, op)
	if got == "ESTALE" && op[0] == "rename" && side == 0 {
		// A listed deviation: a directory in use that has moved at home is
		// not found at its new place in the middle of a rename.
		e.on(e.sides[side], []any{"lstat", op[1]})
		e.on(e.sides[side], []any{"lstat", op[2]})
		got = e.on(e.sides[side], op)
	}
	e.compare(got, want)
}

// same does an operation that only looks on both sides and on the twin. Both
// sides must see the same, inode number and times too.
func (e *exerciser) same(op string, args ...any) {
	line := append([]any{op}, args...)
	job, local, twin := e.on(e.sides[0], line), e.on(e.sides[1], line), e.on(e.twin, line)
	if job != local {
		e.fail("job %q\nlocal %q", job, local)
	}
	e.compare(job, twin)
}

func (e *exerciser) compare(got, want string) {
	got, _, _ = strings.Cut(got, " |")
	want, _, _ = strings.Cut(want, " |")
	if got != want {
		e.fail("got %q\nwant %q", got, want)
	}
}

func (e *exerciser) on(w *worker, line []any) string {
	answer := w.do(line[0].(string), line[1:]...)
	e.done = append(e.done, fmt.Sprintf("%-5s %s: %s", w.name, strings.Trim(fmt.Sprint(line), "[]"), answer))
	if len(e.done) > 400 {
		e.done = slices.Delete(e.done, 0, 200)
	}
	return answer
}

func (e *exerciser) fail(format string, args ...any) {
	last := e.done[max(0, len(e.done)-60):]
	for _, w := range []*worker{e.sides[0], e.sides[1], e.twin} {
		w.do("dump", ".")
		w.in.Close()
		_ = w.cmd.Wait() // all that it has printed is there
	}
	e.t.Fatalf("seed %d: %s\nlast operations:\n%s\njob's tree:\n%s\nlocal tree:\n%s\ntwin's tree:\n%s", e.seed, fmt.Sprintf(format, args...),
		strings.Join(last, "\n"), e.sides[0].err.Bytes(), e.sides[1].err.Bytes(), e.twin.err.Bytes())
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.Intn(len(of))] }

// path is one of some names in some directories; in the same few directories
// and names everything happens soon.
func (e *exerciser) path() string {
	return pick(e.rnd, "", "", "", "d0/", "d0/", "d1/", "d0/d2/") + e.name()
}

func (e *exerciser) name() string { return fmt.Sprintf("f%d", e.rnd.Intn(5)) }

// anyPath may be a directory.
func (e *exerciser) anyPath() string {
	if e.rnd.Intn(3) == 0 {
		return e.directory()
	}
	return e.path()
}

func (e *exerciser) directory() string { return pick(e.rnd, "d0", "d1", "d0/d2") }

func (e *exerciser) offset() int {
	return pick(e.rnd, e.rnd.Intn(1<<18), e.rnd.Intn(64)<<12, e.rnd.Intn(100))
}

func (e *exerciser) length() int {
	return pick(e.rnd, e.rnd.Intn(1<<16), e.rnd.Intn(16)<<12, e.rnd.Intn(100), 1)
}

func (e *exerciser) random() int { return e.rnd.Intn(1 << 30) }

// operation is a random one; slots from first on are the side's.
func (e *exerciser) operation(first int) []any {
	r := e.rnd
	slot := func() int { return first + r.Intn(slotsOfASide) }
	kinds := []func() []any{
		func() []any { return []any{"open", slot(), e.openFlags(), pick(r, 0o644, 0o600, 0o755), e.path()} },
		func() []any { return []any{"open", slot(), e.openFlags(), pick(r, 0o644, 0o600, 0o755), e.path()} },
		func() []any { return []any{"open", slot(), unix.O_RDWR | unix.O_CREAT, 0o644, e.path()} },
		func() []any { return []any{"open", slot(), unix.O_RDWR | unix.O_TMPFILE, 0o600, pick(r, ".", "d0")} },
		func() []any {
			return []any{"reopen", slot(), slot(), pick(r, unix.O_RDONLY, unix.O_RDWR, unix.O_RDWR|unix.O_APPEND)}
		},
		func() []any { return []any{"linkfd", slot(), e.path()} },
		func() []any { return []any{"close", slot()} },
		func() []any { return []any{"pread", slot(), e.offset(), e.length()} },
		func() []any { return []any{"pread", slot(), 0, 1 << 19} },
		func() []any { return []any{"read", slot(), e.length()} },
		func() []any { return []any{"pwrite", slot(), e.offset(), e.length(), e.random()} },
		func() []any { return []any{"pwrite", slot(), e.offset(), e.length(), e.random()} },
		func() []any { return []any{"write", slot(), e.length(), e.random()} },
		func() []any { return []any{"seek", slot(), e.offset(), unix.SEEK_SET} },
		func() []any { return []any{"seek", slot(), 0, unix.SEEK_END} },
		func() []any { return []any{"ftruncate", slot(), e.offset()} },
		func() []any { return []any{"truncate", e.path(), e.offset()} },
		func() []any { return []any{"fallocate", slot(), e.fallocateMode(), e.offset(), e.length()} },
		func() []any { return []any{"copy", slot(), e.offset(), slot(), e.offset(), e.length()} },
		func() []any {
			return []any{"map", slot(), slot(), pick(r, unix.PROT_READ, unix.PROT_READ|unix.PROT_WRITE)}
		},
		func() []any { return []any{"mapread", slot(), e.offset(), e.length()} },
		func() []any { return []any{"mapread", slot(), 0, e.length()} },
		func() []any { return []any{"mapwrite", slot(), e.offset(), e.length(), e.random()} },
		func() []any { return []any{"unmap", slot()} },
		func() []any { return []any{"rename", e.path(), e.path(), 0} },
		func() []any {
			return []any{"rename", e.anyPath(), e.anyPath(), pick(r, 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE)}
		},
		func() []any { return []any{"link", e.path(), e.path()} },
		func() []any { return []any{"unlink", e.path()} },
		func() []any { return []any{"unlink", e.anyPath()} },
		func() []any { return []any{"mkdir", e.directory(), pick(r, 0o755, 0o1777, 0o2755)} },
		func() []any { return []any{"mkdir", e.anyPath(), 0o755} },
		func() []any { return []any{"rmdir", e.anyPath()} },
		func() []any { return []any{"symlink", pick(r, "f0", "f1", "../f2", "d0", "nowhere"), e.path()} },
		func() []any { return []any{"mknod", e.path(), unix.S_IFSOCK | 0o600} },
		func() []any { return []any{"readlink", e.path()} },
		func() []any { return []any{"chmod", e.path(), pick(r, 0o644, 0o600, 0o4755, 0o777)} },
		func() []any { return []any{"fchmod", slot(), pick(r, 0o644, 0o600, 0o2755, 0o777)} },
		func() []any { return []any{"chown", e.path(), pick(r, 0, 1, 1000), pick(r, 0, 1, 1000)} },
		func() []any { return e.utimens("utimens", e.anyPath()) },
		func() []any { return e.utimens("futimens", slot()) },
		func() []any { return []any{"stat", e.anyPath()} },
		func() []any { return []any{"lstat", e.anyPath()} },
		func() []any { return []any{"lstat", e.anyPath()} },
		func() []any { return []any{"fstat", slot()} },
		func() []any { return []any{"access", e.anyPath(), pick(r, unix.F_OK, unix.X_OK)} },
		func() []any { return []any{"list", pick(r, ".", e.directory())} },
		func() []any { return []any{"fsync", slot()} },
		func() []any { return []any{"setxattr", e.anyPath(), "user.a", pick(r, "one", "two"), pick(r, 0, 1, 2)} },
		func() []any { return []any{"getxattr", e.anyPath(), "user.a"} },
		func() []any { return []any{"removexattr", e.anyPath(), "user.a"} },
	}

	return kinds[r.Intn(len(kinds))]()
}

func (e *exerciser) openFlags() int {
	access := pick(e.rnd, unix.O_RDONLY, unix.O_RDWR, unix.O_RDWR, unix.O_WRONLY)
	return access | pick(e.rnd, 0, 0, unix.O_CREAT, unix.O_CREAT|unix.O_EXCL, unix.O_CREAT|unix.O_TRUNC, unix.O_APPEND, unix.O_TRUNC, unix.O_CREAT|unix.O_APPEND)
}

// Collapse and insert are not here: FUSE refuses them in the kernel.
func (e *exerciser) fallocateMode() int {
	const keep = unix.FALLOC_FL_KEEP_SIZE
	return pick(e.rnd, 0, keep, keep|unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE)
}

func (e *exerciser) utimens(op string, what any) []any {
	nanos := func() int { return pick(e.rnd, e.rnd.Intn(1e9), unix.UTIME_NOW, unix.UTIME_OMIT) }
	access, change := nanos(), nanos()
	if change == unix.UTIME_OMIT {
		access = change // the ctime of a change of the access time alone is a deviation
	}
	return []any{op, what, e.random(), access, e.random(), change}
}
