package fsview

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rexec/fsview/fsproto"
)

// innerEnv marks the process that runs the tests: it has a mount namespace of
// its own, so that nothing stays mounted whatever becomes of it.
const innerEnv = "FSVIEW_TEST_INNER"

func TestMain(m *testing.M) {
	if child := os.Getenv(childEnv); child != "" {
		os.Exit(runChild(child))
	}
	if os.Getenv(innerEnv) != "" {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			fmt.Fprintln(os.Stderr, "make mounts private:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	runtime.LockOSThread() // Pdeathsig is the thread's
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), innerEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(max(exit.ExitCode(), 1))
	case err != nil:
		fmt.Fprintln(os.Stderr, "these tests need root, for a mount namespace:", err)
		os.Exit(1)
	}
}

// mounted is a view whose mounts lie in a directory.
type mounted struct {
	*View
	dir string
}

func (m *mounted) path(p string) string { return filepath.Join(m.dir, p) }

// mount serves a view below a temporary directory.
func mount(t testing.TB, cfg Config) *mounted {
	t.Helper()
	return mountReady(t, cfg, func(*View) {})
}

// mountReady is mount, with a call of ready before the kernel asks anything.
func mountReady(t testing.TB, cfg Config, ready func(*View)) *mounted {
	t.Helper()
	if cfg.Logf == nil {
		cfg.Logf = t.Logf
	}
	v, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ready(v)
	m := &mounted{v, t.TempDir()}
	// Last in, first out: the mounts go before the directory.
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error("close the view:", err)
		}
		if err := unix.Unmount(m.dir, unix.MNT_DETACH); err != nil {
			t.Error("unmount:", err)
		}
		v.Wait()
	})
	for i, mt := range cfg.Mounts {
		m.mountOne(t, i, mt, !cfg.OneID)
	}
	return m
}

func (m *mounted) mountOne(t testing.TB, index int, mt Mount, defaultPermissions bool) {
	t.Helper()
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Fatal("these tests need /dev/fuse:", err)
	}
	opts := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,max_read=%d", dev.Fd(), fsproto.MaxIO)
	if defaultPermissions {
		opts += ",default_permissions"
	}
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV)
	if err := unix.Mount("rexec", m.path(mt.Path), "fuse.rexec", flags, opts); err != nil {
		t.Fatalf("mount %s: %v", mt.Path, err)
	}
	if err := m.Serve(index, dev); err != nil {
		t.Fatal(err)
	}
	// The first poll(2) of a mount is answered by ENOSYS, and no later one is
	// sent. The runtime would send it where it cannot wait. This name is
	// go-fuse's, for the purpose.
	fd, err := unix.Open(filepath.Join(m.path(mt.Path), ".go-fuse-epoll-hack"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("open in %s: %v", mt.Path, err)
	}
	unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	unix.Close(fd)
}

// childEnv has the test binary do one thing in a process of its own.
const childEnv = "FSVIEW_TEST_CHILD"

// child runs one of the children of runChild.
func child(name string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"="+strings.Join(append([]string{name}, args...), "\x01"))
	return cmd
}

func runChild(call string) int {
	args := strings.Split(call, "\x01")
	switch args[0] {
	case "stat":
		var st unix.Stat_t
		if err := unix.Stat(args[1], &st); err != nil {
			fmt.Println(err)
			return 1
		}
	case "getcwd":
		os.Chdir(args[1])
		fmt.Print(".")
		io.ReadAll(os.Stdin)
		buf := make([]byte, unix.PathMax)
		n, err := unix.Getcwd(buf)
		if err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Print(string(buf[:n-1]))
	case "stats":
		var st unix.Stat_t
		n, _ := strconv.Atoi(args[2])
		for range n {
			if err := unix.Stat(args[1], &st); err != nil {
				fmt.Println(err)
				return 1
			}
		}
	case "time":
		timeCalls(args[1], args[2])
	default:
		return 2
	}
	return 0
}

// timeCalls prints how long one call of a kind takes, in nanoseconds.
func timeCalls(kind, path string) {
	runtime.LockOSThread()
	var st unix.Stat_t
	fd, err := unix.Open(path, unix.O_RDONLY, 0)
	if err != nil {
		fmt.Println(err)
		return
	}
	call := map[string]func(){
		"fstat": func() { unix.Fstat(fd, &st) },
		"stat":  func() { unix.Stat(path, &st) },
		"open": func() {
			if fd, err := unix.Open(path, unix.O_RDONLY, 0); err == nil {
				unix.Close(fd)
			}
		},
	}[kind]
	const n = 5000
	call()
	start := time.Now()
	for range n {
		call()
	}
	fmt.Print(time.Since(start).Nanoseconds() / n)
}
