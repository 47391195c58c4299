package session

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"rexec/disallow"
	"rexec/fsview"
	"rexec/fsview/fsproto"
	"rexec/fsview/mounts"
	"rexec/internal/launch"
	"rexec/rer"
)

// view is one view of the session, shared by the jobs with the same loan.
type view struct {
	loan  *loan
	ready chan struct{} // closed when the rest is set
	err   error
	id    launch.View
	tree  *fsview.View     // set earlier than ready is closed, under Session.mu: recalls may come
	early []fsproto.Recall // that came before tree was set; Session.mu
	list  []fsMount
	close []func()
}

// fsMount is one FUSE mount of a view.
type fsMount struct {
	fsview.Mount
	dev         uint64 // of home's file system; 0: not home's
	source, typ string
}

// view gives the view of a loan, made by the first job that needs it.
func (s *Session) view(l *loan) (*view, error) {
	in, err := s.waitInit()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	v := s.views[l.key()]
	first := v == nil
	if first && s.ending {
		s.mu.Unlock()
		return nil, syscall.ENOTCONN
	}
	if first {
		v = &view{loan: l, ready: make(chan struct{})}
		s.views[l.key()] = v
	}
	s.mu.Unlock()
	if !first {
		<-v.ready
		return v, v.err
	}
	v.err = s.build(in, v)
	if v.err != nil {
		// The next job tries again.
		s.mu.Lock()
		delete(s.views, l.key())
		s.mu.Unlock()
		v.shut()
	}
	close(v.ready)
	return v, v.err
}

func (v *view) shut() {
	for _, f := range slices.Backward(v.close) {
		f()
	}
}

func (s *Session) closeViews() {
	s.mu.Lock()
	views := s.views
	s.views = nil
	s.mu.Unlock()
	for _, v := range views {
		<-v.ready
		v.shut()
	}
}

// build makes a view: what lies where, the server of its FUSE mounts, and then
// the mounts themselves, by init.
func (s *Session) build(in *launch.Init, v *view) error {
	cfg := fsview.Config{
		OneID: !s.privileged(), UID: s.home.UID, GID: s.home.GID, Logf: s.cfg.Logf,
	}
	spec := mounts.Spec{Binds: v.loan.binds, DefaultPermissions: s.privileged(), KernelReadOnly: s.privileged()}
	s.homeMounts(v)
	if err := s.servedMounts(v, &cfg); err != nil {
		return err
	}
	slices.SortStableFunc(v.list, func(a, b fsMount) int { return byComponents(a.Path, b.Path) })
	for _, m := range v.list {
		cfg.Mounts = append(cfg.Mounts, m.Mount)
		spec.FUSE = append(spec.FUSE, mounts.FUSE{Path: m.Path, Source: m.source, Type: m.typ, ReadOnly: m.ReadOnly})
	}
	points(v.loan, &cfg, &spec)
	tree, err := fsview.New(cfg)
	if err != nil {
		return err
	}
	v.close = append(v.close, func() { tree.Close() })
	s.mu.Lock()
	v.tree = tree
	early := v.early
	v.early = nil
	s.mu.Unlock()
	tree.Recall(s.files, early)
	v.id, err = in.BuildView(spec, tree.Serve)
	return err
}

// homeMounts puts home's file systems into a view, as far as they are seen.
func (s *Session) homeMounts(v *view) {
	for _, m := range s.home.Mounts {
		if disallow.Match(kernelBound, m.Path) || v.loan.ours(m.Path) {
			continue
		}
		v.list = append(v.list, fsMount{
			Mount:  fsview.Mount{Path: m.Path, Origin: s.files, Root: fsproto.Node(m.Root), ReadOnly: m.ReadOnly},
			dev:    m.Dev,
			source: m.Source, typ: m.Type,
		})
	}
}

// servedMounts puts the server's own directories that hold forbidden names
// into a view, and home's over those names.
func (s *Session) servedMounts(v *view, cfg *fsview.Config) error {
	for _, prefix := range v.loan.served {
		own, err := openServed(prefix, v.loan.forbidden)
		if err != nil {
			return fmt.Errorf("serve %s: %w", prefix, err)
		}
		v.close = append(v.close, own.close)
		v.list = append(v.list, fsMount{
			Mount:  fsview.Mount{Path: prefix, Origin: own.origin, Root: own.root},
			source: prefix, typ: "rexec",
		})
	}
	for _, name := range v.loan.inside {
		if slices.ContainsFunc(v.list, func(m fsMount) bool { return m.Path == name }) {
			continue
		}
		node, dev, dir, err := s.walk(name)
		if err != nil {
			cfg.Absent = append(cfg.Absent, name)
			continue
		}
		if !dir {
			cfg.Points = append(cfg.Points, fsview.Point{Path: name})
		}
		v.list = append(v.list, fsMount{
			Mount:  fsview.Mount{Path: name, Origin: s.files, Root: node},
			dev:    dev,
			source: name, typ: "rexec",
		})
	}
	return nil
}

// walk finds home's directory or file of a name, in which file system it is
// and whether it is a directory. Symbolic links are not followed, and nothing
// else can be mounted on: ENOENT.
func (s *Session) walk(name string) (node fsproto.Node, dev uint64, dir bool, err error) {
	var from rer.Mount
	for _, m := range s.home.Mounts {
		if disallow.Below(m.Path, name) && len(m.Path) > len(from.Path) {
			from = m
		}
	}
	node, dir = fsproto.Node(from.Root), true
	for _, c := range strings.Split(strings.Trim(strings.TrimPrefix(name, from.Path), "/"), "/") {
		if c == "" {
			continue
		}
		e, err := s.files.Lookup(context.Background(), node, c)
		if err != nil {
			return 0, 0, false, err
		}
		kind := e.Attr.Mode & unix.S_IFMT
		if e.Node == 0 || kind != unix.S_IFDIR && kind != unix.S_IFREG {
			return 0, 0, false, syscall.ENOENT
		}
		node, dir = e.Node, kind == unix.S_IFDIR
	}
	return node, from.Dev, dir, nil
}

// points lists what else lies on the FUSE mounts.
func points(l *loan, cfg *fsview.Config, spec *mounts.Spec) {
	for _, name := range l.binds {
		cfg.Points = append(cfg.Points, fsview.Point{Path: name, Dir: l.points[name]})
	}
	for _, name := range kernelBound {
		cfg.Points = append(cfg.Points, fsview.Point{Path: name, Dir: true})
	}
	if l.ours(resolvConf) {
		return
	}
	if data, err := os.ReadFile(resolvConf); err == nil {
		cfg.Points = append(cfg.Points, fsview.Point{Path: resolvConf})
		spec.Files = append(spec.Files, mounts.File{Path: resolvConf, Data: data})
	}
}

const resolvConf = "/etc/resolv.conf"

// locate finds the FUSE mount that shows home's file system dev, of several
// the one nearest above name.
func (v *view) locate(dev uint64, name string) (int, bool) {
	best, found := 0, false
	for i, m := range v.list {
		if m.dev == 0 || m.dev != dev {
			continue
		}
		if !found || disallow.Below(m.Path, name) && len(m.Path) >= len(v.list[best].Path) {
			best, found = i, true
		}
	}
	return best, found
}

// place says where init finds an object of home's: its present name, where
// that shows it, else a name that only the view knows.
type place struct {
	path  []byte
	ino   uint64
	other []byte
	mount int
	node  fsproto.Node
}

// place finds the object of a handle. It hands the node out once more, for as
// long as the session lives.
func (s *Session) place(v *view, h rer.Handle, name []byte) (place, error) {
	node := fsproto.Node(h)
	e, err := s.files.Ref(context.Background(), node)
	if err != nil {
		return place{}, err
	}
	mount, ok := v.locate(e.Attr.Dev, string(name))
	if !ok {
		return place{}, fmt.Errorf("home's file system %d is not in the view: %w", e.Attr.Dev, syscall.EXDEV)
	}
	p := place{path: name, ino: e.Attr.Ino, other: []byte(v.tree.Path(mount, node)), mount: mount, node: node}
	if !isClean(string(name)) || v.loan.ours(string(name)) {
		p.path = p.other
	}
	return p, nil
}

// noView says why there is no view, with what mends it.
func noView(id [16]byte, err error) *rer.Refused {
	no := &rer.Refused{ID: id, Reason: rer.ReasonInternal, Text: "the server could not make the job's view: " + err.Error()}
	errno := fsproto.Errno(err)
	no.Errno = int(errno)
	if _, statErr := os.Stat("/dev/fuse"); errors.Is(statErr, os.ErrNotExist) {
		no.Reason, no.Hint = rer.ReasonNoFUSE, "as root there: modprobe fuse && mknod -m 666 /dev/fuse c 10 229"
		return no
	}
	if unix.Access("/dev/fuse", unix.R_OK|unix.W_OK) != nil {
		no.Reason, no.Hint = rer.ReasonNoFUSE, "as root there: chmod 666 /dev/fuse"
		return no
	}
	if hint := namespaceHint(); hint != "" && (errno == syscall.EPERM || errno == syscall.EACCES || errno == syscall.ENOSPC) {
		no.Reason, no.Hint = rer.ReasonNoFUSE, hint
	}
	return no
}

// namespaceHint says what keeps users from making user namespaces, if
// something does.
func namespaceHint() string {
	for file, bad := range map[string]string{
		"/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1",
		"/proc/sys/kernel/unprivileged_userns_clone":             "0",
		"/proc/sys/user/max_user_namespaces":                     "0",
	} {
		b, err := os.ReadFile(file)
		if err == nil && strings.TrimSpace(string(b)) == bad {
			good := map[string]string{"1": "0", "0": "1"}[bad]
			if filepath.Base(file) == "max_user_namespaces" {
				good = "65536"
			}
			return "as root there: sysctl " + strings.ReplaceAll(strings.TrimPrefix(file, "/proc/sys/"), "/", ".") + "=" + good
		}
	}
	return ""
}
