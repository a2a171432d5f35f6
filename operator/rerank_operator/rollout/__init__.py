"""How one revision hands over to the next. Pure: no I/O, no clock of its own."""
