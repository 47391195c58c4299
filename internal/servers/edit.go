package servers

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"rexec/rer"
)

// Reserved are words that the command line takes for itself; a server of that
// name can only be reached by its URL.
var Reserved = []string{"local", "loopback", "ps", "kill", "home", "servers", "cache", "doctor", "version", "help"}

// Add appends an entry to the user's file. What stands there is kept as it is,
// comments and all.
func (d *Database) Add(e Entry) error {
	if e.URL == "" {
		e.URL = "ssh://" + e.Name
	}
	if slices.Contains(Reserved, e.Name) {
		return fmt.Errorf("add server: the name %s is reserved", e.Name)
	}
	if err := e.check(); err != nil {
		return fmt.Errorf("add server: %w", err)
	}
	if known, err := d.Show(e.Name); err == nil && known.Source == d.System {
		return fmt.Errorf("add server: %s is in %s, which comes first: %w", e.Name, d.System, fs.ErrExist)
	}
	return d.edit("add server", func(text []byte, list []Entry) ([]byte, []Entry, error) {
		for _, have := range list {
			if have.Name == e.Name {
				return nil, nil, fmt.Errorf("%s is in %s: %w", e.Name, d.User, fs.ErrExist)
			}
		}
		if len(text) > 0 {
			text = append(bytes.TrimRight(text, "\n"), "\n\n"...)
		}
		return append(text, e.text()...), append(list, e), nil
	})
}

// Remove takes a name out of the user's file.
func (d *Database) Remove(name string) error {
	return d.edit("remove server", func(text []byte, list []Entry) ([]byte, []Entry, error) {
		i := slices.IndexFunc(list, func(e Entry) bool { return e.Name == name })
		if i < 0 {
			return nil, nil, d.notMine(name)
		}
		return cut(text, i), slices.Delete(list, i, i+1), nil
	})
}

// notMine is why a name cannot be removed.
func (d *Database) notMine(name string) error {
	e, err := d.Show(name)
	if err != nil {
		return err
	}
	return refuse(rer.ReasonNotAllowed, "", "%s is not in %s but in %s", name, d.User, e.Source)
}

// text is the entry as it stands in a file.
func (e Entry) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "[[server]]\nname = %s\nurl = %s\n", tomlString(e.Name), tomlString(e.URL))
	if e.Disabled {
		b.WriteString("disabled = true\n")
	}
	if e.Message != "" {
		fmt.Fprintf(&b, "message = %s\n", tomlString(e.Message))
	}
	b.WriteString(tomlList("allow", e.Allow) + tomlList("clients", e.Clients))
	return b.String()
}

func tomlList(key string, list []string) string {
	if len(list) == 0 {
		return ""
	}
	words := make([]string, len(list))
	for i, word := range list {
		words[i] = tomlString(word)
	}
	return fmt.Sprintf("%s = [%s]\n", key, strings.Join(words, ", "))
}

// tomlString quotes for TOML, which knows \u escapes but not Go's \x and \a.
func tomlString(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			b.WriteString(`\u00` + strconv.FormatInt(int64(r)+0x100, 16)[1:])
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// cut removes the entry with index i. Comments and empty lines right above the
// next header, or at the end, stay.
func cut(text []byte, i int) []byte {
	lines := strings.SplitAfter(string(text), "\n")
	starts := headers(text)
	if i >= len(starts) {
		return text
	}
	end := len(lines)
	if i+1 < len(starts) {
		end = starts[i+1]
	}
	for end > starts[i]+1 && isRemark(lines[end-1]) {
		end--
	}
	return []byte(strings.Join(slices.Delete(lines, starts[i], end), ""))
}

func isRemark(line string) bool {
	line = strings.TrimSpace(line)
	return line == "" || line[0] == '#'
}

// edit changes the user's file under a lock on its directory. change gives the
// new text and the entries that it must then hold; where the text does not, it
// is written in a way that this package cannot edit, and nothing happens.
func (d *Database) edit(what string, change func([]byte, []Entry) ([]byte, []Entry, error)) error {
	if d.User == "" {
		return fmt.Errorf("%s: no home directory", what)
	}
	path := d.User
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real // a link into somebody's collection of settings stays
	}
	unlock, err := lockDir(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer unlock()
	text, err := readBounded(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", what, err)
	}
	list, err := parse(path, text)
	if err != nil {
		return err
	}
	text, want, err := change(text, list)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if got, err := parse(path, text); err != nil || !same(got, want) {
		return fmt.Errorf("%s: %s is written in a way that only a person can edit", what, path)
	}
	if err := replace(path, text); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// same compares entries, wherever they stand.
func same(a, b []Entry) bool {
	return slices.EqualFunc(a, b, func(x, y Entry) bool {
		x.Source, x.Line, y.Source, y.Line = "", 0, "", 0
		return reflect.DeepEqual(x, y)
	})
}

// lockDir makes the directory where it lacks and locks it against other edits.
func lockDir(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if err != syscall.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return func() { f.Close() }, nil
}

// replace writes the file anew under another name and renames it, so that a
// reader, or a crash, sees the old or the new and nothing between.
func replace(path string, text []byte) error {
	mode := fs.FileMode(0o644)
	if info, err := os.Stat(path); err == nil {
		mode = info.Mode().Perm()
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".servers-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // fails after the rename
	_, err = f.Write(text)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
