"""What the judge is told of each arm. Holds no text and no identity of a request."""

from array import array
from collections.abc import Sequence

import msgspec


class Window(msgspec.Struct, frozen=True):
    """What one arm has answered since the last look, oldest first; requests that met a cold start are left out."""

    seconds: Sequence[float] = ()
    """Of every request, of failed ones too."""
    failed: Sequence[int] = ()
    """Places in ``seconds`` of those that failed, ascending."""


def joined(earlier: Window, later: Window) -> Window:
    if not later.seconds:
        return earlier
    before = len(earlier.seconds)
    return Window([*earlier.seconds, *later.seconds], [*earlier.failed, *(before + place for place in later.failed)])


def rounded(window: Window) -> Window:
    """With seconds to seven significant digits, as four bytes each hold them: so they can be kept."""
    return Window(array("f", window.seconds).tolist(), window.failed)


def latest(window: Window, most: int) -> Window:
    """The last ``most`` requests of it."""
    surplus = len(window.seconds) - most
    if surplus <= 0:
        return window
    return Window(window.seconds[surplus:], [place - surplus for place in window.failed if place >= surplus])


def answered(window: Window) -> Sequence[float]:
    """Seconds of those that did not fail."""
    if not window.failed:
        return window.seconds
    failed = set(window.failed)
    return [seconds for place, seconds in enumerate(window.seconds) if place not in failed]
