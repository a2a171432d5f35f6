"""What mirrored requests say of a canary before any user's request reaches it. Pure: answers in, a verdict out.

A copy of a request is late and lonely on workers that nobody else uses, so its seconds are told and decide nothing.
What decides are failures, and how far both rankings agree where the user has said how far they must.
"""

import math
from collections.abc import Sequence
from statistics import median
from typing import Literal

import msgspec
from rerank_api.answers import Mirrored
from rerank_api.reranker import DifferedRequest

from rerank_operator.rollout.judge.judge import SUSPICION, Settings
from rerank_operator.rollout.judge.quality import FEWEST, Difference, compare

TOLERATED = 0.01
"""Share of mirrored requests that may fail: stable has answered each of them, so a good canary fails next to none."""
RATES = (0.02, 0.05, 0.1, 0.3, 0.9)
"""Shares that are looked for instead."""
FEWEST_FAILURES = 3
"""Before which none is gross: two may have met the same mishap."""
MOST_TOLD = 5
"""Requests that differed most: for a person to look at, and within the CRD's bound."""
LONGEST_ID = 128
"""The CRD's bound; a gateway gives none that is longer."""
INTERVAL = 0.95
"""Of the mean agreement that is told; the verdict has probabilities of its own (Settings)."""


class MirrorVerdict(msgspec.Struct, frozen=True):
    verdict: Literal["pass", "fail", "hold"]
    message: str


def judge_mirror(
    mirrored: Sequence[Mirrored], needed: int, settings: Settings, least_agreement: float | None
) -> MirrorVerdict:
    """``mirrored``: all that came. ``needed``: so many of them before the gate is passed. ``least_agreement``: mean
    Kendall's tau of both rankings below which it is not; None: agreement is told only.

    Failures are looked at with each answer, at ``settings.error_probability`` for all looks together; the agreement
    only once enough came, for it would be found too low by chance if it were looked at often enough.
    """
    failures = sum(one.failed for one in mirrored)
    evidence = _evidence(len(mirrored), failures)
    told = _told(mirrored, failures)
    if failures >= FEWEST_FAILURES and evidence >= 1 / settings.error_probability:
        return MirrorVerdict("fail", f"{told}; more than {TOLERATED:.0%} fail: evidence {evidence:.3g}")
    if len(mirrored) < needed:
        return MirrorVerdict("hold", f"{told}; {needed} are needed")
    if evidence >= SUSPICION:
        return MirrorVerdict("hold", f"{told}; whether more than {TOLERATED:.0%} fail is not clear yet")
    if least_agreement is None:
        return MirrorVerdict("pass", told)
    agreements = _agreements(mirrored)
    found = _compared(agreements, settings.miss_probability, settings.error_probability)
    if found is None:
        why = f"the agreement is known of {len(agreements)}, {FEWEST} are needed to compare it with {least_agreement:g}"
        return MirrorVerdict("hold", f"{told}; {why}")
    if found.high < least_agreement:
        return MirrorVerdict("fail", f"{told}; the agreement must be {least_agreement:g}")
    return MirrorVerdict("pass", told)


def differed(mirrored: Sequence[Mirrored]) -> tuple[DifferedRequest, ...]:
    """Those on which both rankings differed most, worst first; of equal ones, where scores lie farthest apart. A
    request that failed has no ranking to differ by, and one that is called nothing cannot be looked for."""
    told = [
        one
        for one in mirrored
        if 0 < len(one.request_id) <= LONGEST_ID and not one.failed
        if (one.agreement is not None and one.agreement < 1) or one.drift
    ]
    worst = sorted(told, key=lambda one: (2.0 if one.agreement is None else one.agreement, -(one.drift or 0.0)))
    return tuple(
        DifferedRequest(
            one.request_id,
            None if one.agreement is None else round(one.agreement, 4),
            None if one.drift is None else round(one.drift, 6),
        )
        for one in worst[:MOST_TOLD]
    )


def _evidence(requests: int, failures: int) -> float:
    """Against "no more than TOLERATED fail": a mean of likelihood ratios. By Ville's inequality it ever reaches 1/alpha
    with a probability of at most alpha, however often one looks."""
    logs = [
        failures * math.log(rate / TOLERATED) + (requests - failures) * math.log((1 - rate) / (1 - TOLERATED))
        for rate in RATES
    ]
    return sum(math.exp(min(log, 700.0)) for log in logs) / len(logs)


def _agreements(mirrored: Sequence[Mirrored]) -> list[float]:
    return [one.agreement for one in mirrored if one.agreement is not None]


def _compared(agreements: Sequence[float], above: float, below: float) -> Difference | None:
    return compare([0.0] * len(agreements), agreements, above, below)


def _told(mirrored: Sequence[Mirrored], failures: int) -> str:
    if not mirrored:
        return "no mirrored request was answered yet"
    parts = [f"{failures} of {len(mirrored)} mirrored requests failed"]
    agreements = _agreements(mirrored)
    half = (1 - INTERVAL) / 2
    found = _compared(agreements, half, half)
    if found is not None:
        low, high = max(found.low, -1.0), min(found.high, 1.0)
        parts.append(f"agreement of the rankings (Kendall's tau) {found.mean:.3f}, between {low:.3f} and {high:.3f}")
    elif agreements:
        parts.append(f"agreement of the rankings (Kendall's tau) {sum(agreements) / len(agreements):.3f}")
    drifts = [one.drift for one in mirrored if one.drift is not None]
    if drifts:
        parts.append(f"a request's scores apart by up to {sum(drifts) / len(drifts):.3g} in the mean")
    answered = [one for one in mirrored if not one.failed]
    if answered:
        stable, canary = (median(getattr(one, f"{arm}_seconds") for one in answered) for arm in ("stable", "canary"))
        parts.append(f"median {stable:.3g} s, canary {canary:.3g} s")
    return ", ".join(parts)
