#include "textflag.h"

#define SYS_clone3 435

// func clone(args *cloneArgs, entry uintptr, block unsafe.Pointer) (pid int)
//
// clone3(2) with CLONE_VM on a stack of the child's own: the child calls
// entry(block) there and never returns. Go's linker adds up the stacks of
// nosplit functions over direct calls; an address in a register starts anew.
TEXT ·clone(SB), NOSPLIT, $0-32
	MOVQ	args+0(FP), DI
	MOVQ	entry+8(FP), R12
	MOVQ	block+16(FP), R13
	MOVQ	$88, SI
	MOVQ	$SYS_clone3, AX
	SYSCALL
	TESTQ	AX, AX
	JEQ	child
	MOVQ	AX, pid+24(FP)
	RET
child:
	XORQ	BP, BP
	SUBQ	$64, SP
	ANDQ	$~15, SP
	MOVQ	R13, 0(SP)
	CALL	R12
	INT	$3

// func ghostEntry() uintptr
TEXT ·ghostEntry(SB), NOSPLIT, $0-8
	LEAQ	·ghostMain(SB), AX
	MOVQ	AX, ret+0(FP)
	RET

// func jobEntry() uintptr
TEXT ·jobEntry(SB), NOSPLIT, $0-8
	LEAQ	·jobMain(SB), AX
	MOVQ	AX, ret+0(FP)
	RET

// func cloneAt(args, entry, block uintptr) (pid int)
//
// clone for memory that is known by its address.
TEXT ·cloneAt(SB), NOSPLIT, $0-32
	JMP	·clone(SB)
