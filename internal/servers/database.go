package servers

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"

	"rexec/rer"
)

// Entry is one server of the database.
type Entry struct {
	Name     string   `toml:"name"`
	URL      string   `toml:"url"`
	Disabled bool     `toml:"disabled"`
	Message  string   `toml:"message"` // why it is disabled
	Allow    []string `toml:"allow"`   // users; empty: all
	Clients  []string `toml:"clients"` // machines; empty: all

	Source string `toml:"-"` // the file that it stands in
	Line   int    `toml:"-"` // and where, from 1; 0: not known
}

// Database tells where the lists are and who asks.
type Database struct {
	System  string   // the administrator's file
	User    string   // the user's file; "": none
	SSH     []string // ssh configuration files
	Login   string   // name of the user
	Host    string   // this machine's name
	Machine string   // this machine's sysid
	Home    string   // for "~" in ssh configuration
}

// Default is the database of this process's user on this machine. HOME and
// XDG_CONFIG_HOME decide where the user's file is.
func Default() *Database {
	d := &Database{System: "/etc/rexec/servers.toml", Machine: Sysid()}
	d.Host, _ = os.Hostname()
	if u, err := user.Current(); err == nil {
		d.Login, d.Home = u.Username, u.HomeDir
	}
	if home := os.Getenv("HOME"); filepath.IsAbs(home) {
		d.Home = home
	}
	if config := os.Getenv("XDG_CONFIG_HOME"); filepath.IsAbs(config) {
		d.User = filepath.Join(config, "rexec/servers.toml")
	} else if d.Home != "" {
		d.User = filepath.Join(d.Home, ".config/rexec/servers.toml")
	}
	if d.Home != "" {
		d.SSH = append(d.SSH, filepath.Join(d.Home, ".ssh/config"))
	}
	d.SSH = append(d.SSH, "/etc/ssh/ssh_config")
	return d
}

// Resolve says what host means. Refusals are *rer.Refused.
func (d *Database) Resolve(host string) (Target, error) {
	switch {
	case host == "":
		return Target{}, refuse(rer.ReasonUnknownHost, "", "no host given")
	case host == "local", host == "loopback", IsURL(host):
		return Parse(host)
	case d.Machine != "" && host == d.Machine:
		return Target{Kind: Local, Name: host}, nil
	}
	e, err := d.Show(host)
	if err != nil {
		return Target{}, err
	}
	if err := d.admit(e); err != nil {
		return Target{}, err
	}
	t, err := Parse(e.URL)
	t.Name = host
	return t, err
}

// admit says whether this user, on this machine, may use the server now.
func (d *Database) admit(e Entry) error {
	if e.Disabled {
		text := fmt.Sprintf("%s is withdrawn", e.Name)
		if e.Message != "" {
			text += ": " + oneLine(e.Message)
		}
		return refuse(rer.ReasonWithdrawn, "see "+e.Source, "%s", text)
	}
	if len(e.Allow) > 0 && !slices.Contains(e.Allow, d.Login) {
		return refuse(rer.ReasonNotAllowed, "see "+e.Source, "%s may not be used by %s", e.Name, d.Login)
	}
	if len(e.Clients) > 0 && !slices.Contains(e.Clients, d.Host) && !slices.Contains(e.Clients, d.Machine) {
		return refuse(rer.ReasonNotAllowed, "see "+e.Source, "%s may not be used from this machine", e.Name)
	}
	return nil
}

// Show gives the entry that decides for a name. A name that is nowhere is
// refused.
func (d *Database) Show(name string) (Entry, error) {
	all, err := d.List()
	if err != nil {
		return Entry{}, err
	}
	for _, e := range all {
		if e.Name == name {
			return e, nil
		}
	}
	return Entry{}, refuse(rer.ReasonUnknownHost, unknownHint(name, all), "unknown host %q", name)
}

// List gives all entries in the order in which they are looked through. Of
// several with one name the first decides.
func (d *Database) List() ([]Entry, error) {
	var all []Entry
	for _, path := range []string{d.System, d.User} {
		list, err := load(path)
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
	}
	return append(all, d.sshEntries()...), nil
}

// load reads one file; one that is not there is empty.
func load(path string) ([]Entry, error) {
	if path == "" {
		return nil, nil
	}
	text, err := readBounded(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("server database: %w", err)
	}
	return parse(path, text)
}

// unknownHint says what mends an unknown name.
func unknownHint(name string, all []Entry) string {
	if strings.Contains(name, "@") {
		return "ssh://" + name
	}
	best, near := "", 3
	for _, e := range all {
		if n := distance(name, e.Name); n < near && n < len(name) {
			best, near = e.Name, n
		}
	}
	if best != "" {
		return fmt.Sprintf("did you mean %s?", best)
	}
	return fmt.Sprintf("rexec servers add %s ssh://%s", name, name)
}

// distance counts the letters to insert, delete or replace between two words.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
