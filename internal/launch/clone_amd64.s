#include "textflag.h"

#define SYS_clone3 435

// func clone(args *cloneArgs, entry uintptr, block unsafe.Pointer) (pid int)
//
// clone3(2) with CLONE_VM on a stack of the child's own. There the child calls
// the Go function at entry with block in AX, as ABIInternal has it. No
// wrapper comes between: it would read g from thread-local storage, which is
// that of a thread that may have ended. When entry returns, the child clones
// in its turn, as the first three words of block say, puts the result into
// the fourth and calls entry again.
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
	MOVQ	R13, 32(SP)
	MOVQ	R12, 40(SP)

again:
	MOVQ	32(SP), AX
	MOVQ	40(SP), R12
	XORPS	X15, X15
	XORQ	R14, R14
	CALL	R12
	MOVQ	32(SP), BX
	MOVQ	0(BX), DI
	MOVQ	8(BX), R12
	MOVQ	16(BX), R13
	MOVQ	$88, SI
	MOVQ	$SYS_clone3, AX
	SYSCALL
	TESTQ	AX, AX
	JEQ	child
	MOVQ	32(SP), BX
	MOVQ	AX, 24(BX)
	JMP	again
