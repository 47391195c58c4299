// Package daemon is rexecd: it listens, says who may have a session, starts
// sessions as the right user, and ends them.
//
// `rexecd serve` (see [Serve]) starts one `rexecd session` for each
// connection; `rexecd stdio` is such a session itself ([Stdio]).
package daemon

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"rexec/internal/daemon/config"
	"rexec/internal/daemon/denied"
	"rexec/internal/daemon/record"
	"rexec/internal/daemon/session"
	"rexec/internal/transport"
	"rexec/rer"
)

// Shared is where the root daemon keeps its state: below it "users/UID" for
// the records of each user's jobs, and the file that says that no new jobs
// are taken.
const Shared = "/run/rexec"

// Setting is what all ways to a session have in common.
type Setting struct {
	Program    string // path of rexecd
	Build      string // version
	ConfigFile string
	Records    record.Dir // empty: the session's own
	Logf       func(format string, args ...any)
}

// Stdio is a session on standard input and output.
func Stdio(ctx context.Context, set Setting) error {
	rw, err := transport.Stdio()
	if err != nil {
		return err
	}
	return set.session(ctx, rw)
}

// Inherited is a session on the connection that is descriptor fd.
func Inherited(ctx context.Context, set Setting, fd int) error {
	unix.CloseOnExec(fd)
	rw, err := connection(fd)
	if err != nil {
		return err
	}
	return set.session(ctx, rw)
}

// session serves a link to its end.
func (set Setting) session(ctx context.Context, rw io.ReadWriteCloser) error {
	// A native origin applies each request's own umask, and a file that
	// grows too long is the job's fault and not the session's.
	unix.Umask(0)
	signal.Ignore(unix.SIGXFSZ, unix.SIGPIPE)
	cfg, err := config.Read(set.ConfigFile)
	if err != nil {
		no := &rer.Refused{Reason: rer.ReasonInternal, Text: "the server's configuration is broken: " + err.Error(),
			Hint: "on the server: rexecd check-config"}
		return session.Refuse(rw, session.Config{Build: set.Build, Logf: set.Logf}, no)
	}
	books := set.books()
	return session.Serve(ctx, rw, session.Config{
		Program:   set.Program,
		Build:     set.Build,
		Forbidden: denied.Follow(cfg.Disallowed, set.Logf).Current,
		Admit:     func(r *rer.Request) *rer.Refused { return admit(&cfg, r) },
		Note:      books.note,
		Logf:      set.Logf,
	})
}

// admit says whether a session may take one more job.
func admit(cfg *config.Config, r *rer.Request) *rer.Refused {
	if no := cfg.AdmitHome(r.Hostname, r.Sysid); no != nil {
		return no
	}
	if why, drained := Drained(); drained {
		text := "the server takes no new jobs"
		if why != "" {
			text += ": " + why
		}
		return &rer.Refused{Reason: rer.ReasonWithdrawn, Text: text}
	}
	return nil
}

// books are the records and the log of jobs.
type books struct {
	dir  record.Dir
	logf func(format string, args ...any)
}

func (set Setting) books() *books {
	dir := set.Records
	if dir == "" {
		dir = record.Own()
	}
	if err := dir.Make(); err != nil {
		set.Logf("no records of jobs: %v", err)
		dir = ""
	}
	return &books{dir, set.Logf}
}

// note writes down that a job began or ended.
func (b *books) note(j session.Job) {
	r := j.Request
	id := hex.EncodeToString(r.ID[:])
	if j.Status != nil {
		if b.dir != "" {
			b.dir.Drop(id)
		}
		u := j.Status.Usage
		b.logf("job %s ended: user=%q account=%q home=%q code=%d signal=%d user_usec=%d sys_usec=%d maxrss_kib=%d",
			id[:12], r.User, r.Account, r.Hostname, j.Status.Code, j.Status.Signal, u.UserUsec, u.SysUsec, u.MaxRSS)
		return
	}
	command := printable(r)
	b.logf("job %s started: user=%q account=%q home=%q switch=%q command=%q",
		id[:12], r.User, r.Account, r.Hostname, strings.Join(j.Switch, ":"), command)
	if b.dir == "" {
		return
	}
	err := b.dir.Put(&record.Record{
		ID: id, User: r.User, UID: os.Getuid(), Account: r.Account, Home: r.Hostname, Sysid: r.Sysid,
		Agent: r.Pid, Inner: j.Pid, Init: j.Init, Command: command, Cwd: string(r.CwdPath), Switch: j.Switch, Since: j.Since,
	})
	if err != nil {
		b.logf("record of job %s: %v", id[:12], err)
	}
}

// printable is the command for people, at most 200 bytes or so.
func printable(r *rer.Request) string {
	var text string
	switch {
	case r.Login:
		text = "login shell"
	case r.Shell != nil:
		text = string(r.Shell)
	default:
		for i, a := range r.Argv {
			if i > 0 {
				text += " "
			}
			text += string(a)
			if len(text) > 200 {
				break
			}
		}
	}
	if len(text) > 200 {
		text = text[:200] + "..."
	}
	return strings.ToValidUTF8(text, "?")
}

// stateFile says that no new jobs are taken; it holds the reason.
func stateFile() string {
	if os.Geteuid() == 0 {
		return filepath.Join(Shared, "drained")
	}
	return filepath.Join(filepath.Dir(string(record.Own())), "drained")
}

// Drained says whether no new jobs are taken on this machine or by this user,
// and why.
func Drained() (why string, drained bool) {
	for _, file := range []string{filepath.Join(Shared, "drained"), stateFile()} {
		if b, err := os.ReadFile(file); err == nil {
			line, _, _ := strings.Cut(strings.ToValidUTF8(string(b[:min(len(b), 200)]), "?"), "\n")
			return strings.TrimSpace(line), true
		}
	}
	return "", false
}

// Drain has no new jobs taken from now on: by the whole machine if root says
// so, else by this user's own sessions. Running ones go on.
func Drain(why string) error {
	file := stateFile()
	if err := os.MkdirAll(filepath.Dir(file), dirMode()); err != nil {
		return err
	}
	return os.WriteFile(file, []byte(why+"\n"), 0o644)
}

// Resume takes jobs again.
func Resume() error {
	err := os.Remove(stateFile())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

func dirMode() os.FileMode {
	if os.Geteuid() == 0 {
		return 0o755
	}
	return 0o700
}

// userDir makes the directory for the records of a user's jobs.
func userDir(uid, gid int) (record.Dir, error) {
	dir := filepath.Join(Shared, "users", strconv.Itoa(uid))
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, syscall.EEXIST) {
		return "", err
	}
	return record.Dir(dir), os.Lchown(dir, uid, gid)
}

// Records are the directories with the records that this process may see.
func Records() []record.Dir { return record.Known(filepath.Join(Shared, "users")) }
