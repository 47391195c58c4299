package disallow

import (
	"bytes"
	"fmt"
	"path"
	"strings"
)

// Bounds of an administrator's list, in bytes.
const (
	MaxFile = 1 << 20
	MaxLine = 4096
)

// SyntaxError says which line of an administrator's list is wrong, counted
// from 1, and why.
type SyntaxError struct {
	Line int
	Text string
}

func (e *SyntaxError) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.Text) }

// Parse reads an administrator's list: one absolute path a line; empty lines
// and lines that begin with "#" say nothing; blanks around a path are dropped.
// The paths are given clean, in order, without repetition.
//
// A list with one wrong line is refused whole with a *[SyntaxError]: half a
// list would lend what the administrator meant to keep. For the same reason
// lines that can be read in two ways are wrong.
func Parse(data []byte) ([]string, error) {
	if len(data) > MaxFile {
		return nil, &SyntaxError{1, fmt.Sprintf("list of %d bytes: more than %d", len(data), MaxFile)}
	}
	var list []string
	seen := make(map[string]bool)
	for i, line := range bytes.Split(data, []byte("\n")) {
		name, err := parseLine(line)
		if err != "" {
			return nil, &SyntaxError{i + 1, err}
		}
		if name != "" && !seen[name] {
			seen[name] = true
			list = append(list, name)
		}
	}
	return list, nil
}

// parseLine gives the path of one line, "" for none, or what is wrong with it.
func parseLine(line []byte) (name, wrong string) {
	if len(line) > MaxLine {
		return "", fmt.Sprintf("longer than %d bytes", MaxLine)
	}
	text := strings.Trim(string(line), " \t")
	if text == "" {
		return "", ""
	}
	for i := 0; i < len(text); i++ {
		if c := text[i]; c == 0x7f || c < ' ' && (c != '\t' || text[0] != '#') {
			return "", fmt.Sprintf("holds the control byte 0x%02x", c)
		}
	}
	if text[0] == '#' {
		return "", ""
	}
	if wrong := ambiguous(text); wrong != "" {
		return "", wrong
	}
	return path.Clean(text), ""
}

// ambiguous says what is wrong with a path that may not mean what its writer
// thought.
func ambiguous(text string) string {
	switch {
	case text[0] != '/':
		return fmt.Sprintf("%.64q is not an absolute path", text)
	case strings.Contains(text, " #"):
		return "comment after a path: comments have their own lines"
	case strings.Contains(text, ":/"):
		return "several paths: one path a line"
	case strings.HasSuffix(path.Clean(text), " "):
		return "ends in a blank"
	case climbs(text):
		return fmt.Sprintf("%.64q leads above the root", text)
	}
	return ""
}

// climbs says whether an absolute path has more ".." than names before it.
func climbs(text string) bool {
	depth := 0
	for _, c := range strings.Split(text, "/") {
		switch c {
		case "", ".":
		case "..":
			if depth--; depth < 0 {
				return true
			}
		default:
			depth++
		}
	}
	return false
}
