package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"rexec/rer"
)

// maxSkew is how far apart clocks may be before make is confused.
const maxSkew = 100 * time.Millisecond

func doctorCommand() *cobra.Command {
	return &cobra.Command{Use: "doctor HOST", Short: "check that a server can be used", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		if _, err := resolve(args[0]); err != nil {
			return err
		}
		return examine(cmd.OutOrStdout(), args[0])
	}}
}

// examine runs commands there, the simplest first. What rexec says when one
// fails names the cause and what mends it.
func examine(out io.Writer, host string) error {
	first, _, err := try(host, "true")
	if err != nil {
		return fmt.Errorf("%s cannot run commands: %w", host, err)
	}
	warm, _, err := try(host, "true")
	if err != nil {
		return fmt.Errorf("%s ran one command and no second: %w", host, err)
	}
	fmt.Fprintf(out, "ok: commands run: the first in %s, the second in %s\n", round(first), round(warm))
	before := time.Now()
	took, said, err := try(host, "date +%s%N; uname -m; grep -c ^processor /proc/cpuinfo; uname -r")
	if err != nil {
		return fmt.Errorf("%s: %w", host, err)
	}
	facts := strings.Fields(said)
	if len(facts) != 4 {
		return fmt.Errorf("%s: unexpected answer %q", host, said)
	}
	reportClock(out, host, facts[0], before, took)
	var here unix.Utsname
	if err := unix.Uname(&here); err == nil {
		compare(out, "machine type", unix.ByteSliceToString(here.Machine[:]), facts[1])
	}
	compare(out, "number of processors", strconv.Itoa(runtime.NumCPU()), facts[2])
	fmt.Fprintf(out, "ok: kernel there is %s\n", facts[3])
	return nil
}

func compare(out io.Writer, what, here, there string) {
	if here == there {
		fmt.Fprintf(out, "ok: %s: %s\n", what, here)
		return
	}
	fmt.Fprintf(out, "note: %s: %s here, %s there\n", what, here, there)
}

func round(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }

// reportClock: the answer was made at some time within took.
func reportClock(out io.Writer, host, nanoseconds string, before time.Time, took time.Duration) {
	n, err := strconv.ParseInt(nanoseconds, 10, 64)
	if err != nil {
		fmt.Fprintf(out, "problem: the clock of %s cannot be read: %q\n", host, nanoseconds)
		return
	}
	there := time.Unix(0, n)
	skew := max(before.Sub(there), there.Sub(before.Add(took)), 0)
	if skew > maxSkew {
		fmt.Fprintf(out, "problem: clocks differ by %s or more; mend: timedatectl set-ntp true, there and here\n", round(skew))
		return
	}
	fmt.Fprintln(out, "ok: clocks agree")
}

// try runs a command there as a user would.
func try(host, text string) (time.Duration, string, error) {
	cmd := exec.Command("/proc/self/exe", "-n", "-T", "-C", "/", host, text)
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "SWITCH=") {
			cmd.Env = append(cmd.Env, e)
		}
	}
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	start := time.Now()
	err := cmd.Run()
	took := time.Since(start)
	if err != nil {
		if line, hint, _ := strings.Cut(strings.TrimSpace(said.String()), "\nhint: "); line != "" {
			err = &rer.Refused{Text: strings.TrimPrefix(line, "rexec: "), Hint: hint}
		}
		return took, "", err
	}
	return took, out.String(), nil
}
