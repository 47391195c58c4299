package fsview

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func mkdirs(t *testing.T, base string, names ...string) {
	t.Helper()
	for _, n := range names {
		if err := os.MkdirAll(filepath.Join(base, n), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// bind mounts a directory of "the server" on a name of the view.
func bind(t *testing.T, m *mounted, name string) {
	t.Helper()
	server := t.TempDir()
	if err := os.WriteFile(filepath.Join(server, "server"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(server, m.path(name), "", unix.MS_BIND, ""); err != nil {
		t.Fatalf("bind on %s: %v", name, err)
	}
	t.Cleanup(func() { unix.Unmount(m.path(name), unix.MNT_DETACH) })
}

func stillBound(t *testing.T, m *mounted, name, after string) {
	t.Helper()
	if _, err := os.Lstat(m.path(name + "/server")); err != nil {
		t.Fatalf("after %s %s is not the server's: %v", after, name, err)
	}
}

func points(names ...string) func(*Config) {
	return func(c *Config) {
		for _, n := range names {
			c.Points = append(c.Points, Point{Path: n, Dir: true})
		}
	}
}

func TestBindStaysOnPinnedName(t *testing.T) {
	home := homeDir(t)
	mkdirs(t, home, "a/b/sp", "other")
	m := native(t, home, points("/a/b/sp"))
	bind(t, m, "/a/b/sp")

	for _, p := range []string{"/a", "/a/b", "/a/b/sp"} {
		if err := os.MkdirAll(m.path(p), 0o755); err != nil {
			t.Errorf("mkdir -p %s: %v", p, err)
		}
		if err := unix.Mkdir(m.path(p), 0o755); err != unix.EEXIST {
			t.Errorf("mkdir %s: %v", p, err)
		}
		if _, err := unix.Open(m.path(p), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o644); err != unix.EEXIST {
			t.Errorf("exclusive open of %s: %v", p, err)
		}
		if err := unix.Rename(m.path(p), m.path("/moved")); err != unix.EBUSY {
			t.Errorf("rename of %s: %v", p, err)
		}
		if err := unix.Rename(m.path("/other"), m.path(p)); err != unix.EBUSY {
			t.Errorf("rename onto %s: %v", p, err)
		}
		if err := unix.Rmdir(m.path(p)); err != unix.EBUSY {
			t.Errorf("rmdir of %s: %v", p, err)
		}
		if err := unix.Symlink("x", m.path(p)); err != unix.EEXIST {
			t.Errorf("symlink at %s: %v", p, err)
		}
		stillBound(t, m, "/a/b/sp", "attempts on "+p)
	}
	if err := os.WriteFile(m.path("/a/b/beside"), []byte("x"), 0o644); err != nil {
		t.Error("a file beside the bind:", err)
	}
	if _, err := os.Lstat(filepath.Join(home, "a/b/beside")); err != nil {
		t.Error("which is home's:", err)
	}
	stillBound(t, m, "/a/b/sp", "a file beside it")
}

func TestBindOutlivesHomesDirectory(t *testing.T) {
	home := homeDir(t)
	mkdirs(t, home, "a/b/sp", "c/sp")
	m := native(t, home, points("/a/b/sp", "/c/sp"))
	bind(t, m, "/a/b/sp")
	bind(t, m, "/c/sp")
	if err := os.RemoveAll(filepath.Join(home, "a")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(home, "c"), filepath.Join(home, "d")); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"/a/b/sp", "/c/sp"} {
		if err := os.MkdirAll(m.path(p), 0o755); err != nil {
			t.Errorf("mkdir -p %s: %v", p, err)
		}
		stillBound(t, m, p, "home's directory went")
	}
	if _, err := os.Lstat(m.path("/d/sp")); err != nil {
		t.Error("where home's directory went to:", err)
	}
	stillBound(t, m, "/c/sp", "a look at the directory's new name")
}

func TestPointThatHomeLacks(t *testing.T) {
	home := homeDir(t)
	mkdirs(t, home, "usr/lib", "real")
	if err := os.Symlink("usr/lib", filepath.Join(home, "lib")); err != nil {
		t.Fatal(err)
	}
	m := native(t, home, func(c *Config) {
		points("/lib", "/opt/deep/er")(c)
		c.Points = append(c.Points, Point{Path: "/real/file"})
	})
	bind(t, m, "/lib")
	bind(t, m, "/opt/deep/er")
	stillBound(t, m, "/lib", "the mount")
	stillBound(t, m, "/opt/deep/er", "the mount")

	st, err := os.Stat(m.path("/real/file"))
	if err != nil || !st.Mode().IsRegular() || st.Size() != 0 {
		t.Errorf("a file point: %v, %v", st, err)
	}
	for dir, want := range map[string][]string{
		"/":         {"lib", "opt", "real", "usr"},
		"/opt":      {"deep"},
		"/opt/deep": {"er"},
		"/real":     {"file"},
	} {
		list, err := os.ReadDir(m.path(dir))
		var names []string
		for _, e := range list {
			names = append(names, e.Name())
		}
		if err != nil || !slices.Equal(names, want) {
			t.Errorf("listing of %s: %q, %v, want %q", dir, names, err, want)
		}
	}
	if list, _ := os.ReadDir(m.path("/")); len(list) > 0 && !list[0].IsDir() {
		t.Errorf("lib is listed as %v", list[0])
	}
	if err := os.WriteFile(m.path("/opt/x"), nil, 0o644); !errors.Is(err, syscall.EACCES) {
		t.Errorf("a file in a directory that home lacks: %v", err)
	}
	if err := os.Chmod(m.path("/opt"), 0o777); !errors.Is(err, syscall.EPERM) {
		t.Errorf("chmod of a directory that home lacks: %v", err)
	}
}

func TestAbsentNames(t *testing.T) {
	home := homeDir(t)
	mkdirs(t, home, "d/secret", "late", "free")
	m := native(t, home, func(c *Config) { c.Absent = []string{"/d/secret", "/new/secret", "/late/x"} })
	if _, err := os.Lstat(m.path("/d/secret")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is there: %v", err)
	}
	if list, err := os.ReadDir(m.path("/d")); err != nil || len(list) != 0 {
		t.Errorf("it is listed: %v, %v", list, err)
	}
	if err := os.Mkdir(m.path("/d/secret"), 0o755); !errors.Is(err, syscall.EACCES) {
		t.Errorf("it can be made: %v", err)
	}
	if err := os.Rename(m.path("/free"), m.path("/d/secret")); !errors.Is(err, syscall.EACCES) {
		t.Errorf("something can be moved there: %v", err)
	}
	if _, err := os.Lstat(m.path("/new")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an ancestor that home lacks is shown: %v", err)
	}
	if err := os.Mkdir(m.path("/new"), 0o755); err != nil {
		t.Errorf("it cannot be made: %v", err)
	}
	if err := os.Mkdir(m.path("/new/secret"), 0o755); !errors.Is(err, syscall.EACCES) {
		t.Errorf("the absent name in it can be made: %v", err)
	}
}

func TestReadOnlyMount(t *testing.T) {
	home := homeDir(t)
	if err := os.WriteFile(filepath.Join(home, "f"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	m := native(t, home, func(c *Config) { c.Mounts[0].ReadOnly = true })
	f := m.path("f")
	for name, err := range map[string]error{
		"write":  os.WriteFile(f, nil, 0o644),
		"create": os.WriteFile(m.path("g"), nil, 0o644),
		"mkdir":  os.Mkdir(m.path("d"), 0o755),
		"remove": unix.Unlink(f),
		"rename": os.Rename(f, m.path("g")),
		"chmod":  os.Chmod(f, 0o600),
		"link":   os.Link(f, m.path("g")),
	} {
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got, err := os.ReadFile(f); err != nil || string(got) != "x" {
		t.Errorf("read %q, %v", got, err)
	}
}

// TestMountsWithinMounts has a second FUSE mount on a name of the first.
func TestMountsWithinMounts(t *testing.T) {
	home := homeDir(t)
	mkdirs(t, home, "mnt/in")
	m := native(t, home, func(c *Config) {
		f := newFake()
		f.put("inner", "data")
		c.Mounts = append(c.Mounts, Mount{Path: "/mnt/in", Origin: f, Root: fakeRoot})
	})
	if got, err := os.ReadFile(m.path("/mnt/in/inner")); err != nil || string(got) != "data" {
		t.Fatalf("read %q, %v", got, err)
	}
	if err := unix.Rename(m.path("/mnt"), m.path("/x")); err != unix.EBUSY {
		t.Errorf("rename of the way to a mount: %v", err)
	}
	if err := os.RemoveAll(filepath.Join(home, "mnt")); err != nil {
		t.Fatal(err)
	}
	os.MkdirAll(m.path("/mnt/in"), 0o755)
	if got, err := os.ReadFile(m.path("/mnt/in/inner")); err != nil || string(got) != "data" {
		t.Errorf("after home's directory went: %q, %v", got, err)
	}
}

// TestDefaultACL has new files inherit a default ACL, and the umask apply
// elsewhere.
func TestDefaultACL(t *testing.T) {
	home := homeDir(t)
	mkdirs(t, home, "plain", "acl")
	// version 2, then (tag, perm, id): USER_OBJ rwx, GROUP_OBJ r-x, OTHER r-x
	acl := []byte{2, 0, 0, 0,
		1, 0, 7, 0, 0xff, 0xff, 0xff, 0xff,
		4, 0, 5, 0, 0xff, 0xff, 0xff, 0xff,
		0x20, 0, 5, 0, 0xff, 0xff, 0xff, 0xff}
	m := native(t, home, nil)
	if err := unix.Setxattr(m.path("acl"), "system.posix_acl_default", acl, 0); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"plain": "700 600", "acl": "755 644"} {
		out, err := exec.Command("/bin/sh", "-c", `umask 077; cd "$1" && mkdir d && : >f && stat -c %a d f | tr '\n' ' '`, "sh", m.path(name)).CombinedOutput()
		if err != nil || string(out) != want+" " {
			t.Errorf("modes in %s: %s, %v, want %s", name, out, err, want)
		}
	}
}
