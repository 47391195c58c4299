package testenv

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// goneLimit is how long what is ending may take to be gone. Generous: the
// machine may be loaded.
const goneLimit = 10 * time.Second

// Leaks fails the test if, 10 s after its end, there is a mount, a process, a
// socket or a temporary directory of this test process's that was not there
// when Leaks was called.
func Leaks(t testing.TB) {
	t.Helper()
	if state.tmp == "" {
		t.Fatal("the package's TestMain does not call testenv.Main")
	}
	before := leftovers(state.tmp)
	t.Cleanup(func() {
		err := waitGone(func() []string {
			return slices.DeleteFunc(leftovers(state.tmp), func(s string) bool { return slices.Contains(before, s) })
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// waitGone waits until list is empty, and at the limit names what is in it.
func waitGone(list func() []string) error {
	deadline := time.Now().Add(goneLimit)
	for {
		left := list()
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("left behind after %v:\n\t%s", goneLimit, strings.Join(left, "\n\t"))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// leftovers names all that belongs to the directory tmp: processes whose
// program lies in it, mounts and sockets in it, and rexec's own temporary
// directories in it.
func leftovers(tmp string) []string {
	left := describe(processesOf(tmp))
	left = append(left, fields("/proc/self/mountinfo", 4, tmp, "mount")...)
	left = append(left, fields("/proc/net/unix", 7, tmp, "socket")...)
	dirs, _ := filepath.Glob(filepath.Join(tmp, "rexec-*"))
	for _, d := range dirs {
		left = append(left, "directory "+d)
	}
	return left
}

// fields lists the lines of a /proc table whose field n is a path below dir.
func fields(table string, n int, dir, what string) []string {
	data, err := os.ReadFile(table)
	if err != nil {
		return []string{err.Error()}
	}
	var found []string
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if n < len(f) && strings.HasPrefix(f[n], dir+"/") {
			found = append(found, what+" "+f[n])
		}
	}
	return found
}

// processesOf lists the processes whose program lies below dir, zombies not
// among them.
func processesOf(dir string) []int {
	names, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return nil // the pattern is right
	}
	var pids []int
	for _, name := range names {
		exe, err := os.Readlink(name)
		if err != nil || !strings.HasPrefix(exe, dir+"/") {
			continue // it ended, or is a kernel thread
		}
		pid, err := strconv.Atoi(strings.Split(name, "/")[2])
		if err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

func describe(pids []int) []string {
	var all []string
	for _, pid := range pids {
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		args := strings.TrimSpace(strings.ReplaceAll(string(cmdline), "\x00", " "))
		all = append(all, fmt.Sprintf("process %d: %s", pid, args))
	}
	return all
}
