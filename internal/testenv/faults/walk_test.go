package faults

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// playWalker is a job that tries to walk out of its view: up from the
// directory that it is in, from each directory descriptor that it has, from
// what /proc knows of every process, and by symbolic links. It prints what it
// found that is not the view's root, and "walked" with the number of walks.
func playWalker(args []string) int {
	if len(args) > 0 && args[0] == "sleep" {
		select {}
	}
	w := walker{}
	if err := w.begin(); err != nil {
		fmt.Println("root:", err)
		return 1
	}
	w.up("cwd", unix.AT_FDCWD)
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, e := range fds {
		var fd int
		_, _ = fmt.Sscan(e.Name(), &fd)
		w.up("descriptor "+e.Name(), fd)
	}
	for _, pattern := range []string{
		"/proc/*/root", "/proc/*/cwd", "/proc/*/fd/*", "/proc/*/task/*/root", "/proc/self/root", "/proc/thread-self/cwd",
		"/dev", "/dev/pts", "/dev/fd", "/sys", "/proc", "links/*",
	} {
		names, _ := filepath.Glob(pattern)
		for _, name := range names {
			w.from(name)
		}
	}
	fmt.Println("walked", w.walks)
	return 0
}

type walker struct {
	root  unix.Stat_t
	walks int
}

const fuseMagic = 0x65735546

func (w *walker) begin() error {
	var fs unix.Statfs_t
	if err := unix.Statfs("/", &fs); err != nil {
		return err
	}
	if fs.Type != fuseMagic {
		return fmt.Errorf("is no view: type %x", fs.Type)
	}
	return unix.Stat("/", &w.root)
}

// from opens a path, which may be refused, and walks up from there.
func (w *walker) from(name string) {
	fd, err := unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	w.up(name, fd)
}

// up follows ".." to the end, which must be the view's root.
func (w *walker) up(what string, fd int) {
	at, err := unix.Openat(fd, ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return // no directory
	}
	defer func() { unix.Close(at) }()
	w.walks++
	for range 200 {
		var here, above unix.Stat_t
		up, err := unix.Openat(at, "..", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			fmt.Printf("%s: ..: %v\n", what, err)
			return
		}
		_ = unix.Fstat(at, &here)
		_ = unix.Fstat(up, &above)
		unix.Close(at)
		at = up
		if here.Dev == above.Dev && here.Ino == above.Ino {
			w.top(what, at, &above)
			return
		}
	}
	fmt.Println(what+":", "no end")
}

func (w *walker) top(what string, fd int, st *unix.Stat_t) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil || fs.Type != fuseMagic || st.Dev != w.root.Dev || st.Ino != w.root.Ino {
		fmt.Printf("%s: leads to device %d inode %d of type %x: %v\n", what, st.Dev, st.Ino, fs.Type, err)
	}
}

// TestWalkUp has a job walk out of its view wherever it can.
func TestWalkUp(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	links := filepath.Join(r.Home, "links")
	if err := os.Mkdir(links, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{
		"up": "../../../../../../../../../../..", "root": "/", "proc": "/proc/self/root", "one": "/proc/1/root",
		"switched": "/usr/share/..", "cwd": "/proc/self/cwd/..",
	} {
		if err := os.Symlink(target, filepath.Join(links, name)); err != nil {
			t.Fatal(err)
		}
	}
	for list, cwds := range map[string][]string{
		"": {r.Home, "/usr/share"}, "/usr:/usr/share:/etc": {r.Home, "/usr/share", "/", "/proc/self", "/dev"},
	} {
		for _, cwd := range cwds {
			var dirs []*os.File
			for _, name := range []string{"/", r.Home, "/usr/share", "/tmp", "/proc", "/etc"} {
				f, err := os.Open(name)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				dirs = append(dirs, f)
			}
			cmd := r.Command("rexec", "loopback", "--", r.self, "walk")
			cmd.Env = r.with("SWITCH=" + list)
			cmd.Dir = cwd
			cmd.ExtraFiles = dirs
			res := r.run(cmd)
			var walks int
			_, err := fmt.Sscanf(res.stdout, "walked %d\n", &walks)
			if res.status != 0 || err != nil || walks < 4 || strings.Count(res.stdout, "\n") != 1 {
				t.Errorf("from %s with SWITCH=%s: %v", cwd, list, res)
			}
		}
	}
}

// TestTwoLists runs two jobs with different lists at once in one session,
// whose server has other data in a directory.
func TestTwoLists(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, side := range []string{"home", "server"} {
		dir := filepath.Join(r.Dir, side+"data")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "who"), []byte(side+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	data := filepath.Join(r.Dir, "homedata")
	rexecd := r.script("elsewhere", `exec unshare -m --propagation private sh -c 'mount --bind "$0" "$1" && shift && exec "$@"' `+
		filepath.Join(r.Dir, "serverdata")+" "+data+" "+r.Rexecd+` "$@"`)
	// Each goes on only when the other is in its view too.
	text := `cat ` + data + `/who; touch $ME; until [ -e $YOU ]; do sleep 0.05; done; cat ` + data + `/who; touch $ME.end
until [ -e $YOU.end ]; do sleep 0.05; done`
	start := func(me, you, list string) *running {
		cmd := r.Command("rexec", "loopback", text)
		cmd.Env = r.with("REXEC_REXECD="+rexecd, "ME="+me, "YOU="+you, "SWITCH="+list)
		return r.start(cmd)
	}
	a := start("a", "b", data)
	b := start("b", "a", "")
	c := start("a", "b", "/nothing/there:"+data+"/")
	r.until("both jobs", patience, func() bool { return r.pidOf("init") != 0 })
	for _, x := range []struct {
		p    *running
		want string
	}{{a, "server\nserver\n"}, {b, "home\nhome\n"}, {c, "server\nserver\n"}} {
		if res := x.p.wait(); res.status != 0 || res.stdout != x.want {
			t.Errorf("want %q: %v", x.want, res)
		}
	}
	inits := r.left("init")
	if len(inits) != 1 {
		t.Errorf("not one session: %s", slices.Sorted(slices.Values(inits)))
	}
}
