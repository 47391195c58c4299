package denied

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"rexec/disallow"
)

// Add puts names on the list. Ones that are there already change nothing.
func Add(file string, names []string) error {
	return change(file, func(data []byte) ([]byte, error) {
		have, err := disallow.Parse(data)
		if err != nil {
			return nil, err
		}
		if len(data) > 0 && data[len(data)-1] != '\n' {
			data = append(data, '\n')
		}
		for _, name := range names {
			clean, err := one(name)
			if err != nil {
				return nil, err
			}
			if !contains(have, clean) {
				data = append(data, clean+"\n"...)
			}
		}
		return data, nil
	})
}

// Remove takes names off the list; one that is not on it is an error.
func Remove(file string, names []string) error {
	return change(file, func(data []byte) ([]byte, error) {
		have, err := disallow.Parse(data)
		if err != nil {
			return nil, err
		}
		var unwanted []string
		for _, name := range names {
			clean, err := one(name)
			if err != nil {
				return nil, err
			}
			if !contains(have, clean) {
				return nil, fmt.Errorf("%s is not on the list", clean)
			}
			unwanted = append(unwanted, clean)
		}
		return without(data, unwanted), nil
	})
}

// one reads a name as a line of the list.
func one(name string) (string, error) {
	list, err := disallow.Parse([]byte(name))
	var syntax *disallow.SyntaxError
	if errors.As(err, &syntax) {
		return "", fmt.Errorf("%q: %s", name, syntax.Text)
	}
	if len(list) != 1 {
		return "", fmt.Errorf("%q is no path", name)
	}
	return list[0], nil
}

// without drops the lines that say one of names.
func without(data []byte, names []string) []byte {
	var kept []byte
	for line := range bytes.Lines(data) {
		list, _ := disallow.Parse(bytes.TrimSuffix(line, []byte("\n")))
		if len(list) != 1 || !contains(names, list[0]) {
			kept = append(kept, line...)
		}
	}
	return kept
}

func contains(list []string, name string) bool {
	for _, have := range list {
		if have == name {
			return true
		}
	}
	return false
}

// Edit runs an editor on a copy of the list and takes the copy if it is right.
// If it is not, the old list stays, and the copy too, for another attempt; the
// error names it.
func Edit(file, editor string, in io.Reader, out, diag io.Writer) error {
	unlock, err := lock(file)
	if err != nil {
		return err
	}
	defer unlock()
	before, err := read(file)
	if err != nil {
		return err
	}
	draft, err := os.CreateTemp(filepath.Dir(file), filepath.Base(file)+".edit*")
	if err != nil {
		return err
	}
	name := draft.Name()
	_, err = draft.Write(before)
	if err2 := draft.Close(); err == nil {
		err = err2
	}
	if err == nil {
		// The editor may have arguments, as in VISUAL="emacs -nw".
		cmd := exec.Command("/bin/sh", "-c", editor+` "$1"`, "editor", name)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, diag
		if err = cmd.Run(); err != nil {
			err = fmt.Errorf("editor: %w; the list is unchanged", err)
		}
	}
	if err != nil {
		os.Remove(name)
		return err
	}
	after, err := read(name)
	if err == nil {
		_, err = disallow.Parse(after)
	}
	if err != nil {
		return fmt.Errorf("%w; the list is unchanged, your text is in %s", err, name)
	}
	os.Remove(name)
	if bytes.Equal(before, after) {
		return nil
	}
	return replace(file, after)
}

// Editor is the administrator's editor.
func Editor() string {
	for _, name := range []string{"VISUAL", "EDITOR"} {
		if v := strings.TrimSpace(os.Getenv(name)); v != "" {
			return v
		}
	}
	return "vi"
}

// change replaces a list by what f makes of it.
func change(file string, f func([]byte) ([]byte, error)) error {
	unlock, err := lock(file)
	if err != nil {
		return err
	}
	defer unlock()
	before, err := read(file)
	if err != nil {
		return err
	}
	after, err := f(bytes.Clone(before))
	if err == nil {
		_, err = disallow.Parse(after)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if bytes.Equal(before, after) {
		return nil
	}
	return replace(file, after)
}

// lock keeps other editors of the list out.
func lock(file string) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return nil, err
	}
	name := filepath.Join(filepath.Dir(file), "."+filepath.Base(file)+".lock")
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if err == unix.EWOULDBLOCK {
			return nil, fmt.Errorf("%s is being edited by someone else", file)
		}
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	return func() { f.Close() }, nil
}

// replace puts data in the place of file, at once and for good. A symbolic
// link stays one: what it leads to is replaced.
func replace(file string, data []byte) error {
	if target, err := filepath.EvalSymlinks(file); err == nil {
		file = target
	}
	dir := filepath.Dir(file)
	tmp, err := os.CreateTemp(dir, filepath.Base(file)+".new*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	mode := os.FileMode(0o644)
	if info, err := os.Stat(file); err == nil {
		mode = info.Mode().Perm()
	}
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Chmod(mode)
	}
	if err == nil {
		err = tmp.Sync()
	}
	if err2 := tmp.Close(); err == nil {
		err = err2
	}
	if err == nil {
		err = os.Rename(tmp.Name(), file)
	}
	if err != nil {
		return fmt.Errorf("replace %s: %w", file, err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
