// Labctl keeps a lab (package lab) between shell commands; scripts/lab runs
// it.
//
//	labctl up DIR BIN RTT_MS MBIT [LOSS]   make a lab, print "ready", keep it until killed
//	labctl on DIR client|server COMMAND ARG...
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"rexec/internal/testenv/lab"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) >= 5 && args[0] == "up":
		return up(args[1], args[2], args[3:])
	case len(args) >= 4 && args[0] == "on":
		return on(args[1], args[2], args[3:])
	}
	return errors.New("usage: labctl up DIR BIN RTT_MS MBIT [LOSS] | labctl on DIR client|server COMMAND")
}

func up(dir, bin string, numbers []string) error {
	var n [3]float64
	for i, s := range numbers[:min(3, len(numbers))] {
		var err error
		if n[i], err = strconv.ParseFloat(s, 64); err != nil {
			return err
		}
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	l, err := lab.Start(filepath.Join(dir, "files"), bin, lab.Config{
		RTT: time.Duration(n[0] * float64(time.Millisecond)), Mbit: n[1], Loss: n[2]})
	if err != nil {
		return err
	}
	hosts, err := json.Marshal(map[string]*lab.Host{"client": l.Client, "server": l.Server})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "hosts"), hosts, 0o600)
	}
	if err == nil {
		fmt.Println("ready")
		<-stop
	}
	return errors.Join(err, l.Close())
}

// on becomes the command on a host.
func on(dir, name string, command []string) error {
	data, err := os.ReadFile(filepath.Join(dir, "hosts"))
	if err != nil {
		return fmt.Errorf("no lab is up: %w", err)
	}
	var hosts map[string]*lab.Host
	if err := json.Unmarshal(data, &hosts); err != nil {
		return err
	}
	h := hosts[name]
	if h == nil {
		return fmt.Errorf("no host %q: client or server", name)
	}
	cmd := h.Command(command[0], command[1:]...)
	if cmd.Err != nil {
		return cmd.Err
	}
	path, err := exec.LookPath("nsenter")
	if err != nil {
		return err
	}
	env := append(cmd.Env, "TERM="+os.Getenv("TERM"))
	return fmt.Errorf("exec %s: %w", path, syscall.Exec(path, cmd.Args, env))
}
