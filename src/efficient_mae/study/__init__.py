"""`emae study`: the paper's tables and figures, each run by a command."""
