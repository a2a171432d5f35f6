"""How soon a metric of the user's own decides on a canary, by how often it is beyond its limit; JSON out, seconds.

    python tests/bench/own_metrics.py [--runs 400] [--intervals 400] [--json FILE]

One query beside errors and latency, default settings, four steps; a step is taken after an interval in which nothing
looks suspicious. In each interval the canary is beyond the limit by chance, with the row's share. Deterministic.
"""

import sys
from pathlib import Path
from random import Random
from typing import Any

from rerank_operator.rollout.judge.judge import SUSPICION, Settings, chance_of_each
from rerank_operator.rollout.judge.series import Limit, Series, Values

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import figures

SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3, 0.2, 0.1, 0.0)
STEPS = 4
LIMIT = Limit(0.05, higher=False)
BEYOND, WITHIN = Values(1.0, 0.0), Values(1.0, 1.0)


def main() -> int:
    parser = figures.parser(__doc__)
    parser.add_argument("--runs", type=int, default=400, help="rollouts of each share (default: %(default)s)")
    parser.add_argument("--intervals", type=int, default=400, help="of each rollout, at most (default: %(default)s)")
    options = parser.parse_args()
    rows = [row(share, options.runs, options.intervals) for share in SHARES]
    figures.publish(options, {"rows": rows})
    return 0


def row(share: float, runs: int, intervals: int) -> dict[str, Any]:
    ended: dict[str, list[int]] = {"fail": [], "pass": []}
    for run in range(runs):
        verdict, after = rollout(share, Random(f"{share} {run}"), intervals)
        if verdict in ended:
            ended[verdict].append(after)
    return {
        "beyond": share,
        "taken_back": len(ended["fail"]) / runs,
        "passed": len(ended["pass"]) / runs,
        "intervals_until_taken_back": _quantiles(ended["fail"]),
        "intervals_until_passed": _quantiles(ended["pass"]),
    }


def rollout(share: float, chance: Random, intervals: int) -> tuple[str, int]:
    """The verdict (hold: none by then), and after how many intervals."""
    settings, found, step = Settings(), Series.begin("", 0.0), 0
    of_one = chance_of_each(settings, golden=False, queries=1)
    for number in range(1, intervals + 1):
        found.reach(step)
        found.add(BEYOND if chance.random() < share else WITHIN, LIMIT)
        said = found.judge("orders", LIMIT, STEPS, of_one, settings.miss_probability)
        if said.verdict == "fail" or (said.verdict == "pass" and step == STEPS - 1):
            return said.verdict, number
        if said.worse < SUSPICION:
            step = min(step + 1, STEPS - 1)
    return "hold", intervals


def _quantiles(counts: list[int]) -> dict[str, int] | None:
    """Of those that were seen."""
    ordered = sorted(counts)
    return {f"p{q}": ordered[(len(ordered) - 1) * q // 100] for q in (50, 90)} if ordered else None


if __name__ == "__main__":
    sys.exit(main())
