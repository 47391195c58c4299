package home

import (
	"bytes"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// otherReader says whether a process that is none of except has the pipe or
// socket that fd refers to open for reading. Only processes of the same user
// are looked at: a holder can only have come by inheritance or by choice.
//
// It looks at /proc/PID/fd, and so may wait for a process that is in execve:
// never call it where that process may wait for us.
func otherReader(fd int, except ...int32) bool {
	link := make([]byte, 64)
	n, err := unix.Readlink("/proc/self/fd/"+strconv.Itoa(fd), link)
	if err != nil || n == len(link) {
		return false
	}
	proc, err := os.Open("/proc")
	if err != nil {
		return false
	}
	defer proc.Close()
	names, _ := proc.Readdirnames(-1)
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || pid == os.Getpid() || excepted(int32(pid), except) {
			continue
		}
		if readsFrom(pid, link[:n]) {
			return true
		}
	}
	return false
}

func excepted(pid int32, list []int32) bool {
	for _, p := range list {
		if p == pid {
			return true
		}
	}
	return false
}

// readsFrom says whether a process of ours has a descriptor of the object
// that want names, open for reading: /proc/PID/fd shows that as permission.
func readsFrom(pid int, want []byte) bool {
	path := "/proc/" + strconv.Itoa(pid)
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil || int(st.Uid) != os.Geteuid() {
		return false
	}
	dir, err := os.Open(path + "/fd")
	if err != nil {
		return false
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	link := make([]byte, 64)
	at := int(dir.Fd())
	for _, name := range names {
		n, err := unix.Readlinkat(at, name, link)
		if err != nil || !bytes.Equal(link[:n], want) {
			continue
		}
		if unix.Fstatat(at, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&0o400 != 0 {
			return true
		}
	}
	return false
}
