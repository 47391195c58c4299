package faults

func playHostile() int { return 0 }
