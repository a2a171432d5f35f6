"""An hour of requests by formula: what a gateway counts of them."""

import math

import msgspec
from rerank_operator.page.exposition import Counts

EDGES = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 10.0, math.inf)


class Traffic(msgspec.Struct, frozen=True):
    """What one revision is asked, at a moment ``at`` seconds after the beginning: requests a second in all."""

    mean: float
    wave: float = 0.3
    """Share by which it swings."""
    median: float = 0.06
    """Latency in seconds; log-normal."""
    spread: float = 0.45
    errors: float = 0.0
    waiting: int = 0
    begins: float = 0.0

    def rate(self, at: float) -> float:
        if at < self.begins:
            return 0.0
        slow, quick = math.sin(at / 700 + self.mean), math.sin(at / 61 + 2 * self.mean)
        return max(0.0, self.mean * (1 + self.wave * (0.7 * slow + 0.3 * quick)))

    def within(self, seconds: float) -> float:
        """The share that is answered within so many."""
        return 0.5 * (1 + math.erf(math.log(seconds / self.median) / (self.spread * math.sqrt(2))))


def counted(traffic: Traffic, amount: float, threshold: float) -> Counts:
    """What a gateway has counted of ``amount`` requests."""
    bad = amount * traffic.errors
    good = amount - bad
    late = good * (1 - traffic.within(threshold))
    return {
        "code/200": good,
        **({"code/503": bad} if bad else {}),
        "availability/total": amount,
        "availability/good": good,
        "latency/total": good,
        "latency/good": good - late,
        **{
            f"le/{'+Inf' if math.isinf(edge) else edge}": good * (1 if math.isinf(edge) else traffic.within(edge))
            for edge in EDGES
        },
    }
