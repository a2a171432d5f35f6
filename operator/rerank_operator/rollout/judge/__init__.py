"""Is a new revision worse than the one that serves? Pure: figures in, a verdict out; no I/O, no clock of its own."""
