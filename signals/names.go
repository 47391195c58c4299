package signals

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Count is the number of the highest signal, signal(7).
const Count = 64

// The C library's real-time range, which shells count RTMIN and RTMAX by.
const (
	rtMin = 34
	rtMax = Count
)

// Name gives the name of a signal without SIG, such as "TERM", "RTMIN+3".
func Name(signo int) string {
	if name := unix.SignalName(unix.Signal(signo)); name != "" {
		return strings.TrimPrefix(name, "SIG")
	}
	switch {
	case signo == rtMin:
		return "RTMIN"
	case signo == rtMax:
		return "RTMAX"
	case signo > rtMin && signo <= (rtMin+rtMax)/2:
		return fmt.Sprintf("RTMIN+%d", signo-rtMin)
	case signo > rtMin && signo < rtMax:
		return fmt.Sprintf("RTMAX-%d", rtMax-signo)
	}
	return strconv.Itoa(signo)
}

// Parse takes a name with or without SIG, in either case, or a number.
func Parse(s string) (int, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n < 0 || n > Count {
			return 0, fmt.Errorf("signal %s: out of range", s)
		}
		return n, nil
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if n := unix.SignalNum("SIG" + name); n != 0 {
		return int(n), nil
	}
	for base, start := range map[string]int{"RTMIN": rtMin, "RTMAX": rtMax} {
		rest, ok := strings.CutPrefix(name, base)
		if !ok {
			continue
		}
		off, err := strconv.Atoi(rest)
		if rest == "" {
			off, err = 0, nil
		}
		if n := start + off; err == nil && n >= rtMin && n <= rtMax {
			return n, nil
		}
	}
	return 0, fmt.Errorf("signal %q: unknown", s)
}
