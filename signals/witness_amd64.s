#include "textflag.h"

// func forkWitness(lo, hi int32) (pid int)
//
// The child is a process without a stack: all that it uses are registers and
// the witness variables. It closes every descriptor but lo, from which it
// reads a byte for each question, and hi.
TEXT ·forkWitness(SB),NOSPLIT,$0-16
	MOVL	lo+0(FP), R12
	MOVL	hi+4(FP), R13
	MOVL	$17, DI			// SIGCHLD
	XORL	SI, SI
	XORL	DX, DX
	XORL	R10, R10
	XORL	R8, R8
	MOVL	$56, AX			// clone
	SYSCALL
	TESTQ	AX, AX
	JZ	child
	MOVQ	AX, pid+8(FP)
	RET
child:
	XORL	DI, DI
	LEAL	-1(R12), SI
	XORL	DX, DX
	MOVL	$436, AX		// close_range
	SYSCALL
	LEAL	1(R12), DI
	LEAL	-1(R13), SI
	XORL	DX, DX
	MOVL	$436, AX
	SYSCALL
	LEAL	1(R13), DI
	MOVL	$0xffffffff, SI
	XORL	DX, DX
	MOVL	$436, AX
	SYSCALL
question:
	MOVL	R12, DI
	LEAQ	·witnessInfo(SB), SI
	MOVL	$1, DX
	XORL	AX, AX			// read
	SYSCALL
	CMPQ	AX, $-4			// EINTR
	JEQ	question
	CMPQ	AX, $1
	JNE	exit
next:
	LEAQ	·witnessAll(SB), DI
	LEAQ	·witnessInfo(SB), SI
	LEAQ	·witnessNow(SB), DX
	MOVL	$8, R10
	MOVL	$128, AX		// rt_sigtimedwait
	SYSCALL
	MOVQ	AX, R14
	CMPQ	R14, $0
	JGT	answer
	MOVL	$0, ·witnessInfo(SB)	// no more
answer:
	MOVL	R13, DI
	LEAQ	·witnessInfo(SB), SI
	MOVL	$128, DX
	MOVL	$1, AX			// write
	SYSCALL
	CMPQ	R14, $0
	JGT	next
	JMP	question
exit:
	XORL	DI, DI
	MOVL	$231, AX		// exit_group
	SYSCALL
	INT	$3
