package homeproto

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"
)

var (
	encoder = must(cbor.EncOptions{}.EncMode())
	decoder = must(cbor.DecOptions{
		MaxArrayElements: 4 << 20,
		MaxMapPairs:      1 << 16,
		MaxNestedLevels:  16,
		DupMapKey:        cbor.DupMapKeyEnforcedAPF,
		IndefLength:      cbor.IndefLengthForbidden,
		TagsMd:           cbor.TagsForbidden,
		UTF8:             cbor.UTF8DecodeInvalid, // names of files are no text
	}.DecMode())
)

// must is for option sets that are constants of this file.
func must[T any](mode T, err error) T {
	if err != nil {
		panic(err)
	}
	return mode
}

// errOne is for an Answer of no kind or of several.
var errOne = errors.New("answer: not exactly one field is set")

// encode gives a message with its length before it.
func encode(message any) ([]byte, error) {
	b, err := encoder.Marshal(message)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", message, err)
	}
	if len(b) > maxMessage {
		return nil, fmt.Errorf("message of %d bytes: more than %d", len(b), maxMessage)
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...), nil
}

func decodeAsk(b []byte) (*Ask, error) {
	a := new(Ask)
	if err := decoder.Unmarshal(b, a); err != nil {
		return nil, fmt.Errorf("ask: %w", err)
	}
	if a.command() {
		if err := a.Request.Check(); err != nil {
			return nil, fmt.Errorf("ask: %w", err)
		}
	}
	return a, nil
}

// command says that a asks for a command to be run.
func (a *Ask) command() bool { return !a.List && !a.Stop }

// files is the number of descriptors that follow a: none without a command,
// otherwise root, cwd, the terminal and the descriptions.
func (a *Ask) files() int {
	if !a.command() {
		return 0
	}
	n := 2 + len(a.Request.Descriptions)
	if a.Tty {
		n++
	}
	return n
}

func decodeRelay(b []byte) (*Relay, error) {
	r := new(Relay)
	if err := decoder.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	return r, nil
}

func decodeAnswer(b []byte) (*Answer, error) {
	a := new(Answer)
	if err := decoder.Unmarshal(b, a); err != nil {
		return nil, fmt.Errorf("answer: %w", err)
	}
	if a.kinds() != 1 {
		return nil, errOne
	}
	return a, nil
}

func (a *Answer) kinds() int {
	n := 0
	for _, set := range []bool{a.Started != nil, a.Refused != nil, a.Stopped != nil, a.Continued != nil,
		a.Ended != nil, a.Note != "", a.Stats != nil, a.Listing != nil} {
		if set {
			n++
		}
	}
	return n
}
