package rer

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"unicode/utf8"
)

// DumpJSON gives a request as indented JSON for people and scripts. Field
// names are stable and all fields are there always. Strings are JSON strings
// where they are UTF-8, else {"base64": ...}; signal sets are lists of signal
// numbers.
func DumpJSON(r *Request) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(dump(r)); err != nil {
		return nil, fmt.Errorf("dump request: %w", err)
	}
	return b.Bytes(), nil
}

// text is a byte string in JSON.
type text []byte

func (t text) MarshalJSON() ([]byte, error) {
	if utf8.Valid(t) {
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		err := e.Encode(string(t))
		return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
	}
	return json.Marshal(map[string][]byte{"base64": t})
}

type dumpRequest struct {
	ID           string            `json:"id"`
	Argv         []text            `json:"argv"`
	Shell        *text             `json:"shell"`
	Login        bool              `json:"login"`
	Env          []text            `json:"env"`
	Root         Handle            `json:"root"`
	Cwd          Handle            `json:"cwd"`
	CwdPath      text              `json:"cwd_path"`
	Switch       []text            `json:"switch"`
	Umask        string            `json:"umask"`
	Nice         int               `json:"nice"`
	Rlimits      []dumpRlimit      `json:"rlimits"`
	Mask         []int             `json:"mask"`
	Ignored      []int             `json:"ignored"`
	UID          uint32            `json:"uid"`
	GID          uint32            `json:"gid"`
	Groups       []uint32          `json:"groups"`
	User         text              `json:"user"`
	Hostname     text              `json:"hostname"`
	Sysid        text              `json:"sysid"`
	Pid          int32             `json:"pid"`
	Ppid         int32             `json:"ppid"`
	Pgrp         int32             `json:"pgrp"`
	Sid          int32             `json:"sid"`
	FDs          []dumpFD          `json:"fds"`
	Descriptions []dumpDescription `json:"descriptions"`
	Terminal     *dumpTerminal     `json:"terminal"`
	Account      text              `json:"account"`
	Personality  uint32            `json:"personality"`
	Critical     []uint64          `json:"critical"`
}

type dumpRlimit struct {
	Resource int    `json:"resource"`
	Cur      uint64 `json:"cur"`
	Max      uint64 `json:"max"`
}

type dumpFD struct {
	Num         int32  `json:"num"`
	Description uint32 `json:"description"`
	CloExec     bool   `json:"cloexec"`
}

type dumpDescription struct {
	ID         uint64 `json:"id"`
	Kind       string `json:"kind"`
	Flags      uint32 `json:"flags"`
	Offset     int64  `json:"offset"`
	Channel    uint32 `json:"channel"`
	Paced      bool   `json:"paced"`
	Handle     Handle `json:"handle"`
	File       uint64 `json:"file"`
	Path       text   `json:"path"`
	SocketType int32  `json:"socket_type"`
	PipeSize   int32  `json:"pipe_size"`
}

type dumpTerminal struct {
	Channel    uint32 `json:"channel"`
	Dev        uint64 `json:"dev"`
	Termios    string `json:"termios"` // hexadecimal
	Rows       uint16 `json:"rows"`
	Cols       uint16 `json:"cols"`
	X          uint16 `json:"x"`
	Y          uint16 `json:"y"`
	Foreground int32  `json:"foreground"`
	Path       text   `json:"path"`
}

func dump(r *Request) *dumpRequest {
	d := &dumpRequest{
		ID: hex.EncodeToString(r.ID[:]), Argv: texts(r.Argv), Login: r.Login, Env: texts(r.Env),
		Root: r.Root, Cwd: r.Cwd, CwdPath: r.CwdPath, Switch: texts(r.Switch),
		Umask: fmt.Sprintf("%04o", r.Umask), Nice: r.Nice, Rlimits: []dumpRlimit{},
		Mask: signalList(r.Mask), Ignored: signalList(r.Ignored),
		UID: r.UID, GID: r.GID, Groups: append([]uint32{}, r.Groups...),
		User: text(r.User), Hostname: text(r.Hostname), Sysid: text(r.Sysid),
		Pid: r.Pid, Ppid: r.Ppid, Pgrp: r.Pgrp, Sid: r.Sid,
		FDs: []dumpFD{}, Descriptions: []dumpDescription{}, Terminal: r.Terminal.dump(),
		Account: text(r.Account), Personality: r.Personality, Critical: append([]uint64{}, r.Critical...),
	}
	if r.Shell != nil {
		d.Shell = (*text)(&r.Shell)
	}
	for _, l := range r.Rlimits {
		d.Rlimits = append(d.Rlimits, dumpRlimit{l.Resource, l.Cur, l.Max})
	}
	for _, fd := range r.FDs {
		d.FDs = append(d.FDs, dumpFD{fd.Num, fd.Desc, fd.CloExec})
	}
	for _, s := range r.Descriptions {
		d.Descriptions = append(d.Descriptions, dumpDescription{s.ID, s.Kind.String(), s.Flags, s.Offset,
			s.Channel, s.Paced, s.Handle, s.File, s.Path, s.SockTyp, s.PipeLen})
	}
	return d
}

func (t *Terminal) dump() *dumpTerminal {
	if t == nil {
		return nil
	}
	return &dumpTerminal{t.Channel, t.Dev, hex.EncodeToString(t.Termios), t.Rows, t.Cols, t.X, t.Y, t.Foreground, t.Path}
}

// texts makes byte strings of either kind fit for JSON; never nil.
func texts[S ~[]byte | ~string](list []S) []text {
	out := make([]text, len(list))
	for i, s := range list {
		out[i] = text(s)
	}
	return out
}

// signalList gives the numbers in a set; never nil.
func signalList(set uint64) []int {
	list := []int{}
	for n := range 64 {
		if set&(1<<n) != 0 {
			list = append(list, n+1)
		}
	}
	return list
}

var kindNames = [...]string{KindRegular: "regular", KindDir: "directory", KindPath: "path", KindPipe: "pipe",
	KindSocket: "socket", KindTerminal: "terminal", KindDevice: "device", KindRelay: "relay"}

// String names a kind as DumpJSON does.
func (k Kind) String() string {
	if k > 0 && int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", k)
}
