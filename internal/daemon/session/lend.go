package session

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"rexec/disallow"
)

// kernelBound are the directories that always are the server's, because they
// are its kernel's.
var kernelBound = []string{"/proc", "/dev", "/sys"}

// loan says which names of a view are the server's.
type loan struct {
	kept    []string // SWITCH without what the administrator forbids
	dropped []string // forbidden, or not there

	binds  []string        // bound into the view
	served []string        // shown through FUSE, because of what is inside
	inside []string        // forbidden names below served
	points map[string]bool // bound and served names; whether they are directories

	forbidden []string // the administrator's list, with what its links lead to
}

// newLoan compares a SWITCH list with the forbidden names and with the
// server's disk.
//
// A forbidden name counts as it is written and as what its links lead to, and
// so does a switched one.
func newLoan(asked, forbidden []string) *loan {
	forbidden = withTargets(forbidden)
	l := &loan{points: make(map[string]bool), forbidden: forbidden}
	l.kept, l.dropped = disallow.Filter(disallow.Clean(asked), forbidden)
	for _, prefix := range slices.Clone(l.kept) {
		if !disallow.Match(kernelBound, prefix) {
			l.add(prefix, forbidden)
		}
	}
	slices.SortFunc(l.binds, byComponents)
	slices.SortFunc(l.served, byComponents)
	l.binds = slices.DeleteFunc(l.binds, func(p string) bool { return l.bound(filepath.Dir(p)) })
	return l
}

// add lends one prefix.
func (l *loan) add(prefix string, forbidden []string) {
	info, err := os.Stat(prefix)
	var target string
	if err == nil {
		target, err = filepath.EvalSymlinks(prefix)
	}
	if err != nil {
		l.dropped = append(l.dropped, prefix)
		return
	}
	if disallow.Match(forbidden, target) {
		l.dropped = append(l.dropped, prefix)
		l.kept = slices.DeleteFunc(l.kept, func(p string) bool { return p == prefix })
		return
	}
	inside := disallow.Inside(prefix, forbidden)
	if target != prefix {
		for _, name := range disallow.Inside(target, forbidden) {
			inside = append(inside, filepath.Join(prefix, strings.TrimPrefix(name, target)))
		}
	}
	l.points[prefix] = info.IsDir()
	if prefix != "/" && len(inside) == 0 {
		l.binds = append(l.binds, prefix)
		return
	}
	l.served = append(l.served, prefix)
	l.inside = append(l.inside, inside...)
	if prefix == "/" {
		l.addRoot(forbidden)
	}
}

// addRoot binds what it can of a root that is lent whole. The root itself, its
// links and its files are served.
func (l *loan) addRoot(forbidden []string) {
	entries, err := os.ReadDir("/")
	if err != nil {
		return
	}
	for _, e := range entries {
		name := "/" + e.Name()
		if !e.IsDir() || disallow.Match(kernelBound, name) || disallow.Match(forbidden, name) ||
			len(disallow.Inside(name, forbidden)) > 0 {
			continue
		}
		l.points[name] = true
		l.binds = append(l.binds, name)
	}
}

// bound says whether name lies in a bound directory.
func (l *loan) bound(name string) bool { return disallow.Match(l.binds, name) }

// ours says whether name is the server's by SWITCH.
func (l *loan) ours(name string) bool {
	if l.bound(name) {
		return true
	}
	return disallow.Match(l.served, name) && !disallow.Match(l.inside, name)
}

// key tells loans apart: jobs with the same key share a view.
func (l *loan) key() string {
	return strings.Join(l.binds, ":") + "\x00" + strings.Join(l.served, ":") + "\x00" + strings.Join(l.inside, ":")
}

// withTargets adds to a list what its names lead to.
func withTargets(list []string) []string {
	all := slices.Clone(list)
	for _, name := range list {
		if target := resolve(name); target != name && !slices.Contains(all, target) {
			all = append(all, target)
		}
	}
	return all
}

// resolve follows the links in as much of name as exists.
func resolve(name string) string {
	for head, tail := name, ""; ; {
		if target, err := filepath.EvalSymlinks(head); err == nil {
			return filepath.Join(target, tail)
		}
		if head == "/" {
			return name
		}
		tail = filepath.Join(filepath.Base(head), tail)
		head = filepath.Dir(head)
	}
}

// byComponents orders paths so that parents come before their children.
func byComponents(a, b string) int {
	return slices.Compare(strings.Split(a, "/"), strings.Split(b, "/"))
}
