// Package config reads rexecd's configuration.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"rexec/internal/daemon/denied"
	"rexec/rer"
)

// DefaultFile is where the configuration is.
const DefaultFile = "/etc/rexec/rexecd.toml"

// DefaultListen is where rexecd serve listens by itself.
const DefaultListen = "unix:/run/rexec.sock"

// Config is rexecd's configuration. The zero value of each field but the named
// ones means what it says: nobody is denied, everybody is allowed.
type Config struct {
	// Listen are the addresses of rexecd serve: "unix:/path".
	Listen []string `toml:"listen"`
	// Disallowed is the file with the paths that are never lent.
	Disallowed string `toml:"disallowed"`
	// AllowUsers, where not empty, are the only accounts of this machine that
	// may have sessions; DenyUsers may not, even so.
	AllowUsers []string `toml:"allow_users"`
	DenyUsers  []string `toml:"deny_users"`
	// AllowHomes and DenyHomes are the same for home machines, by host name
	// or machine id, as these say themselves.
	AllowHomes []string `toml:"allow_homes"`
	DenyHomes  []string `toml:"deny_homes"`
	// Grace is how many seconds sessions get to end when rexecd serve does.
	Grace int `toml:"grace"`
}

// Default is the configuration without a file.
func Default() Config {
	return Config{Listen: []string{DefaultListen}, Disallowed: denied.DefaultFile, Grace: 10}
}

// Read reads a configuration file. One that does not exist is empty. Unknown
// keys are refused: a misspelt prohibition must not be none.
func Read(file string) (Config, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return Default(), nil
	}
	if err != nil {
		return Config{}, err
	}
	c, err := Parse(data)
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}

// Parse reads a configuration. Errors begin with the line.
func Parse(data []byte) (Config, error) {
	c := Default()
	meta, err := toml.Decode(string(data), &c)
	var syntax toml.ParseError
	if errors.As(err, &syntax) {
		return Config{}, fmt.Errorf("line %d: %s", syntax.Position.Line, syntax.Message)
	}
	if err != nil {
		return Config{}, errors.New(strings.TrimPrefix(err.Error(), "toml: "))
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		return Config{}, fmt.Errorf("line %d: unknown key %q", lineOf(data, unknown[0]), unknown[0].String())
	}
	return c, c.check(data)
}

// check refuses values that cannot work.
func (c *Config) check(data []byte) error {
	for _, l := range c.Listen {
		if path, ok := strings.CutPrefix(l, "unix:"); !ok || !strings.HasPrefix(path, "/") {
			return fmt.Errorf("line %d: listen: %q is not unix:/PATH", lineOf(data, toml.Key{"listen"}), l)
		}
	}
	if !strings.HasPrefix(c.Disallowed, "/") {
		return fmt.Errorf("line %d: disallowed: %q is not an absolute path", lineOf(data, toml.Key{"disallowed"}), c.Disallowed)
	}
	if c.Grace < 0 || c.Grace > 3600 {
		return fmt.Errorf("line %d: grace: %d is not from 0 to 3600 seconds", lineOf(data, toml.Key{"grace"}), c.Grace)
	}
	return nil
}

// lineOf finds the line that sets a key or begins its table.
func lineOf(data []byte, key toml.Key) int {
	name := key[len(key)-1]
	for i, line := range bytes.Split(data, []byte("\n")) {
		text := strings.TrimLeft(string(line), " \t[\"'")
		rest, ok := strings.CutPrefix(text, name)
		rest = strings.TrimLeft(rest, " \t\"'")
		if ok && (strings.HasPrefix(rest, "=") || strings.HasPrefix(rest, "]") || strings.HasPrefix(rest, ".")) {
			return i + 1
		}
	}
	return 1
}

// GraceTime is Grace as a duration.
func (c *Config) GraceTime() time.Duration { return time.Duration(c.Grace) * time.Second }

// AdmitUser says whether an account may have a session; nil: yes.
func (c *Config) AdmitUser(name string) *rer.Refused {
	if admitted(c.AllowUsers, c.DenyUsers, name) {
		return nil
	}
	return &rer.Refused{Reason: rer.ReasonNotAllowed, Text: fmt.Sprintf("the server does not admit the user %s", name)}
}

// AdmitHome says whether a home machine may send jobs; nil: yes.
func (c *Config) AdmitHome(hostname, sysid string) *rer.Refused {
	if admitted(c.AllowHomes, c.DenyHomes, hostname, sysid) {
		return nil
	}
	return &rer.Refused{Reason: rer.ReasonNotAllowed, Text: fmt.Sprintf("the server does not admit jobs from %s", hostname)}
}

// admitted compares the names of one party with the lists.
func admitted(allow, deny []string, names ...string) bool {
	in := func(list []string) bool {
		return slices.ContainsFunc(names, func(n string) bool { return n != "" && slices.Contains(list, n) })
	}
	return !in(deny) && (len(allow) == 0 || in(allow))
}
