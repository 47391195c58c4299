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
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r := &Record{ID: "x", Pid: cmd.Process.Pid, owner: uint32(os.Getuid()) + 1}
	if err := r.Signal(syscall.SIGTERM); err == nil {
		t.Error("a process that is not the owner's was signalled")
	}
	r.owner = uint32(os.Getuid())
	if err := r.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	for _, pid := range []int{0, 1, -1} {
		if err := (&Record{Pid: pid}).Signal(0); err == nil {
			t.Errorf("process %d was signalled", pid)
		}
	}
}
