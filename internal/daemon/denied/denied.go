// Package denied keeps the administrator's list of paths that are never lent:
// it follows the file for a session, and edits it for the administrator.
//
// The file is replaced by rename, never written in place, so that a reader
// sees the old list or the new one. Who edits holds a lock on a file beside
// it. A list with an error is refused whole and the one before holds; where
// there is none before, nothing is lent at all.
package denied

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"syscall"

	"rexec/disallow"
)

// DefaultFile is where the list is.
const DefaultFile = "/etc/rexec/disallowed"

// Read reads a list. A file that does not exist is an empty list. What is
// wrong in a line comes as "FILE: line N: ...".
func Read(file string) ([]string, error) {
	data, err := read(file)
	if err != nil {
		return nil, err
	}
	list, err := disallow.Parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return list, nil
}

// read gives the bytes of a list, no more than a list may have by much.
func read(file string) ([]byte, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, &fs.PathError{Op: "read", Path: file, Err: syscall.EINVAL}
	case info.Size() > disallow.MaxFile:
		return nil, fmt.Errorf("%s: %w", file, &disallow.SyntaxError{Line: 1, Text: "list too long"})
	}
	data := make([]byte, info.Size()+1)
	n, err := f.ReadAt(data, 0)
	if n == len(data) {
		return nil, fmt.Errorf("%s: grew while it was read", file)
	}
	if n < int(info.Size()) {
		return nil, err
	}
	return data[:n], nil
}

// stamp tells versions of a file apart.
type stamp struct {
	dev, ino    uint64
	size        int64
	mtim, ctime syscall.Timespec
	there       bool
}

func stampOf(file string) (stamp, error) {
	var st syscall.Stat_t
	err := syscall.Stat(file, &st)
	if err == syscall.ENOENT {
		return stamp{}, nil
	}
	return stamp{st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim, true}, err
}

// Follower gives the list as it is now.
type Follower struct {
	file string
	logf func(format string, args ...any)

	mu   sync.Mutex
	seen stamp
	have bool // list holds
	list []string
	told string // the fault that was logged
}

// Follow makes a Follower of file. Faults go to logf, each once.
func Follow(file string, logf func(format string, args ...any)) *Follower {
	return &Follower{file: file, logf: logf}
}

// Current reads the file if it has changed and gives the list.
func (f *Follower) Current() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	now, err := stampOf(f.file)
	if err == nil && f.have && now == f.seen {
		return f.list
	}
	var list []string
	if err == nil {
		list, err = Read(f.file)
	}
	if err != nil {
		f.fault(err)
		if !f.have {
			return []string{"/"}
		}
		return f.list
	}
	f.seen, f.list, f.have, f.told = now, list, true, ""
	return list
}

func (f *Follower) fault(err error) {
	text := err.Error()
	if text == f.told {
		return
	}
	f.told = text
	if f.have {
		f.logf("%s; the list before it holds", text)
	} else {
		f.logf("%s; nothing is lent", text)
	}
}
