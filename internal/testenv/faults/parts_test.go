package faults

import (
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"rexec/internal/transport"
	"rexec/rer"
)

func itoa(n int) string { return strconv.Itoa(n) }

// playSSH is an ssh to this machine: what is at the far end does not die with
// it, but loses its connection. The first argument is rexecd.
func playSSH(args []string) int {
	cmd := exec.Command(args[0], "stdio")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return 255
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 255
	}
	if err := cmd.Start(); err != nil {
		return 255
	}
	go func() {
		_, _ = io.Copy(in, os.Stdin)
		in.Close()
	}()
	_, _ = io.Copy(os.Stdout, out)
	if cmd.Wait() != nil {
		return 255
	}
	return 0
}

// playPeer is a server that does what the first argument says.
func playPeer(args []string) int {
	switch args[0] {
	case "garbage":
		for {
			if _, err := io.CopyN(os.Stdout, rand.Reader, 4096); err != nil {
				return 0
			}
		}
	case "silent":
		discard(os.Stdin)
	case "deaf":
		fmt.Print("rexecS1\n")
		select {} // home kills it
	case "refuses":
		fmt.Fprintln(os.Stderr, "Permission denied (publickey).")
		return 255
	case "short":
		fmt.Print("rexecS1\n")
	case "version":
		speak(&rer.Message{Hello: &rer.Hello{Versions: [2]int{98, 99}}})
	case "nonsense":
		speak(&rer.Message{Hello: &rer.Hello{Versions: [2]int{1, 1}}}, &rer.Message{}, nil)
	case "stalls":
		return playStalling(args[1])
	case "hostile":
		return playHostile()
	}
	return 0
}

// speak is a peer that says something and then waits for the end. nil is no
// message at all.
func speak(list ...*rer.Message) {
	rw, err := transport.Stdio()
	if err != nil {
		return
	}
	conn := transport.New(rw, false, transport.Options{})
	control, err := conn.Channel(rer.ControlChannel)
	if err != nil {
		return
	}
	for _, m := range list {
		b := []byte("nonsense")
		if m != nil {
			b, _ = m.Encode()
		}
		_ = control.Send(b)
	}
	<-conn.Done()
}

// playStalling passes all on to rexecd until the file named by the environment
// is there; then it reads no more of what home says.
func playStalling(rexecd string) int {
	cmd := exec.Command(rexecd, "stdio")
	cmd.Stdout = os.Stdout
	in, err := cmd.StdinPipe()
	if err != nil {
		return 255
	}
	if err := cmd.Start(); err != nil {
		return 255
	}
	for {
		if _, err := os.Stat(os.Getenv("STALL")); err == nil {
			break
		}
		buf := make([]byte, 4096)
		_ = syscall.SetNonblock(0, false)
		n, err := os.Stdin.Read(buf)
		if _, werr := in.Write(buf[:n]); err != nil || werr != nil {
			in.Close()
			_ = cmd.Wait()
			return 0
		}
	}
	for {
		time.Sleep(time.Hour) // home kills it
	}
}
