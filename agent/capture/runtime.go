package capture

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"rexec/signals"
)

// anchor is a variable whose address is known both here and in the symbol
// table: the others are found relative to it, wherever the program was loaded.
var anchor = [1]uint64{0x7265786563}

// The symbols wanted.
const (
	symAnchor = "rexec/agent/capture.anchor"
	symFwdSig = "runtime.fwdSig"
	symMask   = "runtime.initSigmask"
	symNofile = "syscall.origRlimitNofile"
)

// firstMask is the first thread's mask when this package was initialized:
// initializers run on that thread.
var firstMask, _ = signals.Mask()

// before is what the runtime found.
type before struct {
	ignored uint64       // by signals whose handler is now the runtime's
	mask    uint64       // of the first thread
	nofile  *unix.Rlimit // nil: it was not raised
}

// runtimeFound reads the runtime's variables.
func runtimeFound() (before, error) {
	at, err := symbols(symAnchor, symFwdSig, symMask, symNofile)
	if err != nil {
		return before{mask: firstMask}, err
	}
	variable := func(name string) unsafe.Pointer {
		return unsafe.Add(unsafe.Pointer(&anchor), int(at[name]-at[symAnchor]))
	}
	b := before{mask: *(*uint64)(variable(symMask))}
	for n, handler := range (*[signals.Count + 1]uintptr)(variable(symFwdSig)) {
		if n > 0 && handler == 1 { // SIG_IGN
			b.ignored |= 1 << (n - 1)
		}
	}
	// An atomic.Pointer is its pointer.
	if lim := *(**unix.Rlimit)(variable(symNofile)); lim != nil {
		b.nofile = &unix.Rlimit{Cur: lim.Cur, Max: lim.Max}
	}
	return b, nil
}

// symbols gives the addresses of variables by the program's symbol table.
// Searching the mapped file for the names is fifty times as fast as debug/elf's
// list of all symbols.
func symbols(names ...string) (map[string]uint64, error) {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, fmt.Errorf("symbol table: %w", err)
	}
	defer f.Close()
	exe, err := elf.NewFile(f)
	if err != nil {
		return nil, fmt.Errorf("symbol table: %w", err)
	}
	table := exe.Section(".symtab")
	if table == nil || int(table.Link) >= len(exe.Sections) {
		return nil, fmt.Errorf("symbol table: the program is stripped")
	}
	text := exe.Sections[table.Link]
	size := int(max(table.Offset+table.FileSize, text.Offset+text.FileSize))
	all, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("symbol table: mmap: %w", err)
	}
	defer unix.Munmap(all)
	return search(all[table.Offset:][:table.FileSize], all[text.Offset:][:text.FileSize], names)
}

func search(table, text []byte, names []string) (map[string]uint64, error) {
	offsets := make(map[uint32]string, len(names))
	for _, name := range names {
		i := bytes.Index(text, []byte("\x00"+name+"\x00"))
		if i < 0 {
			return nil, fmt.Errorf("symbol table: no %s", name)
		}
		offsets[uint32(i+1)] = name
	}
	found := make(map[string]uint64, len(names))
	const entry = 24 // sizeof(Elf64_Sym): name 0, value 8
	for ; len(table) >= entry && len(found) < len(names); table = table[entry:] {
		if name, ok := offsets[binary.NativeEndian.Uint32(table)]; ok {
			found[name] = binary.NativeEndian.Uint64(table[8:])
		}
	}
	if len(found) < len(names) {
		return nil, fmt.Errorf("symbol table: %d of %d variables", len(found), len(names))
	}
	return found, nil
}
