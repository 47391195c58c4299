package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"rexec/internal/daemon/config"
	"rexec/internal/daemon/denied"
)

func disallowedCommand(o *options) *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "disallowed",
		Short: "the paths of this machine that no job may have by SWITCH",
		Long: "The list has one absolute path a line; lines that begin with # are comments.\n" +
			"Sessions follow the file: a change holds for the next job.",
		Args: cobra.NoArgs,
		RunE: help,
	}
	c.PersistentFlags().StringVar(&file, "file", "", "the list's `file` (default: what the configuration says)")
	list := func() (string, error) {
		if file != "" {
			return file, nil
		}
		cfg, err := config.Read(o.configFile)
		return cfg.Disallowed, err
	}
	// with gives a subcommand that works on the list.
	with := func(use, short string, args cobra.PositionalArgs, f func(cmd *cobra.Command, file string, args []string) error) *cobra.Command {
		return &cobra.Command{Use: use, Short: short, Args: args, RunE: func(cmd *cobra.Command, args []string) error {
			file, err := list()
			if err != nil {
				return err
			}
			return f(cmd, file, args)
		}}
	}
	c.AddCommand(
		with("list", "print the list as sessions read it", cobra.NoArgs, func(cmd *cobra.Command, file string, _ []string) error {
			names, err := denied.Read(file)
			for _, n := range names {
				fmt.Fprintln(cmd.OutOrStdout(), n)
			}
			return err
		}),
		with("add PATH...", "put paths on the list", cobra.MinimumNArgs(1), func(_ *cobra.Command, file string, args []string) error {
			return denied.Add(file, args)
		}),
		with("remove PATH...", "take paths off the list", cobra.MinimumNArgs(1), func(_ *cobra.Command, file string, args []string) error {
			return denied.Remove(file, args)
		}),
		with("check", "say whether the list is right, and what is not there", cobra.NoArgs, func(cmd *cobra.Command, file string, _ []string) error {
			names, err := denied.Read(file)
			if err != nil {
				return err
			}
			for _, n := range names {
				if _, err := os.Stat(n); err != nil {
					fmt.Fprintf(cmd.OutOrStdout(), "%v\n", err)
				}
			}
			return nil
		}),
		with("edit", "change the list with $VISUAL or $EDITOR", cobra.NoArgs, func(cmd *cobra.Command, file string, _ []string) error {
			return denied.Edit(file, denied.Editor(), os.Stdin, os.Stdout, os.Stderr)
		}),
	)
	return c
}
