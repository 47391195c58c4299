package home

import (
	"os"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// holders finds out who else has a pipe or socket. All who ask while a search
// through /proc goes on share the next one: many launches at once would
// otherwise cost as many searches, each through all of them.
type holders struct {
	mu        sync.Mutex
	waiting   []*query
	searching bool
}

// query asks for one object, by its link in /proc/PID/fd.
type query struct {
	link   string
	except int32
	found  bool
	done   chan struct{}
}

// otherReader says whether a process other than this one and except has the
// pipe or socket that fd refers to open for reading. Only processes of the
// same user are looked at: a holder can only have come by inheritance or by
// choice.
//
// It looks at /proc/PID/fd, and so may wait for a process that is in execve:
// never call it where that process may wait for us.
func (h *holders) otherReader(fd int, except int32) bool {
	link, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return false
	}
	q := &query{link: link, except: except, done: make(chan struct{})}
	h.mu.Lock()
	h.waiting = append(h.waiting, q)
	if !h.searching {
		h.searching = true
		go h.search()
	}
	h.mu.Unlock()
	<-q.done
	return q.found
}

// search ends when nobody asks any more.
func (h *holders) search() {
	for {
		h.mu.Lock()
		list := h.waiting
		h.waiting = nil
		h.searching = len(list) > 0
		h.mu.Unlock()
		if len(list) == 0 {
			return
		}
		searchAll(list)
		for _, q := range list {
			close(q.done)
		}
	}
}

// searchAll answers queries by one look at each process.
func searchAll(list []*query) {
	open := make(map[string][]*query, len(list))
	for _, q := range list {
		open[q.link] = append(open[q.link], q)
	}
	proc, err := os.Open("/proc")
	if err != nil {
		return
	}
	defer proc.Close()
	names, _ := proc.Readdirnames(-1)
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || pid == os.Getpid() || len(open) == 0 {
			continue
		}
		readers(pid, open)
	}
}

// readers answers the queries for what a process of ours has open for reading:
// /proc/PID/fd shows that as permission.
func readers(pid int, open map[string][]*query) {
	path := "/proc/" + strconv.Itoa(pid)
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil || int(st.Uid) != os.Geteuid() {
		return
	}
	dir, err := os.Open(path + "/fd")
	if err != nil {
		return
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	link := make([]byte, 64)
	at := int(dir.Fd())
	for _, name := range names {
		n, err := unix.Readlinkat(at, name, link)
		if err != nil || open[string(link[:n])] == nil {
			continue
		}
		if unix.Fstatat(at, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&0o400 != 0 {
			found(string(link[:n]), int32(pid), open)
		}
	}
}

// found answers the queries for an object, but for those of the reader itself.
func found(link string, reader int32, open map[string][]*query) {
	rest := slices.DeleteFunc(open[link], func(q *query) bool {
		q.found = q.except != reader
		return q.found
	})
	if open[link] = rest; len(rest) == 0 {
		delete(open, link)
	}
}
