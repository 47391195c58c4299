package rer

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// id counts up from first.
func id(first byte) (id [16]byte) {
	for i := range id {
		id[i] = first + byte(i)
	}
	return id
}

// fullRequest has every field set.
func fullRequest() *Request {
	return &Request{
		ID:      id(0x10),
		Argv:    [][]byte{[]byte("printf"), []byte("%s\n"), []byte("\xff\xfe"), {}},
		Env:     [][]byte{[]byte("PATH=/bin"), []byte("=odd"), []byte("LANG=\xe9")},
		Root:    1,
		Cwd:     77,
		CwdPath: []byte("/home/alice/\xe9t\xe9"),
		Switch:  []string{"/usr", "/opt/\xff"},
		Umask:   0o027,
		Nice:    -5,
		Rlimits: []Rlimit{{Resource: 7, Cur: 1024, Max: 1 << 63}, {Resource: 3, Cur: 8 << 20, Max: 1<<64 - 1}},
		Mask:    1<<14 | 1<<63,
		Ignored: 1 << 12,
		UID:     1000, GID: 100, Groups: []uint32{4, 27, 1<<32 - 1},
		User: "alice", Hostname: "hawk", Sysid: "abc123",
		Pid: 4242, Ppid: 4000, Pgrp: 4242, Sid: 3999,
		FDs: []FD{{Num: 0, Desc: 0}, {Num: 1, Desc: 1}, {Num: 2, Desc: 1}, {Num: 9, Desc: 2}},
		Descriptions: []Description{
			{ID: 5, Kind: KindPipe, Flags: 0, Channel: 3, Paced: true, PipeLen: 65536},
			{ID: 6, Kind: KindTerminal, Flags: 0o2, Channel: 5, Path: []byte("/dev/pts/1")},
			{ID: 7, Kind: KindRegular, Flags: 0o102001, Offset: 1 << 40, Handle: 99, File: 12, Path: []byte("/tmp/log"), SockTyp: 1},
		},
		Terminal: &Terminal{Channel: 5, Dev: 0x8801, Termios: bytes.Repeat([]byte{0x5a}, 36), Rows: 24, Cols: 80, X: 1, Y: 2,
			Foreground: 4242, Path: []byte("/dev/pts/1")},
		Account: "thesis", Personality: 0x40000, Critical: []uint64{2, 30},
	}
}

// messages has one of each kind, with every field set.
func messages() map[string]*Message {
	shell := fullRequest()
	shell.Argv, shell.Shell = nil, []byte("a | b > c")
	sent := []Sent{{Channel: 3, Bytes: 1 << 40}, {Channel: 5}}
	positions := []Position{{Desc: 7, Offset: 1 << 33}}
	termios := bytes.Repeat([]byte{0x5a}, 36)
	status := Status{Code: 3, Signal: 11, Core: true, Usage: Rusage{1, 2, 3, 4, 5, 6, 7, 8, 9}}
	return map[string]*Message{
		"hello": {Hello: &Hello{Versions: [2]int{1, 1}, Features: []string{"lease"}, Build: "v0", Sysid: "abc", Hostname: "hawk",
			User: "alice", UID: 1000, GID: 100, Groups: []uint32{4}, Arch: "amd64", NumCPU: 16, Clock: 1764288000000000001,
			Mounts: []Mount{{Path: "/", Root: 1, Dev: 2049, Type: "ext4", Source: "/dev/sda1"}, {Path: "/caf\xe9", Root: 2, Dev: 3, ReadOnly: true}}}},
		"launch": {Launch: fullRequest()},
		"shell":  {Launch: shell},
		"login":  {Launch: &Request{ID: id(1), Login: true}},
		"started": {Started: &Started{ID: id(0x10), Pid: 4242, Taken: []int32{4000}, Switch: []string{"/usr"}, Dropped: []string{"/opt"},
			ServerID: 31337}},
		"refused": {Refused: &Refused{ID: id(0x10), Reason: ReasonNotFound, Errno: 2, Text: "gcc: no such command", Hint: "install it"}},
		"signal": {Signal: &Signal{ID: id(0x10), Signo: 34, Code: -1, Pid: 4000, UID: 1000, Value: 1<<64 - 1, Group: true,
			Terminal: &Terminal{Channel: 9, Dev: 0x8801, Termios: make([]byte, 36), Rows: 24, Cols: 80, X: 1, Y: 2,
				Foreground: 4000, Path: []byte("/dev/pts/1")}}},
		"kill":      {Kill: &Kill{ID: id(0x10)}},
		"stopped":   {Stopped: &Stopped{ID: id(0x10), Signo: 20, Sent: sent, Positions: positions, Consumed: sent[:1], Termios: termios}},
		"continued": {Continued: &Continued{ID: id(0x10)}},
		"ended":     {Ended: &Ended{ID: id(0x10), Status: status, Sent: sent, Positions: positions, Consumed: sent[:1], Termios: termios}},
		"ping":      {Ping: &Ping{Seq: 1 << 50}},
		"pong":      {Pong: &Ping{Seq: 0}},
	}
}

// golden compares with a file of testdata.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("%s: the encoding changed, and with it the protocol (-update writes it anew):\n%s", path, d)
	}
}

// hexLines is b in lines of 32 bytes.
func hexLines(b []byte) []byte {
	var out strings.Builder
	for len(b) > 0 {
		n := min(len(b), 32)
		fmt.Fprintln(&out, hex.EncodeToString(b[:n]))
		b = b[n:]
	}
	return []byte(out.String())
}

func TestGolden(t *testing.T) {
	for name, m := range messages() {
		b, err := m.Encode()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		golden(t, name+".hex", hexLines(b))
		back, err := DecodeMessage(b)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if d := cmp.Diff(m, back, cmp.AllowUnexported(Rlimit{}, FD{}, Sent{}, Position{})); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
	files, _ := filepath.Glob("testdata/*.hex")
	if len(files) != len(messages()) {
		t.Errorf("%d golden files for %d messages", len(files), len(messages()))
	}
}

// Every field of every message is set in the golden files.
func TestGoldenIsFull(t *testing.T) {
	var walk func(path string, v reflect.Value)
	walk = func(path string, v reflect.Value) {
		switch v.Kind() {
		case reflect.Pointer:
			walk(path, v.Elem())
		case reflect.Struct:
			for i := range v.NumField() {
				f := v.Type().Field(i)
				name := path + "." + f.Name
				alternative := name == "launch.Shell" || name == "launch.Login" || name == "launch.FDs.CloExec"
				if f.Name != "_" && v.Field(i).IsZero() && !alternative {
					t.Errorf("%s is not set", name)
				}
				if f.Name != "_" && !v.Field(i).IsZero() && v.Field(i).Kind() == reflect.Pointer {
					walk(name, v.Field(i))
				}
			}
		}
	}
	all := messages()
	for _, name := range []string{"hello", "launch", "started", "refused", "signal", "stopped", "ended"} {
		m := reflect.ValueOf(all[name]).Elem()
		for i := range m.NumField() {
			if !m.Field(i).IsNil() {
				walk(name, m.Field(i))
			}
		}
	}
}

// fill sets v to something at random; blank fields stay.
func fill(r *rand.Rand, v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(r, v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Field(i).CanSet() && r.Intn(4) > 0 && v.Type().Field(i).Name != "_" {
				fill(r, v.Field(i))
			}
		}
	case reflect.Slice:
		n := 1 + r.Intn(3)
		v.Set(reflect.MakeSlice(v.Type(), n, n))
		fallthrough
	case reflect.Array:
		for i := range v.Len() {
			fill(r, v.Index(i))
		}
	case reflect.String:
		b := make([]byte, r.Intn(10))
		r.Read(b)
		v.SetString(string(b))
	case reflect.Bool:
		v.SetBool(r.Intn(2) == 0)
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt(int64(r.Uint64()) >> r.Intn(64))
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(r.Uint64() >> r.Intn(64))
	}
}

// Property: decoding gives what was encoded. Requests are encoded unchecked.
func TestIdentity(t *testing.T) {
	r := rand.New(rand.NewSource(1))
	kinds := reflect.TypeFor[Message]().NumField()
	for i := range 3000 {
		m, back := new(Message), new(Message)
		fill(r, reflect.ValueOf(m).Elem().Field(i%kinds))
		b, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if err := decoder.Unmarshal(b, back); err != nil {
			t.Fatalf("%+v: %v", m, err)
		}
		if !reflect.DeepEqual(m, back) {
			t.Fatalf("%s", cmp.Diff(m, back, cmp.AllowUnexported(Rlimit{}, FD{}, Sent{}, Position{})))
		}
		if len(b) > 1 {
			if _, err := DecodeMessage(b[:len(b)-1]); err == nil {
				t.Fatal("a cut message was taken")
			}
		}
		if _, err := DecodeMessage(append(b, 0)); err == nil {
			t.Fatal("a message with a tail was taken")
		}
	}
}

func TestOneKind(t *testing.T) {
	for _, m := range []*Message{{}, {Ping: &Ping{}, Pong: &Ping{}}} {
		if _, err := m.Encode(); !errors.Is(err, errOne) {
			t.Error(err)
		}
		b, err := encoder.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeMessage(b); !errors.Is(err, errOne) {
			t.Error(err)
		}
	}
	// The count knows every kind.
	for i := range reflect.TypeFor[Message]().NumField() {
		m := new(Message)
		f := reflect.ValueOf(m).Elem().Field(i)
		f.Set(reflect.New(f.Type().Elem()))
		if m.kinds() != 1 {
			t.Errorf("kinds misses field %d", i)
		}
	}
}

func TestCheck(t *testing.T) {
	if err := fullRequest().Check(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*Request)
		reason Reason
	}{
		"no command":          {func(r *Request) { r.Argv = nil }, ReasonBadRequest},
		"two commands":        {func(r *Request) { r.Shell = []byte("x") }, ReasonBadRequest},
		"command and login":   {func(r *Request) { r.Login = true }, ReasonBadRequest},
		"negative pid":        {func(r *Request) { r.Pid = -1 }, ReasonBadRequest},
		"negative session":    {func(r *Request) { r.Sid = -1 }, ReasonBadRequest},
		"NUL in argv":         {func(r *Request) { r.Argv[1] = []byte("a\x00b") }, ReasonBadRequest},
		"NUL in env":          {func(r *Request) { r.Env[0] = []byte{0} }, ReasonBadRequest},
		"NUL in cwd":          {func(r *Request) { r.CwdPath = []byte("/\x00") }, ReasonBadRequest},
		"NUL in shell":        {func(r *Request) { r.Argv, r.Shell = nil, []byte("\x00") }, ReasonBadRequest},
		"NUL in switch":       {func(r *Request) { r.Switch[0] = "/\x00" }, ReasonBadRequest},
		"NUL in user":         {func(r *Request) { r.User = "\x00" }, ReasonBadRequest},
		"NUL in description":  {func(r *Request) { r.Descriptions[0].Path = []byte("\x00") }, ReasonBadRequest},
		"NUL in terminal":     {func(r *Request) { r.Terminal.Path = []byte("\x00") }, ReasonBadRequest},
		"negative fd":         {func(r *Request) { r.FDs[0].Num = -1 }, ReasonBadRequest},
		"fd twice":            {func(r *Request) { r.FDs[0].Num = 1 }, ReasonBadRequest},
		"no such description": {func(r *Request) { r.FDs[0].Desc = 3 }, ReasonBadRequest},
		"far description":     {func(r *Request) { r.FDs[0].Desc = 1<<32 - 1 }, ReasonBadRequest},
		"unknown kind":        {func(r *Request) { r.Descriptions[0].Kind = 9 }, ReasonDescriptor},
		"negative offset":     {func(r *Request) { r.Descriptions[0].Offset = -1 }, ReasonBadRequest},
		"negative pipe":       {func(r *Request) { r.Descriptions[0].PipeLen = -1 }, ReasonBadRequest},
		"critical":            {func(r *Request) { r.Critical = []uint64{2, highestKey + 1} }, ReasonVersion},
	} {
		r := fullRequest()
		c.change(r)
		var refused *Refused
		if err := r.Check(); !errors.As(err, &refused) || refused.Reason != c.reason || refused.ID != r.ID {
			t.Errorf("%s: %v", name, err)
		}
		b, err := (&Message{Launch: r}).Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeMessage(b); !errors.As(err, &refused) {
			t.Errorf("%s: decoded, %v", name, err)
		}
	}
}

// highestKey is the highest key that Request has.
func TestHighestKey(t *testing.T) {
	typ := reflect.TypeFor[Request]()
	high := 0
	for i := range typ.NumField() {
		var key int
		fmt.Sscanf(typ.Field(i).Tag.Get("cbor"), "%d,", &key)
		high = max(high, key)
	}
	if high != highestKey {
		t.Fatalf("highest key is %d, highestKey %d", high, highestKey)
	}
}

// An unknown field is ignored, unless it is critical.
func TestUnknownFields(t *testing.T) {
	for _, critical := range []bool{false, true} {
		launch := map[uint64]any{1: make([]byte, 16), 3: []byte("true"), 99: map[string]int{"new": 1}}
		if critical {
			launch[30] = []uint64{99}
		}
		b, err := encoder.Marshal(map[uint64]any{2: launch, 77: "later"})
		if err != nil {
			t.Fatal(err)
		}
		_, err = DecodeMessage(b)
		var refused *Refused
		if critical && (!errors.As(err, &refused) || refused.Reason != ReasonVersion) || !critical && err != nil {
			t.Errorf("critical %v: %v", critical, err)
		}
	}
}

// Text strings are taken too, whatever bytes they hold.
func TestTextStrings(t *testing.T) {
	text := []byte{0xa1, 0x04, 0xa2, 0x02, 0x0e, 0x04, 0x62, 'h', 0xff}
	m, err := DecodeMessage(text)
	if err != nil || m.Refused.Text != "h\xff" {
		t.Fatal(m, err)
	}
}

func TestLargeEnvironment(t *testing.T) {
	r := &Request{Login: true}
	for size := 0; size < 10<<20; size += 20 {
		r.Env = append(r.Env, []byte("VARIABLE=0123456789"))
	}
	b, err := (&Message{Launch: r}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	m, err := DecodeMessage(b)
	if err != nil || len(m.Launch.Env) != len(r.Env) {
		t.Fatal(err)
	}
	r.Env = [][]byte{make([]byte, MaxMessage)}
	if _, err := (&Message{Launch: r}).Encode(); !errors.Is(err, syscall.E2BIG) {
		t.Fatal(err)
	}
	if _, err := DecodeMessage(make([]byte, MaxMessage+1)); err == nil {
		t.Fatal("too long a message was taken")
	}
}

// Lengths that the message does not hold cost no memory.
func TestDeclaredLengths(t *testing.T) {
	for name, body := range map[string]string{
		"array of 2^31":             "a102a2029a80000000",
		"array of 2^63":             "a102a2029b8000000000000000",
		"array of a million":        "a102a2029a000fffff",
		"descriptions, a million":   "a102a2181a9a000fffff",
		"mounts, a million":         "a101a10d9a000fffff",
		"byte string of 2^31":       "a102a1035a80000000",
		"byte string of 2^63":       "a102a1035b7fffffffffffffff",
		"text of 2^31":              "a104a1047a80000000",
		"map of 2^31":               "ba80000000",
		"array without end":         "a102a1029f",
		"nested arrays":             "a102a102" + strings.Repeat("81", 1000),
		"tag":                       "a102a102c240",
		"array elements, not there": "a102a10282",
	} {
		b := must(hex.DecodeString(body))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := DecodeMessage(b)
		runtime.ReadMemStats(&after)
		if err == nil {
			t.Errorf("%s: taken", name)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
			t.Errorf("%s: %d bytes allocated", name, n)
		}
	}
	many := append(must(hex.DecodeString("a102a1029a00100001")), bytes.Repeat([]byte{0x40}, maxElements+1)...)
	if _, err := DecodeMessage(many); err == nil {
		t.Error("a list of more than a million was taken")
	}
}

func TestExitCode(t *testing.T) {
	for reason := ReasonUnknownHost; reason <= ReasonWrongProgram; reason++ {
		want := 255
		switch reason {
		case ReasonNotFound:
			want = 127
		case ReasonCannotExec, ReasonWrongProgram:
			want = 126
		}
		if got := (&Refused{Reason: reason}).ExitCode(); got != want {
			t.Errorf("reason %d: %d", reason, got)
		}
	}
}

func TestDumpJSON(t *testing.T) {
	for name, r := range map[string]*Request{"full": fullRequest(), "shell": messages()["shell"].Launch, "empty": {Login: true}} {
		b, err := DumpJSON(r)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "dump-"+name+".json", b)
	}
	// No field of a request is missing.
	for _, p := range [][2]reflect.Type{
		{reflect.TypeFor[Request](), reflect.TypeFor[dumpRequest]()},
		{reflect.TypeFor[Description](), reflect.TypeFor[dumpDescription]()},
		{reflect.TypeFor[Terminal](), reflect.TypeFor[dumpTerminal]()},
	} {
		if p[0].NumField() != p[1].NumField() {
			t.Errorf("%v has %d fields, its dump %d", p[0], p[0].NumField(), p[1].NumField())
		}
	}
}

func FuzzDecodeMessage(f *testing.F) {
	for _, m := range messages() {
		b, err := m.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeMessage(b)
		if err != nil {
			return
		}
		again, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		back, err := DecodeMessage(again)
		if err != nil {
			t.Fatalf("%x, then %x: %v", b, again, err)
		}
		if third, err := back.Encode(); err != nil || !bytes.Equal(again, third) {
			t.Fatalf("%x, then %x, then %x, %v", b, again, third, err)
		}
		if m.Launch != nil {
			if _, err := DumpJSON(m.Launch); err != nil {
				t.Fatal(err)
			}
		}
	})
}
