"""How much less than independent ones the requests of one arm tell, because neighbours are alike. Never less than 1.

Requests of one batch, of one busy minute or of one slow node are late together. A count of them then varies more than
that of independent ones, by a factor that surveys call the design effect (Kish 1965): 1 plus twice the sum of the
autocorrelations. Evidence is divided by it, as in Rao and Scott's correction (1981).
"""

from collections.abc import Iterable

import msgspec

KEPT = 8192
"""Latest requests of an arm that are looked at."""
LAGS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Between them the autocorrelation is taken for a straight line."""
NOISE = 2.0
"""Standard errors below which an autocorrelation is none: the sum ends there, as Geyer's initial sequence does."""
ALONE = 8.0
"""A canary's one worker shows its bursts whole, where those of stable's several mingle."""
FEWEST = 20
"""Events, and requests without one, from which on anything can be said."""


class Flags(msgspec.Struct):
    """Which of the latest requests had the event: one bit each, the latest lowest."""

    bits: int = 0
    length: int = 0

    def extend(self, flags: Iterable[bool]) -> None:
        text = "".join(map("01".__getitem__, flags))
        if text:
            self.bits = (self.bits << len(text) | int(text, 2)) & ((1 << KEPT) - 1)
            self.length = min(self.length + len(text), KEPT)


def design_effect(flags: Flags) -> float | None:
    """Of the count of events; None where too little is known.

    About one standard error above the estimate, for one that is too low takes bad luck for a regression.
    """
    length, events = flags.length, flags.bits.bit_count()
    if not FEWEST <= events <= length - FEWEST:
        return None
    rate = events / length
    total, reached, last = 0.0, 0, 1.0
    for lag in LAGS:
        if lag * 4 > length:
            break
        pairs = length - lag
        together = (flags.bits & flags.bits >> lag).bit_count() / pairs
        alike = (together - rate * rate) / (rate * (1 - rate))
        if alike < NOISE / pairs**0.5:
            break
        # The trapezoid from the lag before up to this one, that one left out.
        total += (lag - reached) * (last + alike) / 2 + (alike - last) / 2
        reached, last = lag, alike
    estimate = max(1.0, 1 + 2 * total)
    return estimate * (1 + 2 * (2 * estimate / length) ** 0.5) if estimate > 1 else 1.0


def of_both(stable: float | None, canary: float | None) -> float | None:
    """The larger one; but the canary's own counts for ALONE times stable's at most: what begins to fail or to be slow
    in the middle of a rollout looks as if its requests were all alike, and would be excused for as long as it is bad.
    """
    if canary is None:
        return stable
    known = stable if stable is not None else 1.0
    return max(known, min(canary, ALONE * known))
