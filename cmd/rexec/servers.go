package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"rexec/internal/servers"
)

func serversCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "servers", Short: "the server database", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return listServers(cmd.OutOrStdout())
	}}
	cmd.AddCommand(
		&cobra.Command{Use: "list", Short: "list all servers", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			return listServers(cmd.OutOrStdout())
		}},
		&cobra.Command{Use: "add NAME [URL]", Short: "add a server to your list", Args: cobra.RangeArgs(1, 2), RunE: func(_ *cobra.Command, args []string) error {
			e := servers.Entry{Name: args[0]}
			if len(args) == 2 {
				e.URL = args[1]
			}
			return servers.Default().Add(e)
		}},
		&cobra.Command{Use: "remove NAME", Short: "remove a server from your list", Args: cobra.ExactArgs(1), RunE: func(_ *cobra.Command, args []string) error {
			return servers.Default().Remove(args[0])
		}},
		&cobra.Command{Use: "show NAME", Short: "show one server", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
			e, err := servers.Default().Show(args[0])
			if err != nil {
				return err
			}
			showServer(cmd.OutOrStdout(), e)
			return nil
		}})
	return cmd
}

func listServers(out io.Writer) error {
	all, err := servers.Default().List()
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	seen := make(map[string]bool)
	for _, e := range all {
		if seen[e.Name] {
			continue
		}
		seen[e.Name] = true
		state := ""
		if e.Disabled {
			state = "withdrawn"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", e.Name, e.URL, e.Source, state)
	}
	return w.Flush()
}

func showServer(out io.Writer, e servers.Entry) {
	fmt.Fprintf(out, "name: %s\nurl: %s\nfrom: %s", e.Name, e.URL, e.Source)
	if e.Line > 0 {
		fmt.Fprintf(out, ":%d", e.Line)
	}
	fmt.Fprintln(out)
	if e.Disabled {
		fmt.Fprintf(out, "withdrawn: %s\n", e.Message)
	}
	for what, list := range map[string][]string{"users": e.Allow, "machines": e.Clients} {
		if len(list) > 0 {
			fmt.Fprintf(out, "only for %s: %q\n", what, list)
		}
	}
}
