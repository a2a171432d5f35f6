"""By how much one sample lies above another: Hodges and Lehmann's estimate, with Mann and Whitney's interval.

As R's ``wilcox.test(x, y, conf.int = TRUE)`` computes them where it does not enumerate: the normal approximation, with
its corrections for ties and continuity, turned round by Brent's method to 1e-4. Sources: R's wilcox.test.default, which
spinnaker/kayenta kayenta-mannwhitney/.../{MannWhitney.scala,KayentaBrentSolver.java} follows to the letter. The
tolerance is part of it: where most values are equal, estimate and bounds are 0 but for it, and a verdict that compares
them hangs on where the method ends.
"""

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

TOLERANCE = 1e-4
"""In the samples' unit."""
MOST_STEPS = 1000
EPSILON = 2.0**-52


class Shift(NamedTuple):
    """How far the first sample lies above the second, in their unit."""

    low: float
    high: float
    estimate: float


class AllTied(ValueError):
    """No interval exists: with some shift, all values are the same."""


def shift(x: Sequence[float], y: Sequence[float], confidence: float) -> Shift:
    """``x`` over ``y``, none of them empty, with the two-sided interval. AllTied when each of them has one value only.

    Cost: some 60 passes over the values, each of n log n.
    """
    ordered = sorted(y)
    least, most = min(x) - ordered[-1], max(x) - ordered[0]
    at_least, at_most = statistic(x, ordered, least), statistic(x, ordered, most)
    quantile = NormalDist().inv_cdf((1 + confidence) / 2)

    def where(z: float) -> float:
        """The shift with which the statistic is ``z``."""
        return _root(lambda mu: statistic(x, ordered, mu) - z, least, most, at_least - z, at_most - z)

    def bound(z: float) -> float:
        if at_least - z <= 0:
            return least
        return most if at_most - z >= 0 else where(z)

    return Shift(bound(quantile), bound(-quantile), where(0))


def statistic(x: Sequence[float], ordered: Sequence[float], mu: float) -> float:
    """Mann and Whitney's, in standard deviations, of ``x`` less ``mu`` against ``ordered``, which is ascending."""
    moved = [value - mu for value in x]
    m, n = len(moved), len(ordered)
    pairs = sum(bisect_left(ordered, value) + bisect_right(ordered, value) for value in moved) / 2
    excess = pairs - m * n / 2
    tied = sum(times**3 - times for times in Counter([*moved, *ordered]).values())
    variance = m * n / 12 * (m + n + 1 - tied / ((m + n) * (m + n - 1)))
    if variance <= 0:
        raise AllTied("all values are the same: no interval for their shift")
    return (excess - math.copysign(0.5, excess) if excess else 0.0) / math.sqrt(variance)


def _root(function: Callable[[float], float], a: float, b: float, fa: float, fb: float) -> float:
    """Where ``function`` changes its sign between ``a`` and ``b``, by Brent's method (Algorithms for Minimization
    without Derivatives, 1973, chapter 4) with the bookkeeping of R's uniroot, which decides on which side of a jump it
    ends."""
    if fa == 0:
        return a
    if fb == 0:
        return b
    c, fc = a, fa  # b is the best so far, a the one before it, c on the other side of the root.
    for _ in range(MOST_STEPS):
        before = b - a
        if abs(fc) < abs(fb):
            a, b, c = b, c, b
            fa, fb, fc = fb, fc, fb
        smallest = 2 * EPSILON * abs(b) + TOLERANCE / 2
        step = (c - b) / 2
        if abs(step) <= smallest or fb == 0:
            break
        if abs(before) >= smallest and abs(fa) > abs(fb):
            step = _interpolated(a, b, c, fa, fb, fc, before, smallest)
        if abs(step) < smallest:
            step = math.copysign(smallest, step)
        a, fa = b, fb
        b += step
        fb = function(b)
        if fb * fc > 0:
            c, fc = a, fa
    return b


def _interpolated(
    a: float, b: float, c: float, fa: float, fb: float, fc: float, before: float, smallest: float
) -> float:
    """The step from ``b`` by the secant or the inverse parabola; half the way to ``c`` where that goes too far."""
    width, to_a = c - b, fb / fa
    if a == c:
        p, q = width * to_a, 1 - to_a
    else:
        a_to_c, to_c = fa / fc, fb / fc
        p = to_a * (width * a_to_c * (a_to_c - to_c) - (b - a) * (to_c - 1))
        q = (a_to_c - 1) * (to_c - 1) * (to_a - 1)
    if p > 0:
        q = -q
    else:
        p = -p
    if p < 0.75 * width * q - abs(smallest * q) / 2 and p < abs(before * q / 2):
        return p / q
    return width / 2
