package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log"
	"os"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"rexec/agent"
	"rexec/agent/home"
	"rexec/agent/homeproto"
	"rexec/signals"
)

// homeStart is how an agent starts a home: the socket's path follows.
func homeStart() []string { return []string{"/proc/self/exe", "home", "serve"} }

// serveHere is home within the agent's process.
func serveHere(c *homeproto.Conn) error {
	h, err := home.New(home.Options{})
	if err != nil {
		return err
	}
	defer h.Close()
	h.ServeConn(c)
	return nil
}

func homeCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "home", Short: "the process that links agents and servers", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return cmd.Help()
	}}
	cmd.AddCommand(
		&cobra.Command{Use: "status", Short: "show links and jobs", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			return homeStatus(cmd)
		}},
		&cobra.Command{Use: "stop", Short: "end when no job is left", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
			_, err := askHome(&homeproto.Ask{Stop: true})
			return err
		}},
		&cobra.Command{Use: "serve [SOCKET]", Hidden: true, Args: cobra.MaximumNArgs(1), RunE: func(_ *cobra.Command, args []string) error {
			return serveHome(strings.Join(args, ""))
		}})
	return cmd
}

// serveHome is both of home's processes: the first is given the path.
func serveHome(path string) error {
	l, err := agent.Listen(path, homeStart())
	if err != nil || l == nil {
		return err
	}
	opt := home.Options{Rexecd: os.Getenv("REXEC_REXECD")}
	if name := os.Getenv("REXEC_HOME_LOG"); name != "" {
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		opt.Logf = log.New(f, "home: ", log.LstdFlags|log.Lmicroseconds).Printf
	}
	h, err := home.New(opt)
	if err != nil {
		return err
	}
	defer h.Close()
	return h.Serve(l)
}

// askHome asks the running home; nil without one.
func askHome(ask *homeproto.Ask) (*homeproto.Listing, error) {
	conn, err := agent.Connect(os.Getenv("REXEC_HOME_SOCKET"), nil)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SendAsk(ask, nil); err != nil {
		return nil, err
	}
	a, err := conn.RecvAnswer()
	switch {
	case err != nil:
		return nil, err
	case a.Refused != nil:
		return nil, a.Refused
	case a.Listing == nil:
		return nil, errors.New("home gave no listing")
	}
	return a.Listing, nil
}

func homeStatus(cmd *cobra.Command) error {
	list, err := askHome(&homeproto.Ask{List: true})
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	if list == nil {
		fmt.Fprintln(out, "no home process runs")
		return nil
	}
	fmt.Fprintf(out, "home process %d, %d jobs, %d links\n", list.Pid, len(list.Jobs), len(list.Links))
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	for _, l := range list.Links {
		fmt.Fprintf(w, "%s\t%s\t%d jobs\t%d bytes out\t%d bytes in\n", l.Target, l.Peer, l.Jobs, l.BytesOut, l.BytesIn)
	}
	return w.Flush()
}

func psCommand() *cobra.Command {
	return &cobra.Command{Use: "ps", Short: "list your running jobs", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		list, err := askHome(&homeproto.Ask{List: true})
		if err != nil {
			return err
		}
		w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
		fmt.Fprintln(w, "PID\tSERVER\tREMOTE\tSTATE\tTIME\tCOMMAND")
		for _, j := range jobs(list) {
			age := time.Since(time.Unix(0, j.Since)).Truncate(time.Second)
			fmt.Fprintf(w, "%d\t%s\t%d\t%s\t%s\t%s\n", j.Agent, j.Server, j.Remote, j.State, age, printable(j.Command))
		}
		return w.Flush()
	}}
}

func jobs(list *homeproto.Listing) []homeproto.Job {
	if list == nil {
		return nil
	}
	return list.Jobs
}

// printable keeps a command from moving the terminal's cursor.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, s)
}

func killCommand() *cobra.Command {
	return &cobra.Command{Use: "kill PID [SIGNAL]", Short: "send a signal to a job", Args: cobra.RangeArgs(1, 2), RunE: func(_ *cobra.Command, args []string) error {
		signo := int(syscall.SIGTERM)
		if len(args) == 2 {
			var err error
			if signo, err = signals.Parse(strings.TrimPrefix(args[1], "-")); err != nil {
				return err
			}
		}
		list, err := askHome(&homeproto.Ask{List: true})
		if err != nil {
			return err
		}
		for _, j := range jobs(list) {
			if id := fmt.Sprint(j.Agent); args[0] == id || args[0] == j.Sysid+":"+id {
				// The agent passes it on, and dies of SIGKILL as the job does.
				return syscall.Kill(int(j.Agent), syscall.Signal(signo))
			}
		}
		return fmt.Errorf("no job has the number %s", args[0])
	}}
}
