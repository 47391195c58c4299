// Command probe is an rexec whose options come from the environment, for the
// tests of package agent; with the argument "home" it is a home that answers
// every agent alike.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"rexec/agent"
	"rexec/agent/homeproto"
	"rexec/rer"

	"net"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "home" {
		if err := serve(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	o := agent.Options{
		Resolve: func(host string) (string, error) {
			if host == "unknown" {
				return "", &rer.Refused{Reason: rer.ReasonUnknownHost, Text: "unknown host", Hint: "add it"}
			}
			return host, nil
		},
		Serve: func(c *homeproto.Conn) error { return answer(c) },
	}
	if err := json.Unmarshal([]byte(os.Getenv("PROBE_OPTIONS")), &o); err != nil {
		fmt.Println(err)
		os.Exit(99)
	}
	os.Exit(agent.Run(o))
}

// serve ends when the file that PROBE_ALIVE names is gone.
func serve(args []string) error {
	path := ""
	if len(args) > 0 {
		path = args[0]
	}
	l, err := agent.Listen(path, []string{"/proc/self/exe", "home"})
	if err != nil || l == nil {
		return err
	}
	for {
		c, err := l.(*net.UnixListener).AcceptUnix()
		if err != nil {
			return err
		}
		if _, err := os.Stat(os.Getenv("PROBE_ALIVE")); err != nil {
			return nil
		}
		go answer(homeproto.NewConn(c))
	}
}

// answer ends each command with status 42 and says by which process.
func answer(c *homeproto.Conn) error {
	defer c.Close()
	_, files, err := c.RecvAsk()
	if err != nil {
		return err
	}
	fmt.Fprintf(files[3], "%d\n", os.Getpid())
	for _, f := range files {
		f.Close()
	}
	return c.SendAnswer(&homeproto.Answer{Ended: &rer.Ended{Status: rer.Status{Code: 42}}})
}
