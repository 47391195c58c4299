package servers

import (
	"path/filepath"
	"strings"
)

const (
	maxInclude = 16   // depth of Include in ssh configuration, as ssh has it
	maxFiles   = 1000 // files read in all
)

// sshEntries gives an entry for each plain name in a Host line. ssh itself
// reads the rest of its configuration, so nothing more is needed here; a file
// that cannot be read is left to ssh's own message.
func (d *Database) sshEntries() []Entry {
	s := &sshNames{home: d.Home, seen: map[string]bool{}}
	for _, path := range d.SSH {
		s.file(path, filepath.Dir(path), 0)
	}
	return s.entries
}

type sshNames struct {
	home    string
	files   int
	seen    map[string]bool
	entries []Entry
}

// file reads one file; dir is where relative Includes start: ~/.ssh or
// /etc/ssh, wherever the including file is.
func (s *sshNames) file(path, dir string, depth int) {
	if s.files++; s.files > maxFiles || depth > maxInclude {
		return
	}
	text, err := readBounded(path)
	if err != nil {
		return
	}
	for i, line := range strings.Split(string(text), "\n") {
		keyword, words := sshLine(line)
		switch keyword {
		case "host":
			s.host(words, path, i+1)
		case "include":
			for _, pattern := range words {
				s.include(pattern, dir, depth)
			}
		}
	}
}

func (s *sshNames) host(words []string, path string, line int) {
	for _, name := range words {
		if strings.HasPrefix(name, "!") || !isName(name) || s.seen[name] {
			continue // a pattern, or no name that we take
		}
		s.seen[name] = true
		s.entries = append(s.entries, Entry{Name: name, URL: "ssh://" + name, Source: path, Line: line})
	}
}

func (s *sshNames) include(pattern, dir string, depth int) {
	if strings.HasPrefix(pattern, "~/") {
		pattern = filepath.Join(s.home, pattern[2:])
	} else if !filepath.IsAbs(pattern) {
		pattern = filepath.Join(dir, pattern)
	}
	names, _ := filepath.Glob(pattern)
	for _, name := range names {
		s.file(name, dir, depth+1)
	}
}

// sshLine divides a line of ssh configuration: keyword in lower case, then
// words, which may be quoted; keyword and words are parted by blanks or one
// '='.
func sshLine(line string) (keyword string, words []string) {
	line = strings.TrimSpace(line)
	end := strings.IndexAny(line, " \t=\"")
	if end < 0 || line[0] == '#' {
		return "", nil
	}
	keyword = strings.ToLower(line[:end])
	rest := strings.TrimLeft(line[end:], " \t")
	rest = strings.TrimPrefix(rest, "=")
	for {
		rest = strings.TrimLeft(rest, " \t")
		if rest == "" || rest[0] == '#' {
			return keyword, words
		}
		stop, from := " \t", 0
		if rest[0] == '"' {
			stop, from = `"`, 1
		}
		word := rest[from:]
		if n := strings.IndexAny(word, stop); n >= 0 {
			word, rest = word[:n], word[n+from:]
		} else {
			rest = ""
		}
		words = append(words, word)
	}
}
