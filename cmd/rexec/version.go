package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"rexec/rer"
)

func versionCommand() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "print the version", Args: cobra.NoArgs, Run: func(cmd *cobra.Command, _ []string) {
		fmt.Fprintf(cmd.OutOrStdout(), "rexec %s, protocol %d to %d, %s %s/%s\n",
			build(), rer.VersionMin, rer.VersionMax, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	}}
}

// build is the module's version, else the commit that it was built from.
func build() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "(unknown)"
	}
	version := info.Main.Version
	if version == "" || version == "(devel)" {
		version = "(devel)"
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				version = s.Value
			}
		}
	}
	return version
}

func cacheCommand() *cobra.Command {
	return &cobra.Command{Use: "cache", Short: "the cache on servers' disks", RunE: func(cmd *cobra.Command, _ []string) error {
		fmt.Fprintln(cmd.OutOrStdout(), "this version keeps no cache on disk")
		return nil
	}}
}
