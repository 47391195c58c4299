package posix

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// asUserEnv names the directory in which a child of this test, run as nobody,
// runs the suite.
const asUserEnv = "REXEC_POSIX_AS_USER"

const nobody = 65534

func TestBareUnprivileged(t *testing.T) {
	if dir := os.Getenv(asUserEnv); dir != "" {
		Run(t, dir)
		return
	}
	if os.Geteuid() != 0 {
		return // TestBare ran as an ordinary user
	}
	dir, err := os.MkdirTemp("/tmp", "posix-user-")
	must(t, err)
	defer os.RemoveAll(dir)
	must(t, os.Chmod(dir, 0o777))
	// The program itself may lie where nobody cannot reach it.
	prog := filepath.Join(dir, "suite")
	self, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	must(t, os.WriteFile(prog, self, 0o755))
	cmd := exec.Command(prog, "-test.run", "^TestBareUnprivileged$", "-test.timeout", "60s")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), asUserEnv+"="+dir, "TMPDIR="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}
