package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"rexec/agent"
	"rexec/agent/capture"
	"rexec/internal/servers"
	"rexec/rer"
)

const usage = `rexec [flags] HOST COMMAND ARG...
  rexec [flags] HOST 'SHELL TEXT'
  rexec [flags] HOST -- PROGRAM [ARG...]
  rexec [flags] HOST`

const long = `rexec runs a command on another machine as if it ran here: with this machine's
files, environment, descriptors, terminal and process numbers.

Several words after HOST are the exact arguments; one word is text for
/bin/sh -c there; after -- one word too is a program. Without a command it is
$SHELL -l. HOST is local, loopback, a name from the server database,
ssh://[user@]host[:port] or unix:/path.`

// flags are those of a run.
type flags struct {
	opt     agent.Options
	tty     bool
	noTTY   bool
	root    string
	expose  string
	syncing bool
	bad     error // in the environment
}

// newRoot builds the command tree; a run leaves its exit status in code.
func newRoot(code *int) *cobra.Command {
	return newRootWith(new(flags), func(o *agent.Options) { *code = agent.Run(*o) })
}

func newRootWith(f *flags, run func(*agent.Options)) *cobra.Command {
	root := &cobra.Command{
		Use: usage, Long: long, Args: cobra.ArbitraryArgs,
		SilenceErrors: true, SilenceUsage: true, TraverseChildren: true, DisableFlagsInUseLine: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			opt, err := f.options(args)
			if err != nil {
				return err
			}
			run(opt)
			return nil
		},
	}
	f.define(root.Flags())
	f.bad = fromEnvironment(root.Flags())
	root.AddCommand(psCommand(), killCommand(), homeCommand(), serversCommand(), cacheCommand(), doctorCommand(), versionCommand())
	return root
}

func (f *flags) define(set *pflag.FlagSet) {
	o := &f.opt
	set.SetInterspersed(false)
	set.SortFlags = false
	set.StringArrayVarP(&o.Switch, "switch", "S", nil, "take `PREFIX[:PREFIX...]` from the server, besides $SWITCH; repeatable")
	set.StringVarP(&o.Chdir, "chdir", "C", "", "run in `DIR`")
	set.BoolVarP(&o.NoStdin, "no-stdin", "n", false, "standard input from /dev/null")
	set.BoolVarP(&f.tty, "tty", "t", false, "fail without a terminal")
	set.BoolVarP(&f.noTTY, "no-tty", "T", false, "give the command no terminal")
	set.CountVarP(&o.Verbose, "verbose", "v", "say what happens; repeatable")
	set.BoolVarP(&o.Quiet, "quiet", "q", false, "print nothing but errors")
	set.BoolVar(&o.Stats, "stats", false, "print a summary at the end")
	set.StringVar(&f.root, "root", "", "take the root from `URL`")
	set.BoolVar(&o.OrLocal, "or-local", false, "run here if, and only if, nothing was sent")
	set.BoolVar(&o.DumpRER, "dump-rer", false, "print the request as JSON and exit")
	set.IntVar(&o.StatusFD, "status-fd", 0, "write events as JSON lines to descriptor `N`")
	set.BoolVar(&o.NoHome, "no-home", false, "do without the shared home process")
	set.BoolVar(&o.NoCache, "no-cache", false, "ask for every file each time")
	set.BoolVar(&f.syncing, "sync-writes", false, "wait for home at each close")
	set.StringVar(&f.expose, "expose", "", "what of this machine is lent: `POLICY`")
}

// options makes the agent's options of what the environment, the flags and
// the words after them say.
func (f *flags) options(args []string) (*agent.Options, error) {
	o := &f.opt
	if f.bad != nil {
		return nil, f.bad
	}
	if len(args) == 0 {
		return nil, &rer.Refused{Reason: rer.ReasonBadRequest, Text: "no host given", Hint: "rexec HOST COMMAND, or rexec help"}
	}
	if err := f.unsupported(); err != nil {
		return nil, err
	}
	switch {
	case f.tty && f.noTTY:
		return nil, errors.New("-t and -T exclude each other")
	case f.tty:
		o.Terminal = agent.TerminalForce
	case f.noTTY:
		o.Terminal = agent.TerminalForbid
	}
	if err := command(o, args); err != nil {
		return nil, err
	}
	surroundings(o)
	return o, nil
}

// unsupported refuses what this version does not do, rather than doing
// something else.
func (f *flags) unsupported() error {
	for flag, value := range map[string]string{"--root": f.root, "--expose": f.expose} {
		if value != "" {
			return fmt.Errorf("%s is not in this version", flag)
		}
	}
	return nil // --sync-writes: every write is
}

// command reads HOST and what follows it.
func command(o *agent.Options, args []string) error {
	o.Host = args[0]
	words := args[1:]
	switch {
	case len(words) == 0:
		o.Login = true
	case words[0] == "--" && len(words) == 1:
		return errors.New("no program after --")
	case words[0] == "--":
		o.Argv = words[1:]
	case len(words) == 1 && words[0] == "":
		o.Argv = []string{"/bin/sh", "-c", ""}
	case len(words) == 1:
		o.Shell = words[0]
	default:
		o.Argv = words
	}
	return nil
}

// surroundings adds what does not come from flags.
func surroundings(o *agent.Options) {
	o.SSH, o.Rexecd, o.Home = os.Getenv("REXEC_SSH"), os.Getenv("REXEC_REXECD"), os.Getenv("REXEC_HOME_SOCKET")
	o.HomeStart = homeStart()
	o.Serve = serveHere
	o.Sysid = servers.Sysid()
	o.Resolve = resolve
}

func resolve(host string) (string, error) {
	if host == "local" || host == "loopback" {
		return host, nil
	}
	t, err := servers.Default().Resolve(host)
	if err != nil {
		return "", err
	}
	return t.String(), nil
}

// fromEnvironment sets the defaults of flags by REXEC_ variables.
func fromEnvironment(set *pflag.FlagSet) (err error) {
	set.VisitAll(func(f *pflag.Flag) {
		name := capture.OwnPrefix + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		value := os.Getenv(name)
		if value == "" || err != nil || f.Name == "help" {
			return
		}
		if bad := f.Value.Set(value); bad != nil {
			err = fmt.Errorf("%s=%s: %w", name, value, bad)
		}
	})
	return err
}
