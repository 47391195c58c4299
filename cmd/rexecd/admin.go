package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"rexec/internal/daemon"
	"rexec/internal/daemon/config"
	"rexec/internal/daemon/denied"
	"rexec/internal/daemon/record"
)

func jobsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "jobs",
		Short: "list the jobs that run here",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
			fmt.Fprintln(w, "JOB\tUSER\tHOME\tAGENT\tPID\tSINCE\tCOMMAND")
			table := record.Processes()
			for _, r := range record.List(daemon.Records()) {
				fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%s\t%s\n", short(r.ID), plain(r.User), plain(r.Home), r.Agent, table.Find(r),
					r.Since.Format("2006-01-02T15:04:05"), plain(r.Command))
			}
			return w.Flush()
		},
	}
}

// plain makes text of somebody else's fit for a terminal's line.
func plain(text string) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || c >= 0x7f && c < 0xa0 {
			return '?'
		}
		return c
	}, text)
}

func short(id string) string { return plain(id[:min(len(id), 12)]) }

func killCommand() *cobra.Command {
	var name string
	c := &cobra.Command{
		Use:   "kill JOB...",
		Short: "send a signal to jobs, by what rexecd jobs calls them",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			sig := unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(name), "SIG"))
			if sig == 0 {
				return fmt.Errorf("%q is no signal's name", name)
			}
			list := record.List(daemon.Records())
			var all error
			for _, arg := range args {
				all = errors.Join(all, killOne(list, arg, sig))
			}
			return all
		},
	}
	c.Flags().StringVarP(&name, "signal", "s", "TERM", "`name` of the signal")
	return c
}

func killOne(list []*record.Record, arg string, sig syscall.Signal) error {
	var found []*record.Record
	for _, r := range list {
		if arg != "" && strings.HasPrefix(r.ID, arg) {
			found = append(found, r)
		}
	}
	switch len(found) {
	case 0:
		return fmt.Errorf("no job %q", arg)
	case 1:
		return found[0].Signal(sig)
	}
	return fmt.Errorf("%q is the beginning of %d jobs", arg, len(found))
}

func drainCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "drain [REASON]",
		Short: "take no new jobs; running ones go on",
		Args:  cobra.ArbitraryArgs,
		RunE:  func(_ *cobra.Command, args []string) error { return daemon.Drain(strings.Join(args, " ")) },
	}
}

func resumeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "resume",
		Short: "take jobs again",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return daemon.Resume() },
	}
}

func checkCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "check-config",
		Short: "say whether the configuration and the disallowed list are right",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			cfg, err := config.Read(o.configFile)
			if err != nil {
				return err
			}
			_, err = denied.Read(cfg.Disallowed)
			return err
		},
	}
}

// version is the program's version as its build recorded it.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && v == "(devel)" {
			v = s.Value[:min(len(s.Value), 12)]
		}
	}
	return v
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "print the version",
		Args:  cobra.NoArgs,
		Run:   func(cmd *cobra.Command, _ []string) { fmt.Fprintln(cmd.OutOrStdout(), "rexecd", version()) },
	}
}

func setupCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "setup",
		Short: "make this machine fit for sessions, or say what is missing",
		Long: "As root, setup makes what sessions need. As anybody else it prints the commands\n" +
			"that root would have to run, and fails if there are any.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			missing := 0
			for _, s := range steps() {
				if s.done() {
					continue
				}
				fmt.Fprintln(cmd.OutOrStdout(), s.command)
				if os.Geteuid() != 0 {
					missing++
					continue
				}
				if err := s.mend(); err != nil {
					return fmt.Errorf("%s: %w", s.command, err)
				}
			}
			if missing > 0 {
				return fmt.Errorf("%d commands have to be run as root", missing)
			}
			return nil
		},
	}
}

// step is one thing that a machine needs.
type step struct {
	command string // that mends it
	done    func() bool
	mend    func() error
}

func steps() []step {
	const fuse = "/dev/fuse"
	list := []step{
		{
			"mknod -m 666 /dev/fuse c 10 229",
			func() bool { _, err := os.Stat(fuse); return err == nil },
			func() error { return unix.Mknod(fuse, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 229))) },
		},
		{
			"chmod 666 /dev/fuse",
			func() bool { i, err := os.Stat(fuse); return err == nil && i.Mode().Perm() == 0o666 },
			func() error { return os.Chmod(fuse, 0o666) },
		},
		{
			"mkdir -p " + filepath.Dir(config.DefaultFile),
			func() bool { _, err := os.Stat(filepath.Dir(config.DefaultFile)); return err == nil },
			func() error { return os.MkdirAll(filepath.Dir(config.DefaultFile), 0o755) },
		},
	}
	return append(list,
		sysctl("kernel/unprivileged_userns_clone", "1"),
		sysctl("kernel/apparmor_restrict_unprivileged_userns", "0"),
		sysctl("user/max_user_namespaces", "65536"))
}

// sysctl is a kernel setting, where the kernel has it. A count is right unless
// it is 0.
func sysctl(name, want string) step {
	file := "/proc/sys/" + name
	return step{
		"sysctl -w " + strings.ReplaceAll(name, "/", ".") + "=" + want,
		func() bool {
			b, err := os.ReadFile(file)
			have := strings.TrimSpace(string(b))
			return err != nil || have == want || len(want) > 1 && have != "0"
		},
		func() error { return os.WriteFile(file, []byte(want), 0) },
	}
}
