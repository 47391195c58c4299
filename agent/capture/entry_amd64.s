#include "textflag.h"

// entry is where a program may begin, before the runtime: it notes which
// standard descriptors are closed, bit n for n, and bit 7 that it was here.
TEXT ·entry(SB),NOSPLIT|NOFRAME,$0
	MOVQ	DX, R12
	MOVL	$0x80, R8
	XORL	R9, R9
next:
	MOVL	R9, DI
	MOVL	$1, SI			// F_GETFD
	MOVL	$72, AX			// fcntl
	SYSCALL
	CMPQ	AX, $-9			// EBADF
	JNE	open
	BTSL	R9, R8
open:
	INCL	R9
	CMPL	R9, $3
	JNE	next
	MOVB	R8, ·closedAtEntry(SB)
	MOVQ	R12, DX
	JMP	_rt0_amd64_linux(SB)
