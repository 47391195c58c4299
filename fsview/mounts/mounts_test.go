package mounts

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The tests need mount namespaces of their own: they run this program again.
// Whole views are tested with package launch, which has what serves them.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "stage" {
		if err := checkStage(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func checkStage() error {
	unix.Umask(0)
	if err := Prepare(); err != nil {
		return err
	}
	if b, err := os.ReadFile("/proc/self/stat"); err != nil || !strings.HasPrefix(string(b), "1 ") {
		return fmt.Errorf("proc is another namespace's: %q %v", b, err)
	}
	if err := os.WriteFile(stageDev+"/null", []byte("x"), 0); err != nil {
		return err
	}
	if err := os.WriteFile(stageDev+"/new", nil, 0o644); !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("dev is writable: %v", err)
	}
	if err := os.WriteFile(stageDev+"/shm/new", nil, 0o644); err != nil {
		return err
	}
	f, err := os.OpenFile(Ptmx, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if n, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPTN); err != nil || n != 0 {
		return fmt.Errorf("terminals are not the stage's own: %d %v", n, err)
	}
	if _, err := os.Stat(stageSys + "/kernel"); err != nil {
		return err
	}
	return nil
}

func TestPrepare(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "stage")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// A namespace in which this user has one id and no privilege outside.
func TestPrepareUnprivileged(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "stage")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 1000, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 1000, HostID: os.Getgid(), Size: 1}},
		AmbientCaps: []uintptr{unix.CAP_SYS_ADMIN},
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func TestBuildWithoutRoot(t *testing.T) {
	for _, spec := range []Spec{{}, {FUSE: []FUSE{{Path: "/home"}}}} {
		b := Builder{Spec: spec}
		if _, err := b.Build(); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%+v: %v", spec, err)
		}
	}
}

func TestOptions(t *testing.T) {
	b := Builder{Spec: Spec{DefaultPermissions: true}}
	want := fmt.Sprintf("fd=7,rootmode=40000,user_id=%d,group_id=%d,allow_other,max_read=1048576,default_permissions", os.Getuid(), os.Getgid())
	if got := b.options(7, unix.S_IFDIR); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	f := FUSE{Type: "rexec", ReadOnly: true}
	if f.fsType() != "fuse.rexec" || f.flags()&unix.MS_RDONLY == 0 {
		t.Errorf("type %s, flags %x", f.fsType(), f.flags())
	}
}
