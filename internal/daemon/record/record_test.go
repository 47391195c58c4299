package record

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

func TestPutListDrop(t *testing.T) {
	d := Dir(filepath.Join(t.TempDir(), "a", "b"))
	if err := d.Make(); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for i, id := range []string{"bb", "aa"} {
		if err := d.Put(&Record{ID: id, Command: "make", Since: now.Add(time.Duration(i) * time.Second)}); err != nil {
			t.Fatal(err)
		}
	}
	list := List([]Dir{d, d + "none"})
	if len(list) != 2 || list[0].ID != "bb" || list[1].Command != "make" || list[0].UID != os.Getuid() {
		t.Fatalf("list %+v", list)
	}
	d.Drop("aa")
	if list := List([]Dir{d}); len(list) != 1 || list[0].ID != "bb" {
		t.Fatalf("after drop %+v", list)
	}
}

func TestStaleAndBrokenRecords(t *testing.T) {
	d := Dir(filepath.Join(t.TempDir(), "a", "b"))
	if err := d.Make(); err != nil {
		t.Fatal(err)
	}
	stale := filepath.Join(string(d), "s.json")
	os.WriteFile(stale, []byte(`{"id":"s","session":1,"session_started":77777777777}`), 0o600)
	os.WriteFile(filepath.Join(string(d), "broken.json"), []byte("{"), 0o600)
	os.Symlink("/etc/passwd", filepath.Join(string(d), "link.json"))
	if list := List([]Dir{d}); len(list) != 0 {
		t.Errorf("list %+v", list)
	}
	if _, err := os.Stat(stale); !os.IsNotExist(err) {
		t.Error("the stale record is still there")
	}
}

func TestForeignDirIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "x")
	os.Mkdir(dir, 0o700)
	os.Chmod(dir, 0o777)
	if err := Dir(dir).Make(); err == nil {
		t.Error("a directory that everybody writes was accepted")
	}
}

func TestSignal(t *testing.T) {
	// A process in a PID namespace of its own, where it is number 1.
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWUSER}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	own, me := uint32(Processes()[cmd.Process.Pid].uid), os.Getpid()
	for _, r := range []Record{
		{Inner: 1, Init: me, owner: own + 1},
		{Inner: 2, Init: me, owner: own},
		{Inner: 1, Init: cmd.Process.Pid, owner: own},
		{Inner: 1, Init: 1, owner: own},
		{Inner: 0, Init: me, owner: own},
	} {
		if err := r.Signal(syscall.SIGKILL); err == nil {
			t.Errorf("%+v: something was signalled", r)
		}
	}
	r := Record{Inner: 1, Init: me, owner: own}
	if err := r.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if cmd.Wait(); cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("ended by %v", cmd.ProcessState)
	}
}
