// Package record keeps one small file for each running job, so that
// administrators and users can list them without asking any process.
//
// Sessions write the files as their own user. Who reads them as somebody else
// must not believe them further than their owner may go: see [Record.Signal].
package record

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxRecord bounds a file, in bytes.
const maxRecord = 64 << 10

// Record is one running job.
type Record struct {
	ID      string    `json:"id"` // of the request, hexadecimal
	User    string    `json:"user"`
	UID     int       `json:"uid"` // the account here
	Account string    `json:"account,omitempty"`
	Home    string    `json:"home"`
	Sysid   string    `json:"sysid,omitempty"`
	Agent   int32     `json:"agent"` // number at home
	Inner   int32     `json:"inner"` // number in its session
	Init    int       `json:"init"`  // process here below which the session's jobs are
	Session int       `json:"session"`
	Started uint64    `json:"session_started"` // of the session, in clock ticks after boot
	Command string    `json:"command"`
	Cwd     string    `json:"cwd,omitempty"`
	Switch  []string  `json:"switch,omitempty"`
	Since   time.Time `json:"since"`

	file  string
	owner uint32
}

// Dir is where the sessions of one user keep their records.
type Dir string

// Own is the directory of a session that nobody else has made one for.
func Own() Dir {
	if run := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(run) {
		return Dir(filepath.Join(run, "rexec", "server"))
	}
	return Dir(filepath.Join(os.TempDir(), "rexec-"+strconv.Itoa(os.Getuid()), "server"))
}

// Make makes the directory, and refuses one that is someone else's.
func (d Dir) Make() error {
	for _, dir := range []string{filepath.Dir(string(d)), string(d)} {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	var st unix.Stat_t
	if err := unix.Lstat(string(d), &st); err != nil {
		return &os.PathError{Op: "lstat", Path: string(d), Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Getuid() || st.Mode&0o022 != 0 {
		return fmt.Errorf("%s is not a directory of this user alone", d)
	}
	return nil
}

func (d Dir) file(id string) string { return filepath.Join(string(d), id+".json") }

// Put writes a job's record.
func (d Dir) Put(r *Record) error {
	r.Session = os.Getpid()
	r.Started, _ = startTime(r.Session)
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(string(d), "new")
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	if err2 := tmp.Close(); err == nil {
		err = err2
	}
	if err == nil {
		err = os.Rename(tmp.Name(), d.file(r.ID))
	}
	if err != nil {
		os.Remove(tmp.Name())
	}
	return err
}

// Drop removes a job's record.
func (d Dir) Drop(id string) { os.Remove(d.file(id)) }

// List reads the records of several directories, oldest first, and removes
// those whose session has died.
func List(dirs []Dir) []*Record {
	var list []*Record
	for _, d := range dirs {
		files, _ := filepath.Glob(filepath.Join(string(d), "*.json"))
		for _, file := range files {
			r, err := read(file)
			if err != nil {
				continue
			}
			if at, err := startTime(r.Session); err != nil || at != r.Started {
				os.Remove(file)
				continue
			}
			list = append(list, r)
		}
	}
	slices.SortFunc(list, func(a, b *Record) int { return a.Since.Compare(b.Since) })
	return list
}

// Known gives the directories in which this process may find records: all of
// them for root, else its own.
func Known(shared string) []Dir {
	dirs := []Dir{Own()}
	patterns := []string{filepath.Join(shared, strconv.Itoa(os.Getuid()))}
	if os.Getuid() == 0 {
		patterns = []string{filepath.Join(shared, "*"), "/run/user/*/rexec/server", filepath.Join(os.TempDir(), "rexec-*", "server")}
	}
	for _, p := range patterns {
		found, _ := filepath.Glob(p)
		for _, f := range found {
			if !slices.Contains(dirs, Dir(f)) {
				dirs = append(dirs, Dir(f))
			}
		}
	}
	return dirs
}

func read(file string) (*Record, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() || info.Size() > maxRecord {
		return nil, fmt.Errorf("%s is no record", file)
	}
	r := &Record{file: file, owner: st.Uid}
	if err := json.NewDecoder(f).Decode(r); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if r.owner != 0 {
		r.UID = int(r.owner)
	}
	return r, nil
}

// Signal sends a signal to the job's command. The record is its owner's word:
// only a process of that owner is signalled.
func (r *Record) Signal(sig syscall.Signal) error {
	pid := Processes().Find(r)
	if pid == 0 {
		return fmt.Errorf("job %s: its process is not found: %w", r.ID, syscall.ESRCH)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err == nil {
		defer unix.Close(fd)
		// The number may have changed hands before the descriptor was there.
		if Processes().Find(r) != pid {
			err = syscall.ESRCH
		} else {
			err = unix.PidfdSendSignal(fd, sig, nil, 0)
		}
	}
	if err != nil {
		return fmt.Errorf("job %s: process %d: %w", r.ID, pid, err)
	}
	return nil
}

// process is what /proc/PID/status tells.
type process struct {
	parent int
	uid    uint32
	inner  int32 // number in its own PID namespace; 0: that is this one
}

// Table is the processes of this machine at a moment.
type Table map[int]process

// Processes reads the table.
func Processes() Table {
	t := make(Table)
	files, _ := filepath.Glob("/proc/[0-9]*/status")
	for _, file := range files {
		if data, err := os.ReadFile(file); err == nil {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			t[pid] = parseStatus(string(data))
		}
	}
	return t
}

func parseStatus(text string) (p process) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		n, _ := strconv.ParseUint(f[1], 10, 32)
		switch f[0] {
		case "PPid:":
			p.parent = int(n)
		case "Uid:":
			p.uid = uint32(n)
		case "NSpid:":
			if len(f) > 2 {
				n, _ := strconv.ParseInt(f[len(f)-1], 10, 32)
				p.inner = int32(n)
			}
		}
	}
	return p
}

// Find gives the number here of a job's command, 0 if there is none.
func (t Table) Find(r *Record) int {
	for pid, p := range t {
		if p.inner != 0 && p.inner == r.Inner && (r.owner == 0 || p.uid == r.owner) && t.below(pid, r.Init) {
			return pid
		}
	}
	return 0
}

// below says whether a process descends from another.
func (t Table) below(pid, ancestor int) bool {
	for range 1000 {
		p, ok := t[pid]
		if !ok || ancestor <= 1 {
			return false
		}
		if p.parent == ancestor {
			return true
		}
		pid = p.parent
	}
	return false
}

// startTime is when a process began, in clock ticks after boot.
func startTime(pid int) (uint64, error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	// The name, in parentheses, may hold anything.
	_, rest, _ := strings.Cut(string(data[strings.LastIndexByte(string(data), ')')+1:]), " ")
	f := strings.Fields(rest)
	if len(f) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat is short", pid)
	}
	return strconv.ParseUint(f[19], 10, 64)
}
