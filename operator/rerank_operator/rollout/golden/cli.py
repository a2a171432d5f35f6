"""The command line of the golden set: two endpoints in, a comparison and the judge's verdict out."""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from rerank_operator.rollout.golden.ask import CannotAsk, ask
from rerank_operator.rollout.golden.compare import Compared, compared, verdict
from rerank_operator.rollout.golden.golden_set import BadGoldenSet, GoldenSet, read_golden_set
from rerank_operator.rollout.golden.measures import Quality
from rerank_operator.rollout.judge.judge import Settings, Verdict

KEY = "RERANK_API_KEY"
EXIT = {"advance": 0, "rollback": 1, "hold": 3}
BAD_INPUT = 2
"""As argparse's own."""

EPILOG = f"""\
An endpoint is the full address of a rerank route: http://GATEWAY/NAMESPACE/NAME/v2/rerank. The file holds queries, each
with query, documents and labels (how relevant each document is, 0 is not at all), in YAML or JSON, or one a line
(*.jsonl). A key is taken from the environment, {KEY}. Exit status: 0 the canary may go on, 1 it ranks worse, 3 the
set is too small to tell, 2 an input cannot be used or an endpoint does not answer. More: docs/canary-judge.md.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status. Raises SystemExit for options that cannot be parsed, as argparse does."""
    options = _parser().parse_args(arguments)
    try:
        golden = read_golden_set(options.set)
        stable, canary = asyncio.run(_ask_both(options.stable, options.canary, golden))
    except (BadGoldenSet, CannotAsk) as error:
        print(f"golden: {error}", file=sys.stderr)
        return BAD_INPUT
    rows, said = compared(stable, canary, golden.k), verdict(stable, canary, Settings())
    print(json.dumps(_report(golden, rows, said), indent=2) if options.json else _table(golden, rows, said))
    return EXIT[said.action]


async def _ask_both(stable: str, canary: str, golden: GoldenSet) -> tuple[list[Quality], list[Quality]]:
    """One after the other: on a shared machine they would slow each other down."""
    found = []
    for url in (stable, canary):
        done = 0

        def told(url: str = url) -> None:
            nonlocal done
            done += 1
            if sys.stderr.isatty():
                end = "\n" if done == len(golden.queries) else ""
                print(f"\r{url}: {done} of {len(golden.queries)} queries", end=end, file=sys.stderr, flush=True)

        found.append(await ask(url, golden, os.environ.get(KEY), told))
    return found[0], found[1]


def _report(golden: GoldenSet, rows: Sequence[Compared], said: Verdict) -> dict[str, Any]:
    return {
        "queries": len(golden.queries),
        "k": golden.k,
        "measures": msgspec.to_builtins(rows),
        "action": said.action,
        "message": said.metrics[0].message,
    }


def _table(golden: GoldenSet, rows: Sequence[Compared], said: Verdict) -> str:
    lines = [f"{len(golden.queries)} queries", "", f"{'':12}{'stable':>8}{'canary':>8}  difference (95 %)"]
    for row in rows:
        interval = "too few queries" if row.low is None else f"{row.low:+.4f} to {row.high:+.4f}"
        change = f"{row.canary - row.stable:+.4f} ({interval})"
        lines.append(f"{row.measure:12}{row.stable:8.4f}{row.canary:8.4f}  {change}")
    told = {
        "advance": "may go on",
        "rollback": "ranks worse: would be rolled back",
        "hold": "cannot tell: would be held",
    }
    return "\n".join([*lines, "", f"{told[said.action]}: {said.metrics[0].message}"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rerank_operator.rollout.golden",
        description="Compares how two rerank endpoints rank a golden set, query by query, as a rollout's first gate "
        "does.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--set", type=Path, required=True, metavar="FILE", help="the golden set")
    parser.add_argument("--stable", required=True, metavar="URL", help="rerank endpoint of what serves now")
    parser.add_argument("--canary", required=True, metavar="URL", help="rerank endpoint of what may replace it")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    return parser
