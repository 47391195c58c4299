package signals

func forkWitness(lo, hi int32) (pid int)
