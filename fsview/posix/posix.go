// Package posix is a suite of file tests in plain system calls. It runs on any
// directory: a bare one shows that the tests are right, one on a FUSE mount
// that the mount behaves as the file system below it would.
//
// The suite tests what a program may rely on, as root and as any user, where
// several user ids exist and where only one does. It leaves nothing behind.
package posix

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// test is one case; dir is a new empty directory for it alone.
type test struct {
	name string
	run  func(t *testing.T, dir string)
}

// Run runs the suite in new directories below dir, without the cases named in
// without (for mounts that cannot have some feature).
func Run(t *testing.T, dir string, without ...string) {
	t.Helper()
	for _, name := range without {
		if !slices.ContainsFunc(tests, func(c test) bool { return c.name == name }) {
			t.Fatalf("no case is called %q", name)
		}
	}
	for _, c := range tests {
		if slices.Contains(without, c.name) {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			own := filepath.Join(dir, c.name)
			if err := os.Mkdir(own, 0o755); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := os.RemoveAll(own); err != nil {
					t.Error(err)
				}
			}()
			c.run(t, own)
		})
	}
}

var tests = []test{
	{"create", testCreate},
	{"exclusive", testExclusive},
	{"exclusive-race", testExclusiveRace},
	{"umask", testUmask},
	{"read-write", testReadWrite},
	{"large-write", testLargeWrite},
	{"append", testAppend},
	{"append-two", testAppendTwo},
	{"append-toggle", testAppendToggle},
	{"truncate", testTruncate},
	{"open-truncate", testOpenTruncate},
	{"access-mode", testAccessMode},
	{"read-only-create", testReadOnlyCreate},
	{"sparse", testSparse},
	{"seek-hole", testSeekHole},
	{"fallocate", testFallocate},
	{"copy-range", testCopyRange},
	{"mmap", testMmap},
	{"unlink-open", testUnlinkOpen},
	{"unlink-open-attributes", testUnlinkOpenAttributes},
	{"unlink-reopen", testUnlinkReopen},
	{"tmpfile", testTmpfile},
	{"link", testLink},
	{"link-errors", testLinkErrors},
	{"symlink", testSymlink},
	{"symlink-loop", testSymlinkLoop},
	{"symlink-attributes", testSymlinkAttributes},
	{"rename", testRename},
	{"rename-over", testRenameOver},
	{"rename-directory", testRenameDirectory},
	{"rename-flags", testRenameFlags},
	{"rename-open", testRenameOpen},
	{"mkdir-rmdir", testMkdirRmdir},
	{"removed-directory", testRemovedDirectory},
	{"names", testNames},
	{"long-path", testLongPath},
	{"readdir", testReaddir},
	{"readdir-seek", testReaddirSeek},
	{"readdir-types", testReaddirTypes},
	{"readdir-remove", testReaddirRemove},
	{"chmod", testChmod},
	{"chown", testChown},
	{"utimes", testUtimes},
	{"times-move", testTimesMove},
	{"stat-fields", testStatFields},
	{"access", testAccess},
	{"fifo", testFIFO},
	{"socket", testSocket},
	{"xattr", testXattr},
	{"statfs", testStatfs},
	{"fsync", testFsync},
	{"flock", testFlock},
	{"record-lock", testRecordLock},
	{"record-lock-close", testRecordLockClose},
	{"record-lock-wait", testRecordLockWait},
	{"ofd-lock", testOFDLock},
	{"many-writers", testManyWriters},
	{"exec", testExec},
}
