package signals

// handlerPC and restorerPC give the addresses of the signal handler and of
// its return to the kernel.
func handlerPC() uintptr
func restorerPC() uintptr
