#include "textflag.h"

// SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV, SIGSYS: bit n for signal n.
#define FAULTS $((1<<4)|(1<<5)|(1<<7)|(1<<8)|(1<<11)|(1<<31))

// All signals but those and SIGURG.
#define OTHERS $~((1<<3)|(1<<4)|(1<<6)|(1<<7)|(1<<10)|(1<<30)|(1<<22))

// handler is what the kernel calls with DI = number, SI = siginfo, DX =
// ucontext, on the thread's signal stack. It may clobber what it likes: the
// kernel restores all registers. It touches nothing of the runtime's, but any
// thread other than the receiver blocks signals from its first one on, so that
// one thread takes them in their order.
TEXT ·handler(SB),NOSPLIT|NOFRAME,$0
	MOVL	8(SI), AX		// si_code
	CMPL	AX, $0
	JGT	kernel
	CMPL	DI, $23			// SIGURG by tgkill from ourselves: preemption
	JNE	relay
	CMPL	AX, $-6
	JNE	relay
	MOVL	16(SI), CX		// si_pid
	CMPL	CX, ·handlerSelf(SB)
	JEQ	chain
relay:
	MOVL	·handlerPipe(SB), DI
	MOVL	$1, AX			// write
	MOVQ	DX, R8
	MOVL	$128, DX
	SYSCALL
	MOVL	$186, AX		// gettid
	SYSCALL
	CMPL	AX, ·handlerThread(SB)
	JEQ	done
	MOVQ	OTHERS, CX
	ORQ	CX, 296(R8)		// uc_sigmask, which sigreturn sets
	RET
kernel:
	MOVQ	FAULTS, CX
	CMPL	DI, $31
	JHI	relay
	BTQ	DI, CX
	JCC	relay
chain:
	LEAQ	·handlerNext(SB), CX
	MOVLQZX	DI, AX
	MOVQ	(CX)(AX*8), AX
	TESTQ	AX, AX
	JZ	done
	JMP	AX
done:
	RET

TEXT ·restorer(SB),NOSPLIT|NOFRAME,$0
	MOVQ	$15, AX			// rt_sigreturn
	SYSCALL
	INT	$3

TEXT ·handlerPC(SB),NOSPLIT,$0-8
	LEAQ	·handler(SB), AX
	MOVQ	AX, ret+0(FP)
	RET

TEXT ·restorerPC(SB),NOSPLIT,$0-8
	LEAQ	·restorer(SB), AX
	MOVQ	AX, ret+0(FP)
	RET
