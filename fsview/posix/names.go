package posix

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func testUnlinkOpen(t *testing.T, dir string) {
	p := dir + "/f"
	f := open(t, p, os.O_RDWR|os.O_CREATE, 0o600)
	must(t, os.Remove(p))
	_, err := f.WriteString("still here")
	must(t, err)
	b := make([]byte, 10)
	_, err = f.ReadAt(b, 0)
	must(t, err)
	if string(b) != "still here" {
		t.Fatal(string(b))
	}
	if st := fstat(t, f); st.Nlink != 0 || st.Size != 10 {
		t.Fatalf("%+v", st)
	}
	write(t, p, "another")
	want(t, p, "another")
	if lstat(t, p).Ino == fstat(t, f).Ino {
		t.Fatal("a new file has the inode of an open one")
	}
}

func testUnlinkOpenAttributes(t *testing.T, dir string) {
	p := dir + "/f"
	f := open(t, p, os.O_RDWR|os.O_CREATE, 0o600)
	must(t, os.Remove(p))
	must(t, f.Chmod(0o640))
	must(t, f.Truncate(100))
	must(t, unix.Fchown(int(f.Fd()), os.Geteuid(), os.Getegid()))
	ts := []unix.Timespec{{Sec: 1000, Nsec: 5}, {Sec: 2000, Nsec: 7}}
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), ts, 0))
	st := fstat(t, f)
	if st.Mode&0o7777 != 0o640 || st.Size != 100 || st.Mtim != ts[1] {
		t.Fatalf("%+v", st)
	}
}

func testUnlinkReopen(t *testing.T, dir string) {
	p := dir + "/f"
	write(t, p, "content")
	f := open(t, p, os.O_RDONLY, 0)
	must(t, os.Remove(p))
	again := open(t, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_RDWR, 0)
	_, err := again.WriteAt([]byte("C"), 0)
	must(t, err)
	b := make([]byte, 7)
	_, err = f.ReadAt(b, 0)
	must(t, err)
	if string(b) != "Content" {
		t.Fatal(string(b))
	}
}

func testTmpfile(t *testing.T, dir string) {
	f := open(t, dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
	_, err := f.WriteString("late")
	must(t, err)
	list, err := os.ReadDir(dir)
	if err != nil || len(list) != 0 {
		t.Fatal(list, err)
	}
	must(t, unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.AT_FDCWD, dir+"/f", unix.AT_SYMLINK_FOLLOW))
	want(t, dir+"/f", "late")
	if fstat(t, f).Nlink != 1 || lstat(t, dir+"/f").Ino != fstat(t, f).Ino {
		t.Fatal("not the same file")
	}
}

func testLink(t *testing.T, dir string) {
	a, b := dir+"/a", dir+"/b"
	write(t, a, "x")
	must(t, os.Link(a, b))
	sa, sb := lstat(t, a), lstat(t, b)
	if sa.Ino != sb.Ino || sa.Nlink != 2 || sb.Nlink != 2 {
		t.Fatalf("%+v %+v", sa, sb)
	}
	write(t, b, "longer")
	want(t, a, "longer")
	must(t, os.Remove(a))
	if st := lstat(t, b); st.Nlink != 1 {
		t.Fatal(st.Nlink)
	}
	must(t, os.Symlink("b", dir+"/l"))
	must(t, unix.Linkat(unix.AT_FDCWD, dir+"/l", unix.AT_FDCWD, dir+"/l2", 0))
	if target, err := os.Readlink(dir + "/l2"); err != nil || target != "b" {
		t.Fatal(target, err)
	}
}

func testLinkErrors(t *testing.T, dir string) {
	write(t, dir+"/a", "")
	write(t, dir+"/b", "")
	wantErr(t, os.Link(dir+"/a", dir+"/b"), unix.EEXIST)
	wantErr(t, os.Link(dir+"/none", dir+"/c"), unix.ENOENT)
	wantErr(t, os.Link(dir, dir+"/c"), unix.EPERM)
	f := open(t, dir+"/gone", os.O_RDWR|os.O_CREATE, 0o600)
	must(t, os.Remove(dir+"/gone"))
	err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.AT_FDCWD, dir+"/c", unix.AT_SYMLINK_FOLLOW)
	wantErr(t, err, unix.ENOENT)
}

func testSymlink(t *testing.T, dir string) {
	must(t, os.Mkdir(dir+"/d", 0o755))
	write(t, dir+"/d/f", "found")
	for name, target := range map[string]string{"rel": "d/f", "dot": "./d/../d/f", "abs": dir + "/d/f"} {
		must(t, os.Symlink(target, dir+"/"+name))
		got, err := os.Readlink(dir + "/" + name)
		if err != nil || got != target {
			t.Fatal(got, err)
		}
		want(t, dir+"/"+name, "found")
		if st := lstat(t, dir+"/"+name); st.Mode&unix.S_IFMT != unix.S_IFLNK || st.Size != int64(len(target)) {
			t.Fatalf("%+v", st)
		}
	}
	must(t, os.Symlink("d", dir+"/dl"))
	want(t, dir+"/dl/f", "found")
	must(t, os.Symlink("new", dir+"/dangling"))
	write(t, dir+"/dangling", "made")
	want(t, dir+"/new", "made")
	long := strings.Repeat("x", 4000)
	must(t, os.Symlink(long, dir+"/long"))
	if got, err := os.Readlink(dir + "/long"); err != nil || got != long {
		t.Fatal(len(got), err)
	}
	_, err := os.Readlink(dir + "/d")
	wantErr(t, err, unix.EINVAL)
}

func testSymlinkLoop(t *testing.T, dir string) {
	must(t, os.Symlink("b", dir+"/a"))
	must(t, os.Symlink("a", dir+"/b"))
	_, err := os.Open(dir + "/a")
	wantErr(t, err, unix.ELOOP)
	write(t, dir+"/f", "")
	must(t, os.Symlink("f", dir+"/l"))
	_, err = os.OpenFile(dir+"/l", os.O_RDONLY|unix.O_NOFOLLOW, 0)
	wantErr(t, err, unix.ELOOP)
}

func testSymlinkAttributes(t *testing.T, dir string) {
	write(t, dir+"/f", "")
	before := *lstat(t, dir+"/f")
	must(t, os.Symlink("f", dir+"/l"))
	ts := []unix.Timespec{{Sec: 5000, Nsec: 1}, {Sec: 6000, Nsec: 2}}
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, dir+"/l", ts, unix.AT_SYMLINK_NOFOLLOW))
	must(t, os.Lchown(dir+"/l", os.Geteuid(), os.Getegid()))
	if st := lstat(t, dir+"/l"); st.Mtim != ts[1] {
		t.Fatalf("%+v", st)
	}
	if st := lstat(t, dir+"/f"); st.Mtim != before.Mtim {
		t.Fatal("the target was changed")
	}
}

func testRename(t *testing.T, dir string) {
	write(t, dir+"/a", "a")
	ino := lstat(t, dir+"/a").Ino
	must(t, os.Rename(dir+"/a", dir+"/b"))
	_, err := os.Lstat(dir + "/a")
	wantErr(t, err, unix.ENOENT)
	want(t, dir+"/b", "a")
	if lstat(t, dir+"/b").Ino != ino {
		t.Fatal("another inode")
	}
	must(t, os.Mkdir(dir+"/d", 0o755))
	must(t, os.Rename(dir+"/b", dir+"/d/c"))
	want(t, dir+"/d/c", "a")
	wantErr(t, os.Rename(dir+"/none", dir+"/x"), unix.ENOENT)
	must(t, os.Link(dir+"/d/c", dir+"/d/same"))
	must(t, os.Rename(dir+"/d/c", dir+"/d/same"))
	want(t, dir+"/d/c", "a") // rename(2): both names stay
}

func testRenameOver(t *testing.T, dir string) {
	write(t, dir+"/a", "a")
	write(t, dir+"/b", "b")
	f := open(t, dir+"/b", os.O_RDONLY, 0)
	must(t, os.Rename(dir+"/a", dir+"/b"))
	want(t, dir+"/b", "a")
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, 0); err != nil || b[0] != 'b' {
		t.Fatal(err, b)
	}
	if st := fstat(t, f); st.Nlink != 0 {
		t.Fatal(st.Nlink)
	}
	must(t, os.Mkdir(dir+"/d", 0o755))
	wantErr(t, unix.Rename(dir+"/b", dir+"/d"), unix.EISDIR)
	wantErr(t, unix.Rename(dir+"/d", dir+"/b"), unix.ENOTDIR)
}

func testRenameDirectory(t *testing.T, dir string) {
	must(t, os.MkdirAll(dir+"/a/sub", 0o755))
	write(t, dir+"/a/sub/f", "x")
	wantErr(t, unix.Rename(dir+"/a", dir+"/a/sub/b"), unix.EINVAL)
	must(t, os.Mkdir(dir+"/empty", 0o755))
	must(t, unix.Rename(dir+"/a", dir+"/empty"))
	want(t, dir+"/empty/sub/f", "x")
	must(t, os.Mkdir(dir+"/full", 0o755))
	write(t, dir+"/full/f", "")
	wantErr(t, unix.Rename(dir+"/empty", dir+"/full"), unix.ENOTEMPTY, unix.EEXIST)
	d := open(t, dir+"/empty/sub", os.O_RDONLY, 0)
	must(t, unix.Rename(dir+"/empty", dir+"/moved"))
	fd, err := unix.Openat(int(d.Fd()), "../sub/f", unix.O_RDONLY, 0)
	must(t, err)
	must(t, unix.Close(fd))
}

func testRenameFlags(t *testing.T, dir string) {
	write(t, dir+"/a", "a")
	write(t, dir+"/b", "b")
	rename := func(from, to string, flags uint) error {
		return unix.Renameat2(unix.AT_FDCWD, dir+from, unix.AT_FDCWD, dir+to, flags)
	}
	wantErr(t, rename("/a", "/b", unix.RENAME_NOREPLACE), unix.EEXIST)
	must(t, rename("/a", "/c", unix.RENAME_NOREPLACE))
	must(t, rename("/b", "/c", unix.RENAME_EXCHANGE))
	want(t, dir+"/b", "a")
	want(t, dir+"/c", "b")
	wantErr(t, rename("/b", "/none", unix.RENAME_EXCHANGE), unix.ENOENT)
	must(t, os.Mkdir(dir+"/d", 0o755))
	must(t, rename("/b", "/d", unix.RENAME_EXCHANGE))
	want(t, dir+"/d", "a")
	wantErr(t, rename("/c", "/d", unix.RENAME_EXCHANGE|unix.RENAME_NOREPLACE), unix.EINVAL)
}

func testRenameOpen(t *testing.T, dir string) {
	f := open(t, dir+"/a", os.O_RDWR|os.O_CREATE, 0o600)
	must(t, os.Rename(dir+"/a", dir+"/b"))
	_, err := f.WriteString("through")
	must(t, err)
	must(t, f.Chmod(0o644))
	want(t, dir+"/b", "through")
	if st := lstat(t, dir+"/b"); st.Mode&0o777 != 0o644 {
		t.Fatalf("%o", st.Mode)
	}
}

func testMkdirRmdir(t *testing.T, dir string) {
	p := dir + "/d"
	must(t, os.Mkdir(p, 0o750))
	if st := lstat(t, p); st.Mode != unix.S_IFDIR|0o750 {
		t.Fatalf("%o", st.Mode)
	}
	wantErr(t, unix.Mkdir(p, 0o755), unix.EEXIST)
	write(t, p+"/f", "")
	wantErr(t, unix.Rmdir(p), unix.ENOTEMPTY, unix.EEXIST)
	wantErr(t, unix.Rmdir(p+"/f"), unix.ENOTDIR)
	wantErr(t, unix.Unlink(p), unix.EISDIR)
	wantErr(t, unix.Rmdir(p+"/none"), unix.ENOENT)
	wantErr(t, unix.Rmdir(p+"/."), unix.EINVAL)
	must(t, os.Remove(p+"/f"))
	must(t, unix.Rmdir(p))
	_, err := os.Lstat(p)
	wantErr(t, err, unix.ENOENT)
}

func testRemovedDirectory(t *testing.T, dir string) {
	p := dir + "/d"
	must(t, os.Mkdir(p, 0o755))
	d := open(t, p, os.O_RDONLY, 0)
	must(t, os.Remove(p))
	_, err := unix.Openat(int(d.Fd()), "f", unix.O_CREAT|unix.O_WRONLY, 0o600)
	wantErr(t, err, unix.ENOENT)
	fstat(t, d)
	must(t, os.Mkdir(p, 0o755))
	write(t, p+"/f", "new")
	want(t, p+"/f", "new")
}

func testNames(t *testing.T, dir string) {
	names := []string{"a b", "\xff\xfe", "tab\t", "new\nline", "-x", "ünïcode", strings.Repeat("n", 255), "...", "a\\b", "*"}
	for _, name := range names {
		write(t, dir+"/"+name, name)
	}
	list, err := os.ReadDir(dir)
	must(t, err)
	var got []string
	for _, e := range list {
		got = append(got, e.Name())
	}
	slices.Sort(got)
	slices.Sort(names)
	if !slices.Equal(got, names) {
		t.Fatalf("%q", got)
	}
	for _, name := range names {
		want(t, dir+"/"+name, name)
	}
	_, err = os.Lstat(dir + "/" + strings.Repeat("n", 256))
	wantErr(t, err, unix.ENAMETOOLONG)
	wantErr(t, unix.Mkdir(dir+"/"+strings.Repeat("n", 256), 0o755), unix.ENAMETOOLONG)
}

// testLongPath goes deeper than PATH_MAX, one relative step at a time.
func testLongPath(t *testing.T, dir string) {
	name := strings.Repeat("d", 200)
	const depth = 30
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	must(t, err)
	for range depth {
		must(t, unix.Mkdirat(fd, name, 0o755))
		next, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		must(t, err)
		must(t, unix.Close(fd))
		fd = next
	}
	f, err := unix.Openat(fd, "f", unix.O_CREAT|unix.O_RDWR, 0o600)
	must(t, err)
	_, err = unix.Write(f, []byte("deep"))
	must(t, err)
	must(t, unix.Fchmod(f, 0o640))
	must(t, unix.Close(f))
	must(t, unix.Renameat(fd, "f", fd, "g"))
	must(t, unix.Close(fd))
	must(t, os.RemoveAll(filepath.Join(dir, name)))
}

const entries = 20000

func testReaddir(t *testing.T, dir string) {
	for i := range 3000 {
		must(t, unix.Mknod(fmt.Sprintf("%s/file-number-%d", dir, i), unix.S_IFREG|0o600, 0))
	}
	list, err := os.ReadDir(dir)
	must(t, err)
	seen := make(map[string]bool)
	for _, e := range list {
		if seen[e.Name()] {
			t.Fatal("twice: ", e.Name())
		}
		seen[e.Name()] = true
	}
	if len(seen) != 3000 {
		t.Fatal(len(seen))
	}
}

// rawEntry is one entry of getdents64(2).
type rawEntry struct {
	name string
	ino  uint64
	off  int64
	kind byte
}

func getdents(t *testing.T, fd int, size int) (list []rawEntry) {
	t.Helper()
	b := make([]byte, size)
	n, err := unix.Getdents(fd, b)
	must(t, err)
	for b = b[:n]; len(b) > 0; {
		d := (*unix.Dirent)(unsafe.Pointer(&b[0]))
		name, _, _ := bytes.Cut(b[19:d.Reclen], []byte{0})
		list = append(list, rawEntry{string(name), d.Ino, d.Off, d.Type})
		b = b[d.Reclen:]
	}
	return list
}

// testReaddirSeek lists many entries and goes back to cookies seen before.
func testReaddirSeek(t *testing.T, dir string) {
	source := first(t, dir)
	for i := range entries {
		must(t, os.Link(source, fmt.Sprintf("%s/%d", dir, i)))
	}
	d := open(t, dir, os.O_RDONLY, 0)
	fd := int(d.Fd())
	var all []rawEntry
	for {
		list := getdents(t, fd, 64<<10)
		if len(list) == 0 {
			break
		}
		all = append(all, list...)
	}
	if len(all) != entries+3 {
		t.Fatal(len(all))
	}
	for _, i := range []int{0, entries / 2, 17, entries - 5, entries / 3} {
		_, err := unix.Seek(fd, all[i].off, unix.SEEK_SET)
		must(t, err)
		if list := getdents(t, fd, 4096); list[0].name != all[i+1].name {
			t.Fatalf("after entry %d: %q, want %q", i, list[0].name, all[i+1].name)
		}
	}
	_, err := unix.Seek(fd, 0, unix.SEEK_SET)
	must(t, err)
	if list := getdents(t, fd, 4096); list[0].name != all[0].name {
		t.Fatal("rewind: ", list[0].name)
	}
}

// first makes a file to link to: ext4 allows 65,000 links, and they are made
// faster than files.
func first(t *testing.T, dir string) string {
	t.Helper()
	p := dir + "/first"
	f, err := os.OpenFile(p, os.O_CREATE|os.O_WRONLY, 0o600)
	must(t, err)
	must(t, f.Close())
	return p
}

func testReaddirTypes(t *testing.T, dir string) {
	write(t, dir+"/f", "")
	must(t, os.Mkdir(dir+"/d", 0o755))
	must(t, os.Symlink("f", dir+"/l"))
	must(t, unix.Mkfifo(dir+"/p", 0o600))
	kinds := map[string]byte{"f": unix.DT_REG, "d": unix.DT_DIR, "l": unix.DT_LNK, "p": unix.DT_FIFO, ".": unix.DT_DIR, "..": unix.DT_DIR}
	d := open(t, dir, os.O_RDONLY, 0)
	list := getdents(t, int(d.Fd()), 8192)
	if len(list) != len(kinds) {
		t.Fatal(list)
	}
	for _, e := range list {
		if e.kind != kinds[e.name] && e.kind != unix.DT_UNKNOWN {
			t.Errorf("%s: type %d", e.name, e.kind)
		}
		if e.name != ".." && e.ino != lstat(t, dir+"/"+e.name).Ino {
			t.Errorf("%s: inode %d", e.name, e.ino)
		}
	}
}

// testReaddirRemove empties a directory while it lists it.
func testReaddirRemove(t *testing.T, dir string) {
	for i := range 500 {
		write(t, fmt.Sprintf("%s/%d", dir, i), "")
	}
	d := open(t, dir, os.O_RDONLY, 0)
	removed := 0
	for {
		names, err := d.Readdirnames(50)
		if len(names) == 0 {
			break
		}
		must(t, err)
		for _, name := range names {
			must(t, os.Remove(dir+"/"+name))
			removed++
		}
	}
	if removed != 500 {
		t.Fatal(removed)
	}
	must(t, os.Remove(dir))
	must(t, os.Mkdir(dir, 0o755))
}
