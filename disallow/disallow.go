// Package disallow decides which path prefixes a server lends.
//
// A user's SWITCH list asks for prefixes of the server's disk; the server's
// administrator has a list of paths that are never lent (DISALLOWED). This
// package reads both lists and compares them. It is pure: it looks at names
// only and touches no file system, so symbolic links must be dealt with by who
// opens the names.
//
// All names that the functions return are absolute and clean. Prefixes compare
// by whole components: "/dir1/dir2" is a prefix of "/dir1/dir2" and of
// "/dir1/dir2/x", not of "/dir1/dir22"; "/" is a prefix of every name.
package disallow

import (
	"path"
	"strings"
)

// Below says whether prefix is name itself or one of its ancestors. Both are
// absolute and clean.
func Below(prefix, name string) bool {
	if prefix == "/" {
		return strings.HasPrefix(name, "/")
	}
	rest, ok := strings.CutPrefix(name, prefix)
	return ok && (rest == "" || rest[0] == '/')
}

// Match says whether one of list is a prefix of name, which need not be clean.
// A name that is not absolute matches nothing.
func Match(list []string, name string) bool {
	if !strings.HasPrefix(name, "/") {
		return false
	}
	name = path.Clean(name)
	for _, prefix := range list {
		if Below(prefix, name) {
			return true
		}
	}
	return false
}

// Split reads a SWITCH value: a colon list, cleaned as [Clean] does.
func Split(value string) []string { return Clean(strings.Split(value, ":")) }

// Clean gives the elements of a SWITCH list that can mean something: relative
// and empty ones and ones with a NUL byte are ignored, the others made clean,
// repeated ones dropped. The order stays.
func Clean(elements []string) []string {
	var list []string
	seen := make(map[string]bool, len(elements))
	for _, e := range elements {
		if !strings.HasPrefix(e, "/") || strings.IndexByte(e, 0) >= 0 {
			continue
		}
		e = path.Clean(e)
		if !seen[e] {
			seen[e] = true
			list = append(list, e)
		}
	}
	return list
}

// Filter takes out of a SWITCH list every element of which a disallowed path
// is a prefix. Both lists are clean. What is left stays in its order.
func Filter(elements, disallowed []string) (kept, dropped []string) {
	for _, e := range elements {
		if Match(disallowed, e) {
			dropped = append(dropped, e)
		} else {
			kept = append(kept, e)
		}
	}
	return kept, dropped
}

// Inside gives the disallowed paths strictly below prefix, which [Filter]
// kept: names that are not lent although their ancestor is. A path below
// another one of the result is left out, as the higher one covers it.
func Inside(prefix string, disallowed []string) []string {
	var inside []string
	for _, d := range disallowed {
		if d != prefix && Below(prefix, d) && !covered(d, disallowed) {
			inside = append(inside, d)
		}
	}
	return inside
}

// covered says whether another element of list is an ancestor of name.
func covered(name string, list []string) bool {
	for _, other := range list {
		if other != name && Below(other, name) {
			return true
		}
	}
	return false
}
