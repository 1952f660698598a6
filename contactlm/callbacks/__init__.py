"""Token budget, FLOPs, evaluation and writers as Lightning callbacks."""
