package fsview

import (
	"os"
	"path/filepath"
	"sync"
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

func TestPosixSuite(t *testing.T) {
	posix.Run(t, native(t, homeDir(t), nil).dir)
}

func TestPosixSuiteOneID(t *testing.T) {
	posix.Run(t, native(t, homeDir(t), func(c *Config) { c.OneID = true }).dir, "readdir-seek", "readdir")
}

func TestGoFusePosix(t *testing.T) {
	without := map[string]bool{
		"FcntlFlockLocksFile": true, // wants a process's own POSIX lock to be in its way
		"XAttrLarge":          true, // is about the file system below
	}
	for name, run := range posixtest.All {
		if without[name] {
			continue
		}
		t.Run(name, func(t *testing.T) {
			dir := native(t, homeDir(t), nil).dir
			sub := filepath.Join(dir, "own")
			if err := os.Mkdir(sub, 0o777); err != nil {
				t.Fatal(err)
			}
			run(t, sub)
		})
	}
}
