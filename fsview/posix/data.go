package posix

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantErr wants one errno of a few.
func wantErr(t *testing.T, err error, want ...syscall.Errno) {
	t.Helper()
	for _, w := range want {
		if err != nil && asErrno(err) == w {
			return
		}
	}
	t.Fatalf("error %v, want %v", err, want)
}

func asErrno(err error) syscall.Errno {
	for err != nil {
		if e, ok := err.(syscall.Errno); ok {
			return e
		}
		u, ok := err.(interface{ Unwrap() error })
		if !ok {
			break
		}
		err = u.Unwrap()
	}
	return 0
}

func write(t *testing.T, path, content string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(content), 0o644))
}

func want(t *testing.T, path, content string) {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	if string(b) != content {
		t.Fatalf("%s holds %.80q (%d bytes), want %.80q (%d bytes)", filepath.Base(path), b, len(b), content, len(content))
	}
}

func open(t *testing.T, path string, flags int, mode os.FileMode) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, flags, mode)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func lstat(t *testing.T, path string) *unix.Stat_t {
	t.Helper()
	st := new(unix.Stat_t)
	if err := unix.Lstat(path, st); err != nil {
		t.Fatalf("lstat %s: %v", filepath.Base(path), err)
	}
	return st
}

func fstat(t *testing.T, f *os.File) *unix.Stat_t {
	t.Helper()
	st := new(unix.Stat_t)
	must(t, unix.Fstat(int(f.Fd()), st))
	return st
}

func testCreate(t *testing.T, dir string) {
	p := dir + "/f"
	f := open(t, p, os.O_RDWR|os.O_CREATE, 0o640)
	if st := fstat(t, f); st.Mode != unix.S_IFREG|0o640 || st.Size != 0 || st.Nlink != 1 {
		t.Fatalf("%+v", st)
	}
	if st := lstat(t, p); st.Ino != fstat(t, f).Ino {
		t.Fatal("the name leads elsewhere")
	}
	_, err := os.OpenFile(dir+"/none/f", os.O_CREATE|os.O_WRONLY, 0o600)
	wantErr(t, err, unix.ENOENT)
	_, err = os.OpenFile(p+"/g", os.O_CREATE|os.O_WRONLY, 0o600)
	wantErr(t, err, unix.ENOTDIR)
	_, err = os.Open(dir + "/none")
	wantErr(t, err, unix.ENOENT)
}

func testExclusive(t *testing.T, dir string) {
	p := dir + "/f"
	open(t, p, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	_, err := os.OpenFile(p, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	wantErr(t, err, unix.EEXIST)
	must(t, os.Symlink("nowhere", dir+"/l"))
	_, err = os.OpenFile(dir+"/l", os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	wantErr(t, err, unix.EEXIST)
}

func testExclusiveRace(t *testing.T, dir string) {
	for round := range 10 {
		var won sync.Map
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				f, err := os.OpenFile(fmt.Sprintf("%s/%d", dir, round), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
				if err == nil {
					won.Store(i, true)
					f.Close()
				} else if asErrno(err) != unix.EEXIST {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		n := 0
		won.Range(func(any, any) bool { n++; return true })
		if n != 1 {
			t.Fatalf("%d made the file", n)
		}
	}
}

// testUmask runs a shell, since the umask is the whole process's.
func testUmask(t *testing.T, dir string) {
	script := `umask 027; : > f; mkdir d; mkfifo p; umask 0; : > g; mkdir e; umask 077; : > h`
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for name, mode := range map[string]uint32{"f": 0o640, "d": 0o750, "p": 0o640, "g": 0o666, "e": 0o777, "h": 0o600} {
		if st := lstat(t, dir+"/"+name); st.Mode&0o7777 != mode {
			t.Errorf("%s: %o, want %o", name, st.Mode&0o7777, mode)
		}
	}
}

func testReadWrite(t *testing.T, dir string) {
	f := open(t, dir+"/f", os.O_RDWR|os.O_CREATE, 0o600)
	_, err := f.WriteString("hello world")
	must(t, err)
	_, err = f.WriteAt([]byte("W"), 6)
	must(t, err)
	b := make([]byte, 20)
	n, err := f.ReadAt(b, 0)
	if err != io.EOF || string(b[:n]) != "hello World" {
		t.Fatal(n, err, string(b[:n]))
	}
	if n, err := f.ReadAt(b, 100); n != 0 || err != io.EOF {
		t.Fatal(n, err)
	}
	if pos, err := f.Seek(0, io.SeekEnd); pos != 11 || err != nil {
		t.Fatal(pos, err)
	}
	want(t, dir+"/f", "hello World")
}

func testLargeWrite(t *testing.T, dir string) {
	data := make([]byte, 3<<20+777)
	for i := range data {
		data[i] = byte(i * 7 >> 3)
	}
	must(t, os.WriteFile(dir+"/f", data, 0o600))
	got, err := os.ReadFile(dir + "/f")
	must(t, err)
	if !bytes.Equal(got, data) {
		t.Fatal("content differs")
	}
	if st := lstat(t, dir+"/f"); st.Size != int64(len(data)) || st.Blocks == 0 {
		t.Fatalf("%+v", st)
	}
}

func testAppend(t *testing.T, dir string) {
	p := dir + "/f"
	write(t, p, "one\n")
	f := open(t, p, os.O_WRONLY|os.O_APPEND, 0)
	_, err := f.WriteString("two\n")
	must(t, err)
	_, err = f.Seek(0, io.SeekStart)
	must(t, err)
	_, err = f.WriteString("three\n")
	must(t, err)
	want(t, p, "one\ntwo\nthree\n")
}

func testAppendTwo(t *testing.T, dir string) {
	p := dir + "/f"
	a := open(t, p, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	b := open(t, p, os.O_WRONLY|os.O_APPEND, 0)
	for _, f := range []*os.File{a, b, a, b} {
		_, err := f.WriteString("line\n")
		must(t, err)
	}
	want(t, p, "line\nline\nline\nline\n")
}

func testAppendToggle(t *testing.T, dir string) {
	p := dir + "/f"
	write(t, p, "abc")
	f := open(t, p, os.O_WRONLY, 0)
	set := func(flags int) {
		_, err := unix.FcntlInt(f.Fd(), unix.F_SETFL, flags)
		must(t, err)
	}
	set(unix.O_APPEND)
	_, err := f.WriteString("d")
	must(t, err)
	set(0)
	_, err = unix.Pwrite(int(f.Fd()), []byte("A"), 0)
	must(t, err)
	want(t, p, "Abcd")
}

func testTruncate(t *testing.T, dir string) {
	p := dir + "/f"
	write(t, p, "0123456789")
	must(t, os.Truncate(p, 4))
	want(t, p, "0123")
	f := open(t, p, os.O_RDWR, 0)
	must(t, f.Truncate(6))
	want(t, p, "0123\x00\x00")
	must(t, f.Truncate(0))
	if st := fstat(t, f); st.Size != 0 {
		t.Fatal(st.Size)
	}
	ro := open(t, p, os.O_RDONLY, 0)
	wantErr(t, unix.Ftruncate(int(ro.Fd()), 1), unix.EINVAL)
	wantErr(t, unix.Truncate(dir, 1), unix.EISDIR)
}

func testOpenTruncate(t *testing.T, dir string) {
	p := dir + "/f"
	write(t, p, "0123456789")
	other := open(t, p, os.O_RDONLY, 0)
	open(t, p, os.O_WRONLY|os.O_TRUNC, 0)
	if st := fstat(t, other); st.Size != 0 {
		t.Fatal(st.Size)
	}
	want(t, p, "")
}

func testAccessMode(t *testing.T, dir string) {
	p := dir + "/f"
	write(t, p, "x")
	b := make([]byte, 1)
	ro, wo := open(t, p, os.O_RDONLY, 0), open(t, p, os.O_WRONLY, 0)
	_, err := unix.Write(int(ro.Fd()), []byte("y"))
	wantErr(t, err, unix.EBADF)
	_, err = unix.Pread(int(wo.Fd()), b, 0)
	wantErr(t, err, unix.EBADF)
	_, err = os.OpenFile(dir, os.O_WRONLY, 0)
	wantErr(t, err, unix.EISDIR)
	_, err = os.OpenFile(p, os.O_RDONLY|unix.O_DIRECTORY, 0)
	wantErr(t, err, unix.ENOTDIR)
}

// testReadOnlyCreate writes through a description whose mode forbids anyone
// to open the file so.
func testReadOnlyCreate(t *testing.T, dir string) {
	p := dir + "/f"
	f := open(t, p, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o444)
	_, err := f.WriteString("data")
	must(t, err)
	must(t, f.Truncate(2))
	want(t, p, "da")
}

func testSparse(t *testing.T, dir string) {
	f := open(t, dir+"/f", os.O_RDWR|os.O_CREATE, 0o600)
	const end = 1 << 33
	_, err := f.WriteAt([]byte("end"), end)
	must(t, err)
	st := fstat(t, f)
	if st.Size != end+3 || st.Blocks > 1<<15 {
		t.Fatalf("%+v", st)
	}
	b := make([]byte, 3)
	if _, err := f.ReadAt(b, end); err != nil || string(b) != "end" {
		t.Fatal(err, string(b))
	}
	if _, err := f.ReadAt(b, end/2); err != nil || string(b) != "\x00\x00\x00" {
		t.Fatal(err, b)
	}
}

func testSeekHole(t *testing.T, dir string) {
	f := open(t, dir+"/f", os.O_RDWR|os.O_CREATE, 0o600)
	_, err := f.WriteAt([]byte("data"), 1<<20)
	must(t, err)
	must(t, f.Truncate(2<<20))
	fd := int(f.Fd())
	pos, err := unix.Seek(fd, 1<<20, unix.SEEK_DATA)
	if err != nil || pos != 1<<20 {
		t.Fatal(pos, err)
	}
	// A file system may call all of it data, with one hole at the end.
	if pos, err = unix.Seek(fd, 1<<20, unix.SEEK_HOLE); err != nil || pos <= 1<<20 || pos > 2<<20 {
		t.Fatal(pos, err)
	}
	_, err = unix.Seek(fd, 3<<20, unix.SEEK_DATA)
	wantErr(t, err, unix.ENXIO)
}

func testFallocate(t *testing.T, dir string) {
	f := open(t, dir+"/f", os.O_RDWR|os.O_CREATE, 0o600)
	fd := int(f.Fd())
	must(t, unix.Fallocate(fd, 0, 0, 1<<20))
	if st := fstat(t, f); st.Size != 1<<20 || st.Blocks < 2048 {
		t.Fatalf("%+v", st)
	}
	must(t, unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 1<<20, 4096))
	if st := fstat(t, f); st.Size != 1<<20 {
		t.Fatal(st.Size)
	}
	_, err := f.WriteAt(bytes.Repeat([]byte("x"), 8192), 0)
	must(t, err)
	must(t, unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE|unix.FALLOC_FL_PUNCH_HOLE, 4096, 4096))
	b := make([]byte, 2)
	if _, err := f.ReadAt(b, 4095); err != nil || string(b) != "x\x00" {
		t.Fatal(err, b)
	}
}

func testCopyRange(t *testing.T, dir string) {
	write(t, dir+"/a", "0123456789")
	in := open(t, dir+"/a", os.O_RDONLY, 0)
	out := open(t, dir+"/b", os.O_RDWR|os.O_CREATE, 0o600)
	from, to := int64(2), int64(1)
	n, err := unix.CopyFileRange(int(in.Fd()), &from, int(out.Fd()), &to, 5, 0)
	if err != nil || n != 5 || from != 7 || to != 6 {
		t.Fatal(n, err, from, to)
	}
	want(t, dir+"/b", "\x0023456")
}

func testMmap(t *testing.T, dir string) {
	p := dir + "/f"
	write(t, p, "0123456789")
	f := open(t, p, os.O_RDWR, 0)
	m, err := unix.Mmap(int(f.Fd()), 0, 10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	if string(m) != "0123456789" {
		t.Fatal(string(m))
	}
	copy(m[3:], "XYZ")
	must(t, unix.Msync(m, unix.MS_SYNC))
	must(t, unix.Munmap(m))
	want(t, p, "012XYZ6789")
}

func testFsync(t *testing.T, dir string) {
	f := open(t, dir+"/f", os.O_RDWR|os.O_CREATE, 0o600)
	_, err := f.WriteString("x")
	must(t, err)
	must(t, f.Sync())
	must(t, unix.Fdatasync(int(f.Fd())))
	d := open(t, dir, os.O_RDONLY, 0)
	must(t, d.Sync())
}

func testManyWriters(t *testing.T, dir string) {
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for j := range 8 {
				p := fmt.Sprintf("%s/%d-%d", dir, i, j)
				data := bytes.Repeat([]byte{byte(i), byte(j)}, 5000)
				if err := os.WriteFile(p, data, 0o600); err != nil {
					t.Error(err)
					return
				}
				if got, err := os.ReadFile(p); err != nil || !bytes.Equal(got, data) {
					t.Error(p, err)
				}
			}
		})
	}
	wg.Wait()
}

func testExec(t *testing.T, dir string) {
	p := dir + "/prog"
	must(t, os.WriteFile(p, []byte("#!/bin/sh\necho ran $1\n"), 0o700))
	out, err := exec.Command(p, "well").CombinedOutput()
	if err != nil || string(out) != "ran well\n" {
		t.Fatalf("%v: %s", err, out)
	}
	must(t, os.Chmod(p, 0o600))
	err = exec.Command(p).Run()
	wantErr(t, err, unix.EACCES)
}
