package exercise

import (
	"os/exec"
	"strconv"

	"github.com/google/go-cmp/cmp"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// together runs shell text by a job and by a local process at once; both must
// succeed.
func (r *rig) together(job, local string) {
	r.t.Helper()
	type result struct {
		out string
		err error
	}
	ended := make(chan result, 1)
	go func() {
		out, err := output(r.job("/bin/sh", "-c", job))
		ended <- result{out, err}
	}()
	out, err := output(r.local("/bin/sh", "-c", local))
	if err != nil {
		r.t.Errorf("here: %v\n%s", err, out)
	}
	if res := <-ended; res.err != nil {
		r.t.Errorf("job: %v\n%s", res.err, res.out)
	}
	if r.t.Failed() {
		r.t.FailNow()
	}
}

// TestSqlite: two sides write to one database.
func TestSqlite(t *testing.T) {
	for _, mode := range []string{"delete", "wal"} {
		t.Run(mode, func(t *testing.T) {
			r := newRig(t)
			r.must(r.local("sqlite3", "db", "pragma journal_mode="+mode+"; create table t(who, n);"))
			// Commands of one process, each its own transaction. A WAL
			// reader whose view is old gets BUSY at once when it writes, so
			// each takes the write lock at its beginning.
			n := times(60, 5000)
			text := func(who string) string {
				return `i=0; { echo .timeout 60000; while [ $i -lt ` + itoa(n) + ` ]; do i=$((i+1));
					echo "begin immediate; insert into t values('` + who + `', (select count(*) from t where who='` + who + `')); commit;"
				done; } | sqlite3 -bail db`
			}
			r.together(text("job"), text("here"))
			const check = "pragma integrity_check; select who, count(*), max(n) from t group by who order by who;"
			want := strings.ReplaceAll("ok\nhere|N|M\njob|N|M\n", "N", itoa(n))
			want = strings.ReplaceAll(want, "M", itoa(n-1))
			for name, got := range map[string]string{"here": r.must(r.local("sqlite3", "db", check)), "job": r.must(r.job("sqlite3", "db", check))} {
				if got != want {
					t.Errorf("%s: %s\nwant %s", name, got, want)
				}
			}
		})
	}
}

// TestGit: two sides commit to one repository, each in its work tree.
func TestGit(t *testing.T) {
	r := newRig(t)
	const who = "git config user.name t && git config user.email t@example.org"
	r.must(r.local("/bin/sh", "-c", "git init -q -b main repo && cd repo && "+who+
		" && git commit -q --allow-empty -m first && git worktree add -q ../other"))
	text := func(dir string) string {
		return `set -e; cd ` + dir + `; i=0; while [ $i -lt ` + itoa(times(4, 300)) + ` ]; do i=$((i+1));
			mkdir -p d$i; echo ` + dir + ` $i >d$i/f; echo $i >>log; git add .; git commit -qm "` + dir + ` $i"; git tag ` + dir + `$i; done`
	}
	r.together(text("repo"), text("other"))
	const check = `cd repo && git fsck --full --strict 2>&1 && git status --porcelain && git -C ../other status --porcelain &&
		git log --format=%s --all | sort && git tag`
	// What git merges and packs on one side, the other one reads.
	r.must(r.local("/bin/sh", "-c", "cd other && git gc -q"))
	r.must(r.job("/bin/sh", "-c", "cd repo && git merge -q -X ours -m merged other"))
	here, job := r.must(r.local("/bin/sh", "-c", check)), r.must(r.job("/bin/sh", "-c", check))
	if here != job {
		t.Errorf("here %s\njob %s", here, job)
	}
	if got, want := strings.Count(here, " "), 2*times(4, 300); got != want {
		t.Errorf("%d commits, want %d:\n%s", got, want, here)
	}
}

// hostile makes a tree that holds all that a file system can.
const hostile = `
import os, socket, stat, subprocess
top = os.path.abspath('tree').encode()
os.mkdir(top)
os.chdir(top)
def put(name, data=b'x'):
    with open(name, 'wb') as f: f.write(data)
for i in list(range(1, 46)) + list(range(120, 256, 5)):
    put(b'byte-%c-' % i, bytes([i]) * i)
put(b'n' * 255); put(b'\xff\xfe\xc3\x28'); put(b'-rf'); put(b' '); put(b'a\nb'); put('\u00e9\u0301'.encode())
put(b'one', b'linked'); os.link(b'one', b'two'); os.mkdir(b'sub'); os.link(b'one', b'sub/three')
with open(b'holes', 'wb') as f:
    f.seek(1 << 20); f.write(b'middle'); f.truncate(5 << 20)
put(b'setid'); os.chown(b'setid', 1, 1); os.chmod(b'setid', 0o6755)
os.mkdir(b'sticky'); os.chmod(b'sticky', 0o1777)
os.mkdir(b'setgid'); os.chown(b'setgid', 0, 1000); os.chmod(b'setgid', 0o2775); put(b'setgid/inherits')
put(b'none'); os.chmod(b'none', 0)
os.mkfifo(b'fifo', 0o640)
s = socket.socket(socket.AF_UNIX); s.bind(b'socket')
os.symlink(b'nowhere', b'dangling'); os.symlink(b's' * 4000, b'long'); os.symlink(b'.', b'self')
put(b'xattr'); os.setxattr(b'xattr', b'user.plain', b'\x00\x01binary'); os.setxattr(b'xattr', b'user.' + b'k' * 200, b'v' * 1000)
os.setxattr(b'sub', b'user.dir', b'')
put(b'acl'); subprocess.check_call(['setfacl', '-m', 'u:1:rw,g:1000:r', 'acl'])
subprocess.check_call(['setfacl', '-d', '-m', 'u:1:rwx', 'sub']); put(b'sub/default')
deep = b'd' * 200
for i in range(18):
    os.mkdir(deep); os.chdir(deep)
put(b'bottom')
def times(dir, i):
    for name in sorted(map(os.fsencode, os.listdir(dir))):
        st = os.lstat(name, dir_fd=dir)
        if stat.S_ISDIR(st.st_mode):
            f = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=dir)
            i = times(f, i)
            os.close(f)
        if st.st_nlink == 1 or stat.S_ISDIR(st.st_mode): os.utime(name, ns=(i * 10**9 + 1, 10**18 + i * 1000000007), follow_symlinks=False, dir_fd=dir)
        else: os.utime(name, ns=(1, 10**18), dir_fd=dir)
        i += 1
    return i
times(os.open(top, os.O_RDONLY), 0)
`

// show tells all of a tree that stat, xattrs, ACLs and contents tell, hard
// links as numbers in the order of names.
const show = `
import os, hashlib, stat, sys
seen = {}
def walk(dir, path):
    for name in sorted(map(os.fsencode, os.listdir(dir))):
        st = os.lstat(name, dir_fd=dir)
        link = seen.setdefault(st.st_ino, len(seen))
        line = [path + b'/' + name, oct(st.st_mode), st.st_nlink, st.st_uid, st.st_gid, st.st_mtime_ns, link]
        if not stat.S_ISDIR(st.st_mode): line.append(st.st_size)
        if stat.S_ISREG(st.st_mode):
            f = os.open(name, os.O_RDONLY, dir_fd=dir)
            h = hashlib.sha256()
            while b := os.read(f, 1 << 20): h.update(b)
            line += [h.hexdigest(), os.lseek(f, 0, os.SEEK_DATA) if st.st_size else 0]
            line += [(x, os.getxattr(f, x)) for x in sorted(os.listxattr(f))]
            os.close(f)
        elif stat.S_ISLNK(st.st_mode): line.append(os.readlink(name, dir_fd=dir))
        elif stat.S_ISDIR(st.st_mode):
            f = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=dir)
            line += [(x, os.getxattr(f, x)) for x in sorted(os.listxattr(f))]
            walk(f, path + b'/' + name)
            os.close(f)
        if len(path) < 1000: print(line)
        else: print(hashlib.sha256(repr(line).encode()).hexdigest())
walk(os.open(sys.argv[1], os.O_RDONLY), b'')
`

// TestRsync copies a hostile tree out of and into the view, by a job, and
// makes one in the view.
func TestRsync(t *testing.T) {
	r := newRig(t)
	for name, text := range map[string]string{"hostile.py": hostile, "show.py": show} {
		if err := os.WriteFile(filepath.Join(r.dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	show := func(cmd func(...string) *exec.Cmd, dir string) string {
		return r.must(cmd("/usr/bin/python3", "show.py", dir))
	}
	r.must(r.local("/usr/bin/python3", "hostile.py"))
	want := show(r.local, "tree")
	diff(t, "the tree as the job sees it", want, show(r.job, "tree"))

	r.must(r.job("rsync", "-aHAXS", "tree/", "by-job/"))
	diff(t, "a copy by the job", want, show(r.local, "by-job"))
	r.must(r.local("rsync", "-aHAXS", "tree/", "by-local/"))
	const differ = "rsync -aHAX --checksum --delete -ni tree/ "
	if out := r.must(r.job("/bin/sh", "-c", differ+"by-local/")); out != "" {
		t.Errorf("rsync by the job finds other things in a copy:\n%s", out)
	}
	if out := r.must(r.local("/bin/sh", "-c", differ+"by-job/")); out != "" {
		t.Errorf("rsync finds other things in the job's copy:\n%s", out)
	}
	// /dev/shm is the server's.
	r.must(r.job("/bin/sh", "-c", `d=$(mktemp -d /dev/shm/rexec-exercise.XXXXXX) && trap 'rm -rf $d' EXIT &&
		rsync -aHAXS tree $d/ && rsync -aHAXS $d/tree/ back`))
	diff(t, "a tree brought out of the view and back", want, show(r.local, "back"))
	r.must(r.local("mv", "tree", "moved"))
	r.must(r.job("/usr/bin/python3", "hostile.py"))
	diff(t, "a tree made by the job", want, show(r.local, "tree"))
	r.must(r.job("rm", "-rf", "tree", "back"))
}

func diff(t *testing.T, what, want, got string) {
	t.Helper()
	if d := cmp.Diff(strings.Split(want, "\n"), strings.Split(got, "\n")); d != "" {
		t.Errorf("%s (+) differs:\n%s", what, d)
	}
}

func itoa(n int) string { return strconv.Itoa(n) }
