package journeys

import (
	"fmt"
	"strings"
	"testing"
)

// git: a clone, a commit and a gc there give what they give here.
func git(t *testing.T, r *rig) {
	r.sources(t, "src")
	vars := r.Client.Vars
	defer func() { r.Client.Vars = vars }()
	r.Client.Vars = append(vars[:len(vars):len(vars)],
		"GIT_AUTHOR_NAME=n", "GIT_AUTHOR_EMAIL=n@x", "GIT_AUTHOR_DATE=2020-01-01T00:00:00Z",
		"GIT_COMMITTER_NAME=n", "GIT_COMMITTER_EMAIL=n@x", "GIT_COMMITTER_DATE=2020-01-01T00:00:00Z")
	r.local(t, "", `git config --global init.defaultBranch main; git config --global gc.autoDetach false
		mkdir here there; cd src; git init -q; git add *.h Makefile; git commit -qm headers; git add .; git commit -qm all`)
	steps := []struct{ what, text string }{
		{"git clone", "git clone -q ../src work"},
		{"git commit", "cd work && echo changed >>zstd.h && git mv pool.c lake.c && git commit -qam changed && git status --short && git log --format=%H%s"},
		{"git gc", "cd work && git gc -q && git count-objects -v | grep -v size"},
		{"git fsck", "cd work && git fsck --strict 2>&1 && git ls-tree -r HEAD"},
	}
	for _, step := range steps {
		want := r.local(t, "here", step.text)
		got, _ := r.there(t, step.what, "there", "", step.text)
		if got != want {
			t.Errorf("%s: got %q, want %q", step.what, got, want)
		}
	}
	// Git here trusts what git there left.
	if out := r.local(t, "there/work", "git fsck --strict 2>&1; git status --short"); out != "" {
		t.Errorf("here, git says of the clone there: %s", out)
	}
	r.local(t, "", "rm -r here/work/.git there/work/.git")
	r.same(t, "here/work", "there/work")
}

// tar: trees go both ways through tar, links, modes and times kept.
func tar(t *testing.T, r *rig) {
	r.sources(t, "tree")
	r.local(t, "tree", `mkdir -p d/e; ln -s ../pool.c d/soft; ln pool.h d/hard; mkfifo d/fifo; chmod 6755 zstd.h; chmod 700 d/e
		touch -d 2001-02-03T04:05:06.789 d/old; printf 'a\n' >"d/$(printf 'odd\nname \377')"; truncate -s 1000000 d/sparse`)
	r.local(t, "", "mkdir out in inside")
	const times = ` && find . ! -type d -printf '%P %T@\n' | sort`
	want := r.local(t, "tree", "true"+times)
	for _, way := range []struct{ what, to, text string }{
		{"tar out", "out", "rexec --stats server tar -C tree --format=posix -cf - . | tar -C out -xf -"},
		{"tar in", "in", "tar -C tree --format=posix -cf - . | rexec --stats server tar -C in -xf -"},
		{"tar inside", "inside", "rexec --stats server 'tar -C tree --format=posix -cSf - . | tar -C inside -xf -'"},
	} {
		out, c := split(t, r.local(t, "", way.text))
		t.Logf("%s: %s", way.what, c.line)
		if out != "" {
			t.Errorf("%s printed %q", way.what, out)
		}
		r.same(t, "tree", way.to)
		if got := r.local(t, way.to, "true"+times); strings.Join(onlyIn(want, got), "") != "" {
			t.Errorf("%s: times: only at the source: %q", way.what, onlyIn(want, got))
		}
	}
}

// venv: a Python environment made there works there and here.
func venv(t *testing.T, r *rig) {
	r.local(t, "", "mkdir here there")
	pip := " --without-pip"
	if long {
		pip = "" // from the wheel that Python brings; nothing is downloaded
	}
	const ask = `v/bin/python3 -c 'import sys, sqlite3, json; print(sys.version, sys.prefix.split("/")[-1], json.dumps([1]))'`
	r.local(t, "here", "/usr/bin/python3 -m venv"+pip+" v")
	want := r.local(t, "here", ask)
	r.there(t, "python3 -m venv"+pip, "there", "", "/usr/bin/python3 -m venv"+pip+" v")
	got, _ := r.there(t, "python3 of it", "there", "", ask)
	if here := r.local(t, "there", ask); got != want || here != want {
		t.Errorf("it says %q there and %q here, want %q", got, here, want)
	}
	names := "find v -name '*.pyc' -prune -o -printf '%p %y %m\n' | sort"
	if got, want := r.local(t, "there", names), r.local(t, "here", names); got != want {
		t.Errorf("made there %q\nmade here %q", onlyIn(got, want), onlyIn(want, got))
	}
}

// sqlite: a database written there, with locks and syncs, is whole.
func sqlite(t *testing.T, r *rig) {
	var b strings.Builder
	b.WriteString("create table t(a integer primary key, b text);\nbegin;\n")
	for i := range 10000 {
		fmt.Fprintf(&b, "insert into t values(%d, 'value %d');\n", i, i*i)
	}
	b.WriteString("commit;\nselect count(*), sum(length(b)) from t;\n")
	r.write(t, "one.sql", b.String())
	b.Reset()
	b.WriteString("create table u(a, b);\n")
	for i := range some(100, 20) {
		fmt.Fprintf(&b, "insert into u values(%d, %d);\n", i, i*i)
	}
	b.WriteString("select count(*), sum(b) from u;\n")
	r.write(t, "many.sql", b.String())
	r.local(t, "", "mkdir here there")
	for _, script := range []string{"one.sql", "many.sql"} {
		text := "sqlite3 db <../" + script
		want := r.local(t, "here", text)
		got, _ := r.there(t, "sqlite3 "+script, "there", "", text)
		if got != want {
			t.Errorf("%s: got %q, want %q", script, got, want)
		}
	}
	r.same(t, "here", "there")
	const check = "sqlite3 db 'pragma integrity_check; select count(*) from t; select count(*) from u'"
	if got := r.local(t, "there", check); got != fmt.Sprintf("ok\n10000\n%d\n", some(100, 20)) {
		t.Errorf("here, sqlite3 says of the database made there: %q", got)
	}
	r.contended(t)
}

// contended: a process here and one there count in one database at once.
func (r *rig) contended(t *testing.T) {
	rounds := some(20, 5)
	r.local(t, "there", "sqlite3 db 'create table n(a); insert into n values(0)'")
	count := fmt.Sprintf("for i in $(seq %d); do sqlite3 -cmd '.timeout 60000' db 'update n set a = a + 1'; done", rounds)
	out := r.local(t, "there", "rexec server \""+strings.ReplaceAll(count, "$", `\$`)+"\" & "+count+"; wait; sqlite3 db 'select a from n'")
	if want := fmt.Sprintln(2 * rounds); out != want {
		t.Errorf("two counted to %q, want %q", out, want)
	}
}
