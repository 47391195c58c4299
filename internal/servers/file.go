package servers

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"github.com/BurntSushi/toml"
)

// maxFile bounds each file that is read, in bytes.
const maxFile = 1 << 20

func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("read %s: %w", path, syscall.EFBIG)
	}
	return b, err
}

// FileError is a fault in a file of servers.
type FileError struct {
	Path string
	Line int // from 1; 0: not known
	Text string
}

func (e *FileError) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("%s: %s", e.Path, e.Text)
	}
	return fmt.Sprintf("%s:%d: %s", e.Path, e.Line, e.Text)
}

// parse reads and checks a file's text; path is for messages.
func parse(path string, text []byte) ([]Entry, error) {
	var file struct {
		Server []Entry `toml:"server"`
	}
	meta, err := toml.Decode(string(text), &file)
	if err != nil {
		fault := &FileError{Path: path, Text: oneLine(err.Error())}
		var syntax toml.ParseError
		if errors.As(err, &syntax) {
			fault.Line, fault.Text = syntax.Position.Line, oneLine(syntax.Message)
			if fault.Text == "" {
				fault.Text = oneLine(err.Error())
			}
		}
		return nil, fault
	}
	if extra := meta.Undecoded(); len(extra) > 0 {
		key := extra[0]
		return nil, &FileError{path, lineOf(text, key[len(key)-1]), fmt.Sprintf("unknown key %q", key)}
	}
	lines := headers(text)
	for i := range file.Server {
		e := &file.Server[i]
		e.Source = path
		if i < len(lines) {
			e.Line = lines[i] + 1
		}
		if e.URL == "" {
			e.URL = "ssh://" + e.Name
		}
	}
	return file.Server, checkEntries(path, file.Server)
}

func checkEntries(path string, list []Entry) error {
	seen := map[string]bool{}
	for _, e := range list {
		err := e.check()
		if err == nil && seen[e.Name] {
			err = fmt.Errorf("server %q stands here twice", e.Name)
		}
		if err != nil {
			return &FileError{path, e.Line, err.Error()}
		}
		seen[e.Name] = true
	}
	return nil
}

// maxName bounds names, in bytes.
const maxName = 255

// isName says whether s is a name as the database has them: letters, digits,
// '_', and after the first '.' and '-'.
func isName(s string) bool {
	for i, c := range []byte(s) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_':
		case i > 0 && (c == '.' || c == '-'):
		default:
			return false
		}
	}
	return s != "" && len(s) <= maxName
}

// check says whether an entry is fit for the database.
func (e Entry) check() error {
	if !isName(e.Name) {
		return fmt.Errorf("%q is no name of a server", e.Name)
	}
	if e.Name == "local" || e.Name == "loopback" {
		return fmt.Errorf("the name %s is reserved", e.Name)
	}
	t, err := Parse(e.URL)
	if err == nil && t.Kind == Local {
		err = errors.New("a server cannot be local")
	}
	return err
}

// isHeader says whether a line is [[server]], with or without a comment.
func isHeader(line string) bool {
	line = strings.TrimSpace(line)
	line, opened := strings.CutPrefix(line, "[[")
	name, rest, closed := strings.Cut(line, "]]")
	rest = strings.TrimSpace(rest)
	return opened && closed && strings.TrimSpace(name) == "server" && (rest == "" || rest[0] == '#')
}

// headers gives the indices of the lines that begin an entry. Text in a string
// of several lines may look like one; whoever edits by it checks the outcome.
func headers(text []byte) (lines []int) {
	for i, line := range strings.Split(string(text), "\n") {
		if isHeader(line) {
			lines = append(lines, i)
		}
	}
	return lines
}

// lineOf finds the line that sets a key, from 1; 0: not found.
func lineOf(text []byte, key string) int {
	for i, line := range strings.Split(string(text), "\n") {
		if strings.HasPrefix(strings.TrimLeft(line, " \t[\"'"), key) {
			return i + 1
		}
	}
	return 0
}
