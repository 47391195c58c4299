// Command rexec runs a command on another machine as if it ran here.
package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"rexec/rer"
)

func main() {
	code := 0
	root := newRoot(&code)
	if err := root.Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "rexec: "+strings.ReplaceAll(err.Error(), "\n", " "))
		var refused *rer.Refused
		if errors.As(err, &refused) && refused.Hint != "" {
			fmt.Fprintln(os.Stderr, "hint: "+refused.Hint)
		}
		code = 255
	}
	os.Exit(code)
}
