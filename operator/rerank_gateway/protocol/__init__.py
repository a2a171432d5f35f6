"""The public request and answer shapes, each turned into one internal query and back. No I/O."""
