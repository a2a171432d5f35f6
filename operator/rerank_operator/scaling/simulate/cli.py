"""The command line of the simulator: files and options in, one JSON object or a table out."""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from rerank_operator.scaling.simulate.fleet import Plant
from rerank_operator.scaling.simulate.inputs import BadInput, read_manifest, read_trace
from rerank_operator.scaling.simulate.report import table
from rerank_operator.scaling.simulate.runs import TARGETS, Case, ControllerName, simulate

BAD_INPUT = 2
"""The exit status, as argparse's own."""

EPILOG = """\
A trace is a CSV file with the header seconds,tokens,priority: a line for each request, with the seconds since the
trace's begin (or Unix time, which schedules need), the tokens of all its pairs, and high, normal or low.
Each trace is a Reranker of one fleet that shares the warm pool. The policy is the manifest's spec.scaling and spec.slo;
requests are lost only by the spec.requests.queueLimit and timeout that it states (without them they are held).
What the model is and how to read the figures: docs/simulate.md. Exit status: 0, or 2 when an input cannot be used.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status. Raises SystemExit for options that cannot be parsed, as argparse does."""
    options = _parser().parse_args(arguments)
    try:
        case = _case(options)
    except BadInput as error:
        print(f"simulate: {error}", file=sys.stderr)
        return BAD_INPUT
    found = simulate(case, cast("ControllerName", options.controller), options.target)
    found["settings"] = _settings(options, case)
    print(json.dumps(found, indent=2) if options.json else table(found))
    return 0


def _case(options: argparse.Namespace) -> Case:
    traces: list[Path] = options.trace
    manifests = [read_manifest(path) for path in options.reranker]
    if len(manifests) not in (1, len(traces)):
        raise BadInput(
            f"{len(manifests)} manifests for {len(traces)} traces: give --reranker once for all traces, or as often as "
            "--trace"
        )
    if len(manifests) == 1:
        manifests *= len(traces)
    pods = options.warm_pods
    if pods is None:
        pods = int(any(manifest.policy.warm_pool for manifest in manifests))
    plant = Plant(options.capacity, options.cold_start, options.warm_start, pods)
    return Case([path.stem for path in traces], [read_trace(path) for path in traces], manifests, plant)


def _settings(options: argparse.Namespace, case: Case) -> dict[str, Any]:
    return {
        "capacity_tokens_per_second": case.plant.capacity,
        "cold_start_seconds": case.plant.cold_start,
        "warm_start_seconds": case.plant.warm_start,
        "warm_pods": case.plant.warm_pods if options.controller == "ours" else 0,
        "batch_requests": case.plant.batch,
        "slo": [
            {"quantile": manifest.policy.latency_quantile, "seconds": manifest.policy.latency_threshold}
            for manifest in case.manifests
        ],
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rerank_operator.scaling.simulate",
        description="Replays traces of requests against a model of a fleet: what a policy and a warm pool would cost, "
        "and how long requests would wait.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--trace",
        type=Path,
        action="append",
        required=True,
        metavar="FILE",
        help="requests of one Reranker; repeatable",
    )
    parser.add_argument(
        "--reranker",
        type=Path,
        action="append",
        required=True,
        metavar="MANIFEST",
        help="a Reranker's manifest (YAML or JSON): once for all traces, or once for each, in their order",
    )
    parser.add_argument(
        "--controller",
        choices=("ours", "kpa", "keda-hpa"),
        default="ours",
        help="who decides: the operator, Knative's autoscaler, or KEDA's HTTP add-on with an HPA; default: ours",
    )
    parser.add_argument(
        "--target",
        type=_positive,
        metavar="REQUESTS",
        help="of kpa and keda-hpa: requests at once per replica (kpa aims at 70 %% of it); absent: the best of "
        f"{', '.join(f'{target:g}' for target in TARGETS)}: the cheapest that meets spec.slo.latency, "
        "or else that with the fewest misses",
    )
    parser.add_argument(
        "--capacity",
        type=_positive,
        default=20_000.0,
        metavar="TOKENS_PER_S",
        help="tokens a second of one replica, as measured under load; default: 20000",
    )
    parser.add_argument(
        "--cold-start",
        type=_seconds,
        default=60.0,
        metavar="S",
        help="seconds from a new replica to its first request; default: 60",
    )
    parser.add_argument(
        "--warm-start",
        type=_seconds,
        default=1.5,
        metavar="S",
        help="seconds from the claim of a warm pod to its first request; default: 1.5",
    )
    parser.add_argument(
        "--warm-pods",
        type=_whole,
        metavar="N",
        help="pods of the warm pool, which only ours uses; default: 1 if a manifest names a warmPool, else 0",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    return parser


def _positive(text: str) -> float:
    value = _number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number above 0")
    return value


def _seconds(text: str) -> float:
    value = _number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be seconds, from 0")
    return value


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} must be a number")
    return value


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) > 1000:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 0 to 1000")
    return int(text)
