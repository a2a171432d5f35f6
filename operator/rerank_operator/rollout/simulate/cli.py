"""The command line of the simulator: a scenario in, one JSON object or a table out."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec

from rerank_operator.rollout.judge.judge import Settings
from rerank_operator.rollout.simulate.doubts import doubts
from rerank_operator.rollout.simulate.scenario import MOST_RUNS, BadInput, read_scenario

BAD_INPUT = 2
"""The exit status, as argparse's own."""

EPILOG = """\
A scenario is a YAML file: requests_per_second, horizon_seconds, runs, seed, weights (percent a step), correlation,
bursts, golden_queries, and stable and canary, each with error_rate, latency (p50_seconds and p95_seconds, or samples: a
file with recorded seconds, one a line), ndcg and ndcg_sd. What the fields and the figures mean: docs/canary-judge.md.
The same scenario and seed give the same figures. Exit status: 0, or 2 when an input cannot be used.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status. Raises SystemExit for options that cannot be parsed, as argparse does."""
    options = _parser().parse_args(arguments)
    try:
        from rerank_operator.rollout.simulate.ours import Ours
        from rerank_operator.rollout.simulate.report import report, table
        from rerank_operator.rollout.simulate.runs import JUDGES, simulate
    except ModuleNotFoundError as error:
        if error.name != "numpy":
            raise
        print("simulate: needs numpy, which is not installed: pip install numpy", file=sys.stderr)
        return BAD_INPUT
    try:
        scenario = read_scenario(options.scenario)
        chosen = _settings(options.set, options.judge)
    except BadInput as error:
        print(f"simulate: {error}", file=sys.stderr)
        return BAD_INPUT
    scenario = replace(
        scenario,
        runs=scenario.runs if options.runs is None else options.runs,
        seed=scenario.seed if options.seed is None else options.seed,
    )
    # Of the others nobody has promised a probability.
    warnings = doubts(scenario) if options.judge == "ours" else []
    for warning in warnings:
        print(f"simulate: warning: {warning} (docs/canary-judge.md, Too alike to judge)", file=sys.stderr)
    told = _Progress(scenario.runs)
    make = partial(Ours, settings=chosen) if options.judge == "ours" else JUDGES[options.judge]
    told(0)
    try:
        runs = simulate(scenario, make, told=told)
    finally:
        told.end()
    found = report(options.judge, runs, scenario)
    if options.judge == "ours":
        found["settings"]["judge"] = msgspec.to_builtins(chosen)
    found["warnings"] = warnings
    print(json.dumps(found, indent=2) if options.json else table(found))
    return 0


def _settings(given: Sequence[str], judge: str) -> Settings:
    if given and judge != "ours":
        raise BadInput(f"--set: {judge} is played with its published defaults: only ours can be set")
    values = {}
    for one in given:
        name, sign, value = one.partition("=")
        if not sign:
            raise BadInput(f"--set: {one!r} must be NAME=VALUE, such as errorProbability=0.02")
        values[name] = value
    try:
        return msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        known = ", ".join(field.encode_name for field in msgspec.structs.fields(Settings))
        raise BadInput(f"--set: {error}; there are {known}") from None


class _Progress:
    """One line on the error stream that is written anew, where a person watches; nothing for a log."""

    def __init__(self, runs: int) -> None:
        self._runs = runs
        self._watched = sys.stderr.isatty()

    def __call__(self, done: int) -> None:
        if self._watched:
            print(f"\r{done} of {self._runs} runs", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Takes the line away again."""
        if self._watched:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rerank_operator.rollout.simulate",
        description="Plays a scenario's rollout many times against a judge: how often it would roll back or promote, "
        "after how many requests of the canary.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--scenario", type=Path, required=True, metavar="FILE", help="the scenario, in YAML")
    parser.add_argument(
        "--judge",
        choices=("ours", "flagger", "kayenta"),
        default="ours",
        help="who decides: the operator's judge, or Flagger's or Kayenta's rules with their defaults; default: ours",
    )
    parser.add_argument(
        "--runs", type=_whole(1, MOST_RUNS), metavar="N", help="rollouts to play; default: the scenario's"
    )
    parser.add_argument(
        "--seed", type=_whole(0, 2**63), metavar="N", help="of everything that is drawn; default: the scenario's"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a threshold of ours, such as errorProbability=0.02; repeatable; docs/canary-judge.md has them all",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    return parser


def _whole(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from {least} to {most}")
        return int(text)

    return parse
