package disallow

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

// TestSwitchRule is the rule of which name comes from where: (SWITCH value,
// name) to whether the server has it.
func TestSwitchRule(t *testing.T) {
	for _, c := range []struct {
		value, name string
		server      bool
	}{
		// The patent's own example.
		{"/dir1/dir2", "/dir1/dir2/dir3/filename", true},
		{"/dir1/dir2", "/dir1/dir3/filename", false},
		// Whole components.
		{"/dir1/dir2", "/dir1/dir2", true},
		{"/dir1/dir2", "/dir1/dir22", false},
		{"/dir1/dir2", "/dir1/dir2.bak", false},
		{"/dir1/dir2", "/dir1/dir", false},
		{"/dir1/dir2", "/dir1", false},
		{"/dir1/dir2", "/", false},
		{"/dir1/dir2", "/dir2", false},
		{"/dir1/dir2", "/x/dir1/dir2", false},
		{"/dir1/dir2", "/dir1/dir2/", true},
		{"/dir1/dir2/", "/dir1/dir2", true},
		{"/dir1/dir2//", "/dir1/dir2/x", true},
		{"//dir1//dir2", "/dir1/dir2/x", true},
		{"/dir1/./dir2", "/dir1/dir2/x", true},
		{"/dir1/x/../dir2", "/dir1/dir2/x", true},
		{"/dir1/dir2", "/dir1//dir2/x", true},
		{"/dir1/dir2", "/dir1/./dir2/x", true},
		{"/dir1/dir2", "/dir1/dir2/../dir3", false},
		{"/dir1/dir2", "/dir1/dir2/..", false},
		{"/dir1/dir2", "/dir1/dir3/../dir2/f", true},
		{"/tmp", "/tmp/../etc/passwd", false},
		{"/tmp", "/../tmp/x", true},
		{"/tmp", "/..", false},
		// The root.
		{"/", "/", true},
		{"/", "/etc", true},
		{"/", "/etc/passwd", true},
		{"//", "/etc/passwd", true},
		{"/.", "/etc/passwd", true},
		{"/..", "/etc/passwd", true},
		// Nothing asked.
		{"", "/etc/passwd", false},
		{":", "/etc/passwd", false},
		{"::", "/", false},
		// Relative elements are ignored.
		{"tmp", "/tmp", false},
		{"./tmp", "/tmp", false},
		{"../tmp", "/tmp", false},
		{".", "/", false},
		{"tmp:/usr", "/tmp/x", false},
		{"tmp:/usr", "/usr/x", true},
		{"~/x", "/root/x", false},
		// Lists: one match suffices, the order is of no matter.
		{"/usr:/tmp", "/tmp/x", true},
		{"/tmp:/usr", "/tmp/x", true},
		{"/tmp:/usr", "/usr/bin/cc", true},
		{"/tmp:/usr", "/var/x", false},
		{":/tmp:", "/tmp/x", true},
		{"/tmp::/usr", "/usr/x", true},
		{"/usr:/usr/local", "/usr/local/bin", true},
		{"/usr/local:/usr", "/usr/bin", true},
		{"/usr/local", "/usr/bin", false},
		{"/usr/local", "/usr/local", true},
		{"/tmp:/tmp", "/tmp", true},
		// Names that are not absolute are never switched.
		{"/tmp", "tmp/x", false},
		{"/tmp", "", false},
		{"/tmp", "./tmp", false},
		{"/", "x", false},
		// Odd bytes are bytes.
		{"/a b", "/a b/c", true},
		{"/a b", "/a", false},
		{"/A", "/a", false},
		{"/a\xff", "/a\xff/b", true},
		{"/a\xff", "/a\xfe/b", false},
		{"/a\nb", "/a\nb/c", true},
		{"/a*", "/ab", false},
		{"/...", "/.../x", true},
		{"/...", "/..", false},
		{"/.hidden", "/.hidden/x", true},
		{"/a\x00b", "/a", false},
		{"/ü", "/ü/x", true},
		{"/a=b", "/a=b/c", true},
	} {
		if got := Match(Split(c.value), c.name); got != c.server {
			t.Errorf("SWITCH=%q, %q: from the server = %v, not %v", c.value, c.name, got, c.server)
		}
	}
}

// TestFilter is the rule of deletion: (SWITCH, DISALLOWED) to what is left,
// and what of DISALLOWED lies below it.
func TestFilter(t *testing.T) {
	for _, c := range []struct{ value, disallowed, kept, dropped, inside string }{
		{"/etc:/etc/ssl:/tmp", "/etc", "/tmp", "/etc:/etc/ssl", ""},
		{"/tmp:/etc", "/etc", "/tmp", "/etc", ""},
		{"/etc", "/etc", "", "/etc", ""},
		{"/etc/ssl", "/etc", "", "/etc/ssl", ""},
		{"/etc/ssl/certs", "/etc/ssl", "", "/etc/ssl/certs", ""},
		{"/etcetera", "/etc", "/etcetera", "", ""},
		{"/et", "/etc", "/et", "", ""},
		{"/etc.d", "/etc", "/etc.d", "", ""},
		{"/tmp", "", "/tmp", "", ""},
		{"", "/etc", "", "", ""},
		{"", "", "", "", ""},
		// The root.
		{"/", "/", "", "/", ""},
		{"/tmp:/usr", "/", "", "/tmp:/usr", ""},
		{"/", "/etc/secret", "/", "", "/etc/secret"},
		{"/", "/etc:/root", "/", "", "/etc:/root"},
		{"/:/etc", "/etc", "/", "/etc", "/etc"},
		{"/", "", "/", "", ""},
		// Shorter than a disallowed one: kept, with a hole.
		{"/etc", "/etc/secret", "/etc", "", "/etc/secret"},
		{"/usr", "/usr/local/private:/usr/share", "/usr", "", "/usr/local/private:/usr/share"},
		{"/usr", "/usr/local/private:/usr/local", "/usr", "", "/usr/local"},
		{"/usr", "/usr/local:/usr/local/private", "/usr", "", "/usr/local"},
		{"/usr", "/usr2/x", "/usr", "", ""},
		{"/usr", "/var/x", "/usr", "", ""},
		{"/usr:/var", "/usr/a:/var/b", "/usr:/var", "", "/usr/a:/var/b"},
		{"/usr:/usr/a", "/usr/a", "/usr", "/usr/a", "/usr/a"},
		{"/usr:/usr/a/b", "/usr/a", "/usr", "/usr/a/b", "/usr/a"},
		// Names are made clean first.
		{"/etc/", "/etc", "", "/etc", ""},
		{"//etc", "/etc", "", "/etc", ""},
		{"/./etc", "/etc", "", "/etc", ""},
		{"/tmp/../etc", "/etc", "", "/etc", ""},
		{"/tmp/../etc/x/..", "/etc", "", "/etc", ""},
		{"/etc/../tmp", "/etc", "/tmp", "", ""},
		{"/../etc", "/etc", "", "/etc", ""},
		{"/etc", "/etc/", "", "/etc", ""},
		{"/etc", "//etc", "", "/etc", ""},
		{"/etc", "/tmp/../etc", "", "/etc", ""},
		{"/etc/x", "/etc/.", "", "/etc/x", ""},
		// Order, repetition, rubbish.
		{"/b:/a:/c", "/a", "/b:/c", "/a", ""},
		{"/c:/b:/a", "", "/c:/b:/a", "", ""},
		{"/a:/a:/a/", "", "/a", "", ""},
		{"etc:/a", "/etc", "/a", "", ""},
		{"::/a::", "/etc", "/a", "", ""},
		{"/a:/b", "/c:/d:/b", "/a", "/b", ""},
		{"/a b:/a", "/a", "/a b", "/a", ""},
		{"/a", "/A", "/a", "", ""},
		{"/home/u/bin:/home", "/home/u", "/home", "/home/u/bin", "/home/u"},
	} {
		disallowed, err := Parse([]byte(strings.ReplaceAll(c.disallowed, ":", "\n")))
		if err != nil {
			t.Fatal(err)
		}
		kept, dropped := Filter(Split(c.value), disallowed)
		var inside []string
		for _, k := range kept {
			inside = append(inside, Inside(k, disallowed)...)
		}
		for _, r := range []struct {
			what, want string
			got        []string
		}{{"kept", c.kept, kept}, {"dropped", c.dropped, dropped}, {"inside", c.inside, inside}} {
			if got := strings.Join(r.got, ":"); got != r.want {
				t.Errorf("SWITCH=%q DISALLOWED=%q: %s %q, not %q", c.value, c.disallowed, r.what, got, r.want)
			}
		}
	}
}

func TestParse(t *testing.T) {
	for _, c := range []struct {
		text string
		want string // colon list
		line int    // of the error; 0: none
	}{
		{"", "", 0},
		{"\n\n", "", 0},
		{"# nothing\n", "", 0},
		{"\t# x\ty\n", "", 0},
		{"/etc", "/etc", 0},
		{"/etc\n", "/etc", 0},
		{"/etc\n/root\n", "/etc:/root", 0},
		{"  /etc\t\n", "/etc", 0},
		{"/etc/\n//etc\n/etc/.\n", "/etc", 0},
		{"/a b\n", "/a b", 0},
		{"/a\xff\n", "/a\xff", 0},
		{"/dev/x:y\n", "/dev/x:y", 0},
		{"/a#b\n", "/a#b", 0},
		{"/\n", "/", 0},
		{"/tmp/../etc\n", "/etc", 0},
		{"etc\n", "", 1},
		{"/etc\n./x\n", "", 2},
		{"/etc\n\n# c\n~root\n", "", 4},
		{"/etc\r\n", "", 1},
		{"/e\ttc\n", "", 1},
		{"/e\x00tc\n", "", 1},
		{"# \x00\n", "", 1},
		{"# \x1b[1m\n", "", 1},
		{"/etc\x7f\n", "", 1},
		{"\x7fELF\x02\x01\n", "", 1},
		{"\xff\xfe/\x00e\x00\n", "", 1},
		{"\xef\xbb\xbf/etc\n", "", 1},
		{"/etc # mine\n", "", 1},
		{"/etc:/root\n", "", 1},
		{"/etc /.\n", "", 1},
		{"/../etc\n", "", 1},
		{"/a/../../etc\n", "", 1},
		{"/ok\n/" + strings.Repeat("x", MaxLine) + "\n", "", 2},
		{"/" + strings.Repeat("x", MaxLine-1) + "\n", "/" + strings.Repeat("x", MaxLine-1), 0},
		{strings.Repeat("#\n", MaxFile), "", 1},
	} {
		list, err := Parse([]byte(c.text))
		var syntax *SyntaxError
		switch {
		case c.line == 0 && err != nil:
			t.Errorf("%.40q: %v", c.text, err)
		case c.line != 0 && (!errors.As(err, &syntax) || syntax.Line != c.line || list != nil):
			t.Errorf("%.40q: %q, %v, not an error in line %d", c.text, list, err, c.line)
		case strings.Join(list, ":") != c.want && c.line == 0:
			t.Errorf("%.40q: %q, not %q", c.text, list, c.want)
		}
	}
}

// FuzzParse checks that what is accepted is what the rules promise, and that a
// filtered list never leads below a disallowed path.
func FuzzParse(f *testing.F) {
	f.Add([]byte("/etc\n# x\n/root/\n"), "/etc/ssl:/tmp")
	f.Add([]byte("/a/../b\n"), "/b:c")
	f.Fuzz(func(t *testing.T, data []byte, value string) {
		list, err := Parse(data)
		if err != nil {
			return
		}
		if again, err := Parse([]byte(strings.Join(list, "\n"))); err != nil || !slices.Equal(again, list) {
			t.Fatalf("%q read again: %q, %v", list, again, err)
		}
		elements := Split(value)
		kept, dropped := Filter(elements, list)
		if len(kept)+len(dropped) != len(elements) {
			t.Fatalf("%q became %q and %q", elements, kept, dropped)
		}
		for _, k := range kept {
			if Match(list, k) {
				t.Fatalf("%q kept under %q", k, list)
			}
			for _, d := range Inside(k, list) {
				if !Below(k, d) || k == d {
					t.Fatalf("%q is not inside %q", d, k)
				}
			}
		}
	})
}
