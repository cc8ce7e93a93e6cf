"""The one engine that every task trains with: optimiser, checkpoints, processes, logging, loop."""
