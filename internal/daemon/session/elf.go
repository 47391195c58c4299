package session

import (
	"bytes"
	"context"
	"debug/elf"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"rexec/disallow"
)

// machines are the ELF machine numbers of this server's programs.
var machines = map[string][]elf.Machine{
	"amd64": {elf.EM_X86_64, elf.EM_386},
	"arm64": {elf.EM_AARCH64, elf.EM_ARM},
}

// foreignELF says whether the program at path is home's and an ELF file of
// another architecture: no shell should read it. In doubt it is not.
func (j *job) foreignELF(path []byte) bool {
	name := string(path)
	if !strings.HasPrefix(name, "/") {
		name = string(j.request.CwdPath) + "/" + name
	}
	name = filepath.Clean(name)
	if !isClean(name) || j.view.loan.ours(name) || disallow.Match(kernelBound, name) {
		return false
	}
	head, err := j.s.head(name)
	if err != nil || len(head) < 20 || !bytes.HasPrefix(head, []byte(elf.ELFMAG)) {
		return false
	}
	machine := elf.Machine(uint16(head[18]) | uint16(head[19])<<8)
	if head[elf.EI_DATA] == byte(elf.ELFDATA2MSB) {
		machine = elf.Machine(uint16(head[19]) | uint16(head[18])<<8)
	}
	for _, m := range machines[runtime.GOARCH] {
		if m == machine {
			return false
		}
	}
	return true
}

// head reads the first bytes of one of home's files.
func (s *Session) head(name string) ([]byte, error) {
	node, _, dir, err := s.walk(name)
	if err == nil && dir {
		err = syscall.EISDIR
	}
	if err != nil {
		return nil, err
	}
	ctx := context.Background()
	f, err := s.files.Open(ctx, node, 0)
	if err != nil {
		return nil, err
	}
	defer s.files.Release(f.FH, 0, false)
	return s.files.Read(ctx, f.FH, 0, 64)
}
