"""Whose batch runs on a device that several models of a process share: first come, first served, a batch each.

A model that has had its turn goes to the end of the line, so each waits for one batch of every other at most. Knows
nothing of batches or engines.
"""

import threading
from collections import deque


class Turns:
    """A line that threads stand in; one object of them a device."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._line: deque[object] = deque()

    def wait(self, who: object, timeout: float) -> bool:
        """Stand in line, where ``who`` does not yet, for ``timeout`` seconds; whether it has its turn now. The place
        is kept when not."""
        with self._changed:
            if who not in self._line:
                self._line.append(who)
            return self._changed.wait_for(lambda: self._line[0] is who, timeout)

    def leave(self, who: object) -> None:
        """End the turn, or give up the place; nothing where there is none."""
        with self._changed:
            if who in self._line:
                self._line.remove(who)
                self._changed.notify_all()

    def others_wait(self) -> bool:
        """Whether anybody stands behind the one whose turn it is."""
        return len(self._line) > 1
