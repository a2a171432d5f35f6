"""How many replicas a Reranker should have, and why. Pure: no I/O, no clock of its own."""
