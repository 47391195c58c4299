package journeys

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// project is a real C project of 39 files that every Go installation can get.
const project = "github.com/DataDog/zstd@v1.5.6"

const makefile = `CC = gcc
CFLAGS = -O1 -DZSTD_LEGACY_SUPPORT=4 -DZSTD_MULTITHREAD=1
OBJECTS = $(patsubst %.c,%.o,$(wildcard *.c)) huf_decompress_amd64.o

libzstd.a: $(OBJECTS)
	ar Drc $@ $^
`

// few are the files that are quick to compile.
const few = "pool.o threading.o debug.o zstd_common.o"

// subset are patterns of the sources of few.
var subset = []string{"pool.c", "threading.c", "debug.c", "zstd_common.c", "*.h"}

// sources writes the project, or what belongs to few of its files, to new
// directories below the journey's.
func (r *rig) sources(t *testing.T, dirs ...string) {
	t.Helper()
	from := moduleDir(t)
	var names []string
	patterns := subset
	if long {
		patterns = []string{"*.c", "*.h", "*.S"}
	}
	for _, pattern := range patterns {
		found, err := filepath.Glob(filepath.Join(from, pattern))
		if err != nil || len(found) == 0 {
			t.Fatalf("no %s in %s: %v", pattern, from, err)
		}
		names = append(names, found...)
	}
	for _, dir := range dirs {
		to := filepath.Join(r.home, dir)
		if err := os.Mkdir(to, 0o755); err != nil {
			t.Fatal(err)
		}
		cp := exec.Command("cp", append(append([]string{"--no-preserve=mode"}, names...), to)...)
		if out, err := cp.CombinedOutput(); err != nil {
			t.Fatalf("cp: %v: %s", err, out)
		}
		r.write(t, dir+"/Makefile", makefile)
	}
}

// moduleDir is where the Go command keeps the project's module.
func moduleDir(t *testing.T) string {
	t.Helper()
	cmd := exec.Command("go", "mod", "download", "-json", project)
	cmd.Dir = t.TempDir() // where there is no go.mod that it might change
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go mod download %s: %v: %s", project, err, out)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		t.Fatal(err)
	}
	return module.Dir
}

// build: a real build there gives the objects of a build here, with the
// tools from here and with the server's; the server's do not cross.
func build(t *testing.T, r *rig) {
	r.sources(t, "here", "own", "lent")
	begin := time.Now()
	r.local(t, "here", "make -s -j2 "+few)
	t.Logf("here: %.2f s", time.Since(begin).Seconds())
	makeFew := append([]string{"make", "-s", "-j2"}, strings.Fields(few)...)
	_, lent := r.there(t, "with the server's tools", "lent", tools, makeFew...)
	_, own := r.there(t, "with the tools from here", "own", "", makeFew...)
	r.same(t, "here", "own")
	r.same(t, "here", "lent")
	info, err := os.Stat("/usr/bin/make")
	if err != nil {
		t.Fatal(err)
	}
	if own.out < 10*int(info.Size()) {
		t.Errorf("the compiler came from here, but only %d bytes crossed", own.out)
	}
	if lent.out > 2<<20 {
		t.Errorf("with the server's tools %d bytes crossed from here", lent.out)
	}
	if long {
		r.buildAll(t)
	}
}

// buildAll builds the whole project after the few.
func (r *rig) buildAll(t *testing.T) {
	begin := time.Now()
	r.local(t, "here", "make -s -j2")
	t.Logf("all, here: %.2f s", time.Since(begin).Seconds())
	r.there(t, "all, with the server's tools", "lent", tools, "make", "-s", "-j2")
	r.same(t, "here", "lent")
	r.there(t, "all, with the tools from here", "own", "", "make", "-s", "-j2")
	r.same(t, "here", "own")
	r.there(t, "nothing to do", "own", "", "make", "-s", "-j2")
	r.there(t, "all again", "own", "", "make", "-s", "-j2", "-B")
	r.same(t, "here", "own")
}
