#include "textflag.h"

// SIGILL, SIGTRAP, SIGBUS, SIGFPE, SIGSEGV, SIGSYS: bit n for signal n.
#define FAULTS $((1<<4)|(1<<5)|(1<<7)|(1<<8)|(1<<11)|(1<<31))

// All signals but those and SIGURG.
#define OTHERS $~((1<<3)|(1<<4)|(1<<6)|(1<<7)|(1<<10)|(1<<30)|(1<<22))

// handler is what the kernel calls with R0 = number, R1 = siginfo, R2 =
// ucontext, on the thread's signal stack. It may clobber what it likes: the
// kernel restores all registers. It touches nothing of the runtime's, but any
// thread other than the receiver blocks signals from its first one on, so that
// one thread takes them in their order.
TEXT ·handler(SB),NOSPLIT|NOFRAME,$0
	MOVW	8(R1), R3		// si_code
	CMPW	$0, R3
	BGT	kernel
	CMPW	$23, R0			// SIGURG by tgkill from ourselves: preemption
	BNE	relay
	CMPW	$-6, R3
	BNE	relay
	MOVW	16(R1), R4		// si_pid
	MOVW	·handlerSelf(SB), R5
	CMPW	R4, R5
	BEQ	chain
relay:
	MOVW	·handlerPipe(SB), R0
	MOVD	R2, R9
	MOVD	$128, R2
	MOVD	$64, R8			// write
	SVC
	MOVD	$178, R8		// gettid
	SVC
	MOVW	·handlerThread(SB), R5
	CMPW	R0, R5
	BEQ	done
	MOVD	40(R9), R4		// uc_sigmask, which sigreturn sets
	MOVD	OTHERS, R5
	ORR	R5, R4, R4
	MOVD	R4, 40(R9)
	RET
kernel:
	CMPW	$31, R0
	BHI	relay
	MOVD	FAULTS, R4
	LSR	R0, R4, R4
	TBZ	$0, R4, relay
chain:
	MOVD	$·handlerNext(SB), R4
	MOVWU	R0, R5
	LSL	$3, R5, R5
	ADD	R5, R4, R4
	MOVD	(R4), R4
	CBZ	R4, done
	JMP	(R4)
done:
	RET

TEXT ·restorer(SB),NOSPLIT|NOFRAME,$0
	MOVD	$139, R8		// rt_sigreturn
	SVC
	BRK

TEXT ·handlerPC(SB),NOSPLIT,$0-8
	MOVD	$·handler(SB), R0
	MOVD	R0, ret+0(FP)
	RET

TEXT ·restorerPC(SB),NOSPLIT,$0-8
	MOVD	$·restorer(SB), R0
	MOVD	R0, ret+0(FP)
	RET
