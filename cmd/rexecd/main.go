// Command rexecd is the server's half of rexec: it runs jobs of users whose
// home is another machine.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"rexec/internal/daemon"
	"rexec/internal/daemon/config"
	"rexec/internal/daemon/record"
	"rexec/internal/launch"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		os.Exit(launch.Main())
	}
	if err := command().Execute(); err != nil {
		fmt.Fprintf(os.Stderr, "rexecd: %v\n", err)
		os.Exit(1)
	}
}

// options are the flags of every subcommand.
type options struct {
	configFile string
	quiet      bool
	records    string
}

func command() *cobra.Command {
	o := new(options)
	root := &cobra.Command{
		Use:           "rexecd",
		Short:         "run jobs of users whose home is another machine",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          help,
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.PersistentFlags().StringVar(&o.configFile, "config", config.DefaultFile, "configuration `file`")
	root.PersistentFlags().BoolVarP(&o.quiet, "quiet", "q", false, "no log on standard error")
	root.AddCommand(serveCommand(o), stdioCommand(o), sessionCommand(o), initCommand(), setupCommand(),
		disallowedCommand(o), jobsCommand(), killCommand(), drainCommand(), resumeCommand(),
		checkCommand(o), versionCommand())
	return root
}

// help is what a command does that has subcommands only.
func help(c *cobra.Command, _ []string) error { return c.Help() }

// setting is what sessions are started with.
func (o *options) setting() (daemon.Setting, error) {
	program, err := os.Executable()
	if err != nil {
		return daemon.Setting{}, err
	}
	return daemon.Setting{
		Program: program, Build: version(), ConfigFile: o.configFile,
		Records: record.Dir(o.records), Logf: o.logger(),
	}, nil
}

// logger writes to standard error, which a service manager keeps.
func (o *options) logger() func(string, ...any) {
	if o.quiet {
		return func(string, ...any) {}
	}
	return log.New(os.Stderr, fmt.Sprintf("rexecd[%d]: ", os.Getpid()), log.LstdFlags|log.Lmsgprefix).Printf
}

// untilEnded is a context that SIGTERM and SIGINT end.
func untilEnded() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
}

func stdioCommand(o *options) *cobra.Command {
	var log bool
	c := &cobra.Command{
		Use:   "stdio",
		Short: "serve one session on standard input and output (started over ssh)",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			// Standard error may be a user's terminal.
			o.quiet = !log
			set, err := o.setting()
			if err != nil {
				return err
			}
			ctx, stop := untilEnded()
			defer stop()
			return daemon.Stdio(ctx, set)
		},
	}
	c.Flags().BoolVar(&log, "log", false, "log on standard error")
	c.Flags().StringVar(&o.records, "records", "", "`directory` of the jobs' records")
	return c
}

func sessionCommand(o *options) *cobra.Command {
	c := &cobra.Command{
		Use:    "session",
		Short:  "serve one session on descriptor 3 (started by rexecd serve)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			set, err := o.setting()
			if err != nil {
				return err
			}
			ctx, stop := untilEnded()
			defer stop()
			return daemon.Inherited(ctx, set, 3)
		},
	}
	c.Flags().StringVar(&o.records, "records", "", "`directory` of the jobs' records")
	return c
}

func initCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "init",
		Short:  "be a session's first process (started by sessions)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return errors.New("init is started by a session, with no flags")
		},
	}
}
