package posix

import (
	"bytes"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func testChmod(t *testing.T, dir string) {
	p := dir + "/f"
	write(t, p, "")
	for _, mode := range []uint32{0, 0o777, 0o600, 0o4755, 0o1700} {
		must(t, unix.Chmod(p, mode))
		if st := lstat(t, p); st.Mode&0o7777 != mode {
			t.Fatalf("%o, want %o", st.Mode&0o7777, mode)
		}
	}
	must(t, os.Mkdir(dir+"/d", 0o755))
	must(t, unix.Chmod(dir+"/d", 0o2775))
	if st := lstat(t, dir+"/d"); st.Mode&0o7777 != 0o2775 {
		t.Fatalf("%o", st.Mode)
	}
	wantErr(t, unix.Chmod(dir+"/none", 0o600), unix.ENOENT)
}

func testChown(t *testing.T, dir string) {
	p := dir + "/f"
	write(t, p, "")
	must(t, unix.Chmod(p, 0o4755))
	must(t, os.Chown(p, os.Geteuid(), os.Getegid()))
	st := lstat(t, p)
	if st.Uid != uint32(os.Geteuid()) || st.Gid != uint32(os.Getegid()) {
		t.Fatalf("%+v", st)
	}
	if st.Mode&unix.S_ISUID != 0 {
		t.Fatal("chown kept the set-user-id bit")
	}
	if os.Geteuid() != 0 {
		wantErr(t, os.Chown(p, 0, -1), unix.EPERM)
	}
}

func testUtimes(t *testing.T, dir string) {
	p := dir + "/f"
	write(t, p, "")
	set := func(a, m unix.Timespec) {
		t.Helper()
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{a, m}, 0))
	}
	set(unix.Timespec{Sec: 1e9, Nsec: 123456789}, unix.Timespec{Sec: 1e9 + 1, Nsec: 987654321})
	st := lstat(t, p)
	if st.Atim != (unix.Timespec{Sec: 1e9, Nsec: 123456789}) || st.Mtim != (unix.Timespec{Sec: 1e9 + 1, Nsec: 987654321}) {
		t.Fatalf("%+v", st)
	}
	set(unix.Timespec{Nsec: unix.UTIME_OMIT}, unix.Timespec{Sec: 5})
	if st = lstat(t, p); st.Atim.Sec != 1e9 || st.Mtim != (unix.Timespec{Sec: 5}) {
		t.Fatalf("%+v", st)
	}
	set(unix.Timespec{Nsec: unix.UTIME_NOW}, unix.Timespec{Nsec: unix.UTIME_OMIT})
	if st = lstat(t, p); st.Atim.Sec <= 1e9 || st.Mtim.Sec != 5 {
		t.Fatalf("%+v", st)
	}
}

// later repeats a change until it moves a time: clocks of file systems tick
// some hundred times a second.
func later(t *testing.T, what string, get func() unix.Timespec, change func()) {
	t.Helper()
	before := get()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		change()
		if after := get(); after.Nano() > before.Nano() {
			return
		}
	}
	t.Fatalf("%s does not move the time", what)
}

func testTimesMove(t *testing.T, dir string) {
	p := dir + "/f"
	f := open(t, p, os.O_RDWR|os.O_CREATE, 0o600)
	mtime := func() unix.Timespec { return lstat(t, p).Mtim }
	ctime := func() unix.Timespec { return lstat(t, p).Ctim }
	dirTime := func() unix.Timespec { return lstat(t, dir).Mtim }
	writeOne := func() {
		_, err := f.WriteAt([]byte("x"), 0)
		must(t, err)
	}
	later(t, "write", mtime, writeOne)
	later(t, "write", ctime, writeOne)
	later(t, "chmod", ctime, func() { must(t, f.Chmod(0o640)) })
	later(t, "truncate", mtime, func() { must(t, f.Truncate(0)); writeOne() })
	later(t, "link", ctime, func() { must(t, os.Link(p, dir+"/l")); must(t, os.Remove(dir+"/l")) })
	later(t, "create", dirTime, func() { write(t, dir+"/new", ""); must(t, os.Remove(dir+"/new")) })
}

func testStatFields(t *testing.T, dir string) {
	p := dir + "/f"
	write(t, p, strings.Repeat("x", 10000))
	var st unix.Statx_t
	must(t, unix.Statx(unix.AT_FDCWD, p, 0, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st))
	if st.Size != 10000 || st.Blocks == 0 || st.Blksize == 0 || st.Nlink != 1 || st.Ino == 0 {
		t.Fatalf("%+v", st)
	}
	sub := dir + "/d"
	must(t, os.Mkdir(sub, 0o755))
	if lstat(t, sub).Dev != lstat(t, dir).Dev || lstat(t, p).Dev != lstat(t, dir).Dev {
		t.Fatal("devices differ within a directory")
	}
	if lstat(t, sub+"/..").Ino != lstat(t, dir).Ino {
		t.Fatal(".. is another directory")
	}
}

func testAccess(t *testing.T, dir string) {
	p := dir + "/f"
	write(t, p, "")
	must(t, unix.Access(p, unix.R_OK|unix.W_OK))
	wantErr(t, unix.Access(p, unix.X_OK), unix.EACCES)
	must(t, os.Chmod(p, 0o755))
	must(t, unix.Access(p, unix.X_OK))
	wantErr(t, unix.Access(dir+"/none", unix.F_OK), unix.ENOENT)
	if os.Geteuid() == 0 {
		return // may read whatever the mode
	}
	must(t, os.Chmod(p, 0))
	wantErr(t, unix.Access(p, unix.R_OK), unix.EACCES)
	_, err := os.Open(p)
	wantErr(t, err, unix.EACCES)
}

func testFIFO(t *testing.T, dir string) {
	p := dir + "/p"
	must(t, unix.Mkfifo(p, 0o600))
	if st := lstat(t, p); st.Mode != unix.S_IFIFO|0o600 {
		t.Fatalf("%o", st.Mode)
	}
	_, err := os.OpenFile(p, os.O_WRONLY|unix.O_NONBLOCK, 0)
	wantErr(t, err, unix.ENXIO)
	r := open(t, p, os.O_RDONLY|unix.O_NONBLOCK, 0)
	w := open(t, p, os.O_WRONLY, 0)
	_, err = w.WriteString("through")
	must(t, err)
	b := make([]byte, 20)
	if n, err := r.Read(b); err != nil || string(b[:n]) != "through" {
		t.Fatal(string(b[:n]), err)
	}
}

func testSocket(t *testing.T, dir string) {
	// A name relative to the directory's descriptor: sun_path is short.
	d := open(t, dir, os.O_RDONLY, 0)
	name := "/proc/self/fd/" + itoa(int(d.Fd())) + "/s"
	l, err := net.Listen("unix", name)
	must(t, err)
	defer l.Close()
	if st := lstat(t, dir+"/s"); st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		t.Fatalf("%o", st.Mode)
	}
	c, err := net.Dial("unix", name)
	must(t, err)
	must(t, c.Close())
	_, err = os.Open(dir + "/s")
	wantErr(t, err, unix.ENXIO)
}

func itoa(n int) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + itoa(n%10)
}

func testXattr(t *testing.T, dir string) {
	p := dir + "/f"
	write(t, p, "")
	must(t, unix.Setxattr(p, "user.small", []byte("value\x00\xff"), 0))
	big := bytes.Repeat([]byte("b"), 1000)
	must(t, unix.Setxattr(p, "user.big", big, unix.XATTR_CREATE))
	wantErr(t, unix.Setxattr(p, "user.big", big, unix.XATTR_CREATE), unix.EEXIST)
	wantErr(t, unix.Setxattr(p, "user.none", big, unix.XATTR_REPLACE), unix.ENODATA)
	b := make([]byte, 2000)
	n, err := unix.Getxattr(p, "user.small", b)
	if err != nil || string(b[:n]) != "value\x00\xff" {
		t.Fatal(err, b[:n])
	}
	if n, err = unix.Getxattr(p, "user.big", nil); err != nil || n != len(big) {
		t.Fatal(n, err)
	}
	_, err = unix.Getxattr(p, "user.big", b[:10])
	wantErr(t, err, unix.ERANGE)
	n, err = unix.Listxattr(p, b)
	must(t, err)
	var names []string
	for _, name := range strings.Split(strings.TrimSuffix(string(b[:n]), "\x00"), "\x00") {
		if strings.HasPrefix(name, "user.") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	if !slices.Equal(names, []string{"user.big", "user.small"}) {
		t.Fatal(names)
	}
	must(t, unix.Removexattr(p, "user.big"))
	_, err = unix.Getxattr(p, "user.big", b)
	wantErr(t, err, unix.ENODATA)
	must(t, os.Symlink("f", dir+"/l"))
	wantErr(t, unix.Lsetxattr(dir+"/l", "user.x", []byte("v"), 0), unix.EPERM)
}

func testStatfs(t *testing.T, dir string) {
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	if st.Blocks == 0 || st.Bsize == 0 || st.Namelen < 255 || st.Bavail > st.Blocks {
		t.Fatalf("%+v", st)
	}
}
