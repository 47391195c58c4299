package denied

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func content(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// only checks that nothing is left beside the list.
func only(t *testing.T, file string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(file))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if n := e.Name(); n != filepath.Base(file) && !strings.HasSuffix(n, ".lock") && n != "ed" {
			t.Errorf("left behind: %s", n)
		}
	}
}

func TestAddRemove(t *testing.T) {
	file := filepath.Join(t.TempDir(), "sub", "disallowed")
	if err := Add(file, []string{"/etc/", "/root"}); err != nil {
		t.Fatal(err)
	}
	write(t, file, "# mine\n"+content(t, file)+"//etc\n/last")
	if err := Add(file, []string{"/etc", "/new"}); err != nil {
		t.Fatal(err)
	}
	if got, want := content(t, file), "# mine\n/etc\n/root\n//etc\n/last\n/new\n"; got != want {
		t.Errorf("added: %q, not %q", got, want)
	}
	if err := Remove(file, []string{"/etc", "/last/"}); err != nil {
		t.Fatal(err)
	}
	if got, want := content(t, file), "# mine\n/root\n/new\n"; got != want {
		t.Errorf("removed: %q, not %q", got, want)
	}
	for _, bad := range []string{"etc", "", "/a\n/b", "/x\x00", "# c"} {
		if err := Add(file, []string{bad}); err == nil {
			t.Errorf("%q was added", bad)
		}
	}
	if err := Remove(file, []string{"/absent"}); err == nil {
		t.Error("what is not there was removed")
	}
	if got, want := content(t, file), "# mine\n/root\n/new\n"; got != want {
		t.Errorf("after refusals: %q, not %q", got, want)
	}
	only(t, file)
}

func TestBrokenListIsLeftAlone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "disallowed")
	write(t, file, "/etc\nrelative\n")
	err := Add(file, []string{"/x"})
	if err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("broken list: %v", err)
	}
	if got := content(t, file); got != "/etc\nrelative\n" {
		t.Errorf("broken list became %q", got)
	}
}

func TestEdit(t *testing.T) {
	file := filepath.Join(t.TempDir(), "disallowed")
	write(t, file, "/etc\n")
	os.Chmod(file, 0o640)
	editor := func(text string) string {
		script := filepath.Join(filepath.Dir(file), "ed")
		if err := os.WriteFile(script, fmt.Appendf(nil, "#!/bin/sh\nprintf '%s' >\"$1\"\n", text), 0o755); err != nil {
			t.Fatal(err)
		}
		return script
	}
	if err := Edit(file, editor(`/etc\n/root\n`), nil, nil, nil); err != nil {
		t.Fatal(err)
	}
	if got := content(t, file); got != "/etc\n/root\n" {
		t.Errorf("edited: %q", got)
	}
	if info, _ := os.Stat(file); info.Mode().Perm() != 0o640 {
		t.Errorf("mode became %v", info.Mode())
	}
	only(t, file)
	err := Edit(file, editor(`/etc\n/ok\nbad\n`), nil, nil, nil)
	if err == nil || !strings.Contains(err.Error(), "line 3") {
		t.Fatalf("broken text: %v", err)
	}
	if got := content(t, file); got != "/etc\n/root\n" {
		t.Errorf("after a broken edit: %q", got)
	}
	drafts, _ := filepath.Glob(file + ".edit*")
	if len(drafts) != 1 || !strings.Contains(err.Error(), drafts[0]) || content(t, drafts[0]) != "/etc\n/ok\nbad\n" {
		t.Errorf("drafts %q, error %v", drafts, err)
	}
	if err := Edit(file, "false", nil, nil, nil); err == nil {
		t.Error("an editor that failed was believed")
	}
}

func TestEditLocksOthersOut(t *testing.T) {
	file := filepath.Join(t.TempDir(), "disallowed")
	unlock, err := lock(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := Add(file, []string{"/x"}); err == nil || !strings.Contains(err.Error(), "someone else") {
		t.Errorf("while locked: %v", err)
	}
	unlock()
	if err := Add(file, []string{"/x"}); err != nil {
		t.Error(err)
	}
}

func TestFollower(t *testing.T) {
	file := filepath.Join(t.TempDir(), "disallowed")
	var faults []string
	f := Follow(file, func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) })
	check := func(what string, want ...string) {
		t.Helper()
		for range 2 {
			if got := f.Current(); !slices.Equal(got, want) {
				t.Errorf("%s: %q, not %q", what, got, want)
			}
		}
	}
	check("no file")
	swap(t, file, "/etc\n")
	check("first", "/etc")
	swap(t, file, "/etc\nbad\n")
	check("broken", "/etc")
	if len(faults) != 1 || !strings.Contains(faults[0], "line 2") {
		t.Errorf("faults: %q", faults)
	}
	swap(t, file, "/etc\n/root\n")
	check("mended", "/etc", "/root")
	os.Remove(file)
	check("removed")

	swap(t, file, "bad\n")
	fresh := Follow(file, func(string, ...any) {})
	if got := fresh.Current(); !slices.Equal(got, []string{"/"}) {
		t.Errorf("broken from the start: %q", got)
	}
}

// swap replaces the list as an administrator would.
func swap(t *testing.T, file, text string) {
	t.Helper()
	if err := replace(file, []byte(text)); err != nil {
		t.Fatal(err)
	}
}
