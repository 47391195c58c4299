package agent

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"strings"
	"unicode"
	"unicode/utf8"

	"rexec/rer"
	"rexec/signals"
)

// dump prints a request on standard output as JSON for people and scripts:
// byte strings as text, signal sets by name, the umask in octal.
func dump(r *rer.Request) error {
	fields := plain(reflect.ValueOf(*r)).(map[string]any)
	fields["mask"], fields["ignored"] = signalNames(r.Mask), signalNames(r.Ignored)
	fields["umask"] = fmt.Sprintf("%04o", r.Umask)
	b, err := json.MarshalIndent(fields, "", "  ")
	if err != nil {
		return fmt.Errorf("dump: %w", err)
	}
	_, err = os.Stdout.Write(append(b, '\n'))
	return err
}

func signalNames(set uint64) []string {
	names := []string{}
	for n := 1; n <= signals.Count; n++ {
		if set&(1<<(n-1)) != 0 {
			names = append(names, signals.Name(n))
		}
	}
	return names
}

// kinds are the names of rer.Kind.
var kinds = map[rer.Kind]string{
	rer.KindRegular: "regular", rer.KindDir: "directory", rer.KindPath: "path", rer.KindPipe: "pipe", rer.KindSocket: "socket",
	rer.KindTerminal: "terminal", rer.KindDevice: "device", rer.KindRelay: "relay",
}

// plain turns a value into what encoding/json shows well. Names of fields
// begin with a small letter.
func plain(v reflect.Value) any {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return nil
		}
		return plain(v.Elem())
	case reflect.Struct:
		fields := make(map[string]any)
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() {
				fields[fieldName(f.Name)] = plain(v.Field(i))
			}
		}
		return fields
	case reflect.Array, reflect.Slice:
		return plainList(v)
	case reflect.Uint8:
		if k, ok := v.Interface().(rer.Kind); ok {
			return kinds[k]
		}
	case reflect.String:
		return text(v.String())
	}
	return v.Interface()
}

func plainList(v reflect.Value) any {
	if v.Type().Elem().Kind() == reflect.Uint8 {
		b := make([]byte, v.Len())
		reflect.Copy(reflect.ValueOf(b), v)
		if v.Kind() == reflect.Array {
			return hex.EncodeToString(b)
		}
		return text(string(b))
	}
	list := make([]any, v.Len())
	for i := range list {
		list[i] = plain(v.Index(i))
	}
	return list
}

// text gives bytes that are no text in Go's \x notation.
func text(s string) string {
	if utf8.ValidString(s) && !strings.ContainsRune(s, 0) {
		return s
	}
	quoted := fmt.Sprintf("%+q", s)
	return quoted[1 : len(quoted)-1]
}

func fieldName(name string) string {
	small := strings.ToLower(name)
	if small == name || strings.ToUpper(name) == name || name == "FDs" {
		return small
	}
	first, size := utf8.DecodeRuneInString(name)
	return string(unicode.ToLower(first)) + name[size:]
}
