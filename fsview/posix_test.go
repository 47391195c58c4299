package fsview

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"golang.org/x/sys/unix"

	"rexec/fsview/origin"
	"rexec/fsview/posix"
)

var umaskOnce sync.Once

// native serves a directory of this machine.
func native(t *testing.T, dir string, change func(*Config)) *mounted {
	t.Helper()
	umaskOnce.Do(func() { unix.Umask(0) }) // the origin's demand
	o, err := origin.New(origin.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.Close)
	root, _, err := o.Root(dir)
	if err != nil {
		t.Fatal(err)
	}
	cfg := one(o, root)
	if change != nil {
		change(&cfg)
	}
	return mount(t, cfg)
}

// homeDir is a directory to serve.
func homeDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// tooMany are cases with more files than a short test can make;
// TestLongListing has what they are about.
var tooMany = []string{"readdir", "readdir-seek", "long-path"}

func TestLongListing(t *testing.T) {
	home := homeDir(t)
	const files = 1000
	for i := range files {
		if err := os.WriteFile(filepath.Join(home, fmt.Sprintf("file-%d", i)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m := native(t, home, points("/lacking1", "/lacking2"))
	d, err := unix.Open(m.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(d)
	buf := make([]byte, 4096)
	next := func() []string {
		n, err := unix.Getdents(d, buf)
		if err != nil {
			t.Fatal(err)
		}
		_, _, names := unix.ParseDirent(buf[:n], -1, nil)
		return names
	}
	type place struct {
		off   int64
		names []string
	}
	var places []place
	seen := make(map[string]bool)
	for {
		off, _ := unix.Seek(d, 0, unix.SEEK_CUR)
		names := next()
		if len(names) == 0 && len(seen) >= files {
			break
		}
		places = append(places, place{off, names})
		for _, n := range names {
			if seen[n] {
				t.Fatal("twice:", n)
			}
			seen[n] = true
		}
	}
	if len(seen) != files+2 {
		t.Fatalf("%d names, want %d", len(seen), files+2)
	}
	for _, i := range []int{0, len(places) - 1, len(places) / 2, 3} {
		unix.Seek(d, places[i].off, unix.SEEK_SET)
		if names := next(); !slices.Equal(names, places[i].names) {
			t.Errorf("back at place %d: %q, want %q", i, names, places[i].names)
		}
	}
}

// suiteEnv names the directory that [TestSuiteProcess] tests, and how.
const suiteEnv = "FSVIEW_TEST_SUITE"

// suite runs tests on a directory in a process of its own: one that serves a
// mount must not execute anything in it.
func suite(t *testing.T, kind, dir string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestSuiteProcess$", "-test.v", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), suiteEnv+"="+kind+":"+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestSuiteProcess is what suite starts.
func TestSuiteProcess(t *testing.T) {
	kind, dir, ok := strings.Cut(os.Getenv(suiteEnv), ":")
	switch {
	case !ok: // the tests were started, not one suite
	case kind == "posix":
		posix.Run(t, dir, tooMany...)
	case kind == "gofuse":
		goFuseSuite(t, dir)
	}
}

func TestPosixSuite(t *testing.T) {
	suite(t, "posix", native(t, homeDir(t), nil).dir)
}

func TestPosixSuiteOneID(t *testing.T) {
	suite(t, "posix", native(t, homeDir(t), func(c *Config) { c.OneID = true }).dir)
}

func TestGoFuseSuite(t *testing.T) {
	suite(t, "gofuse", native(t, homeDir(t), nil).dir)
}

func goFuseSuite(t *testing.T, dir string) {
	without := map[string]bool{
		"FcntlFlockLocksFile": true, // wants a process's own POSIX lock to be in its way
		"XAttrLarge":          true, // is about the file system below
	}
	for name, run := range posixtest.All {
		if without[name] {
			continue
		}
		t.Run(name, func(t *testing.T) {
			sub := filepath.Join(dir, name)
			if err := os.Mkdir(sub, 0o777); err != nil {
				t.Fatal(err)
			}
			run(t, sub)
		})
	}
}
