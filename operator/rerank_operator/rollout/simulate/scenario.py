"""Reads a scenario (YAML): what traffic comes, and how stable and canary truly are.

Refuses what it does not understand with the file, the field and the remedy; it never guesses a value.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

WEIGHTS = (1.0, 5.0, 25.0, 50.0, 100.0)
RUNS = 200
MOST_RUNS = 100_000
MOST_REQUESTS = 1e9
"""Of one run."""

GOLDEN_CORRELATION = 0.8
"""Between the arms' nDCG of one query, where a scenario states none: a query that is hard for one is for the other. An
assumption, not a measurement."""

FIELDS = (
    "name",
    "description",
    "requests_per_second",
    "horizon_seconds",
    "runs",
    "seed",
    "weights",
    "correlation",
    "bursts",
    "ndcg_sd",
    "golden_queries",
    "golden_correlation",
    "stable",
    "canary",
)
BURST_FIELDS = ("factor", "on_seconds", "off_seconds")
QUALITY_FIELDS = ("ndcg", "ndcg_sd", "golden_queries")
ARM_FIELDS = ("error_rate", "latency", *QUALITY_FIELDS)
NDCG_FIELDS = {
    "mean": "ndcg",
    "ndcg": "ndcg",
    "ndcg_sd": "ndcg_sd",
    "sd": "ndcg_sd",
    "golden_queries": "golden_queries",
}
"""What may stand in an arm's ``ndcg``, and the arm's field that it means."""
LATENCY_FIELDS = ("p50_seconds", "p95_seconds", "samples")


class BadInput(ValueError):
    """A file that cannot be used; the message names it, the place in it, and the remedy."""


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Seconds of a request."""

    p50: float
    p95: float


@dataclass(frozen=True, slots=True)
class Samples:
    """Recorded seconds, in their order; at least one."""

    file: str
    seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Quality:
    """nDCG over golden queries: their mean and standard deviation, before they are clipped to 0..1."""

    ndcg: float
    sd: float


@dataclass(frozen=True, slots=True)
class Arm:
    error_rate: float
    """0 to 1."""
    latency: LogNormal | Samples
    quality: Quality | None
    """In both arms or in none."""


@dataclass(frozen=True, slots=True)
class Bursts:
    """``factor`` times as many requests for ``on`` seconds, then the stated rate for ``off`` seconds, and again."""

    factor: float
    on: float
    off: float


@dataclass(frozen=True, slots=True)
class Scenario:
    requests_per_second: float
    horizon: float
    """Seconds."""
    runs: int
    seed: int
    weights: tuple[float, ...]
    """Percent, ascending; only the last may be 100."""
    correlation: float | None
    """Of log latency from one request of an arm to the next; None (samples only): as they were recorded."""
    bursts: Bursts | None
    golden_queries: int
    """0: no golden set."""
    golden_correlation: float
    stable: Arm
    canary: Arm


class _UniqueFields(yaml.SafeLoader):
    """Refuses a field that stands twice in one place: YAML's own rule, of which PyYAML would let the last win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    line = key.start_mark.line + 1
                    raise BadInput(f"{key.value}: stands there twice, the second time in line {line}: leave one out")
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_scenario(path: Path) -> Scenario:
    """The scenario in ``path``; a file of samples is looked for beside it, then where the command runs.

    Raises BadInput with the field.
    """
    try:
        body = yaml.load(path.read_text("utf-8"), _UniqueFields)  # noqa: S506 - a SafeLoader
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}): give the path of a scenario") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"{path}: is no YAML: {error}") from None
    except RecursionError:
        raise BadInput(f"{path}: is no YAML of a scenario: it is nested too deeply") from None
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
    except ValueError as error:  # What looks like a date or a number, and is none that Python has.
        raise BadInput(f"{path}: is no YAML that can be used ({error}): put a quote around such a value") from None
    try:
        return _scenario(body, path.parent)
    except ValueError as error:
        raise BadInput(f"{path}: {error}") from None


def read_samples(name: str, path: Path) -> Samples:
    """Recorded seconds, one a line; a line that begins with # is a comment. Raises BadInput, which calls the file
    ``name``."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except OSError as error:
        raise BadInput(
            f"{name} cannot be read ({error.strerror}): give a path from the scenario's folder, or from where the "
            "command runs"
        ) from None
    except UnicodeDecodeError:
        raise BadInput(f"{name} is no text: write a number of seconds on each line") from None
    seconds = [
        _positive(f"{name}, line {number}", line)
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.startswith("#")
    ]
    if not seconds:
        raise BadInput(f"{name} has no numbers: write recorded seconds, one on each line")
    return Samples(name, tuple(seconds))


def _scenario(body: Any, folder: Path) -> Scenario:
    fields = _mapping("", body, FIELDS)
    stable, stable_queries = _arm("stable", fields, folder)
    canary, canary_queries = _arm("canary", fields, folder)
    if (stable.quality is None) != (canary.quality is None):
        missing = "stable" if stable.quality is None else "canary"
        raise ValueError(f"{missing}.ndcg: is missing: state it for both arms, or for none to leave the golden set out")
    stated = {"stable.golden_queries": stable_queries, "canary.golden_queries": canary_queries}
    if "golden_queries" in fields:
        stated["golden_queries"] = _whole("golden_queries", fields["golden_queries"], 0, 10**6)
    queries = {count for count in stated.values() if count is not None}
    if len(queries) > 1:
        told = ", ".join(f"{name} is {count}" for name, count in stated.items() if count is not None)
        raise ValueError(f"{told}: both arms answer the same queries: state one number")
    if stable.quality is not None and queries <= {0}:
        missing = "is 0" if queries else "is missing"
        raise ValueError(f"golden_queries: {missing}: state how many queries the golden set has (ndcg is of them)")
    recorded = isinstance(stable.latency, Samples) or isinstance(canary.latency, Samples)
    correlation = _number("correlation", fields["correlation"], 0, 1) if "correlation" in fields else None
    found = Scenario(
        requests_per_second=_positive("requests_per_second", _required("", fields, "requests_per_second")),
        horizon=_positive("horizon_seconds", _required("", fields, "horizon_seconds")),
        runs=_whole("runs", fields.get("runs", RUNS), 1, MOST_RUNS),
        seed=_whole("seed", fields.get("seed", 0), 0, 2**63),
        weights=_weights(fields["weights"]) if "weights" in fields else WEIGHTS,
        correlation=correlation if correlation is not None or recorded else 0.0,
        bursts=_bursts(fields["bursts"]) if fields.get("bursts") else None,
        golden_queries=queries.pop() if stable.quality is not None else 0,
        golden_correlation=_number("golden_correlation", fields.get("golden_correlation", GOLDEN_CORRELATION), 0, 1),
        stable=stable,
        canary=canary,
    )
    requests = found.requests_per_second * found.horizon * max(1, found.bursts.factor if found.bursts else 1)
    if requests > MOST_REQUESTS:
        raise ValueError(
            f"requests_per_second, horizon_seconds: a run would have up to {requests:.3g} requests: "
            f"stay below {MOST_REQUESTS:g}"
        )
    return found


def _arm(name: str, fields: Mapping[str, Any], folder: Path) -> tuple[Arm, int | None]:
    """And its ``golden_queries``, None where it states none."""
    body = dict(_mapping(name, _required("", fields, name), ARM_FIELDS))
    if isinstance(body.get("ndcg"), Mapping):
        ndcg = _mapping(f"{name}.ndcg", body.pop("ndcg"), tuple(NDCG_FIELDS))
        for inner, value in ndcg.items():
            field = NDCG_FIELDS[inner]
            if field in body:
                raise ValueError(f"{name}.{field}: stands twice, once as {name}.ndcg.{inner}: state it once")
            body[field] = value
        if "ndcg" not in body:
            raise ValueError(f"{name}.ndcg.mean: is missing: state it")
    if "ndcg" in body and "ndcg_sd" in fields:
        body.setdefault("ndcg_sd", fields["ndcg_sd"])
    quality = None
    if "ndcg" in body:
        quality = Quality(
            _number(f"{name}.ndcg", body["ndcg"], 0, 1),
            _number(f"{name}.ndcg_sd", _required(name, body, "ndcg_sd"), 0, 1),
        )
    elif "ndcg_sd" in body:
        raise ValueError(f"{name}.ndcg: is missing, while {name}.ndcg_sd is there: state both, or none")
    queries = body.get("golden_queries")
    arm = Arm(
        error_rate=_number(f"{name}.error_rate", _required(name, body, "error_rate"), 0, 1),
        latency=_latency(f"{name}.latency", _required(name, body, "latency"), folder),
        quality=quality,
    )
    return arm, None if queries is None else _whole(f"{name}.golden_queries", queries, 0, 10**6)


def _latency(name: str, value: Any, folder: Path) -> LogNormal | Samples:
    body = _mapping(name, value, LATENCY_FIELDS)
    if "samples" in body:
        if len(body) > 1:
            raise ValueError(f"{name}: has samples and quantiles: state samples, or p50_seconds and p95_seconds")
        return _samples(f"{name}.samples", body["samples"], folder)
    p50 = _positive(f"{name}.p50_seconds", _required(name, body, "p50_seconds"))
    p95 = _positive(f"{name}.p95_seconds", _required(name, body, "p95_seconds"))
    if p95 < p50:
        raise ValueError(f"{name}.p95_seconds: {p95:g} is below p50_seconds ({p50:g}): it must be at least that")
    return LogNormal(p50, p95)


def _samples(name: str, value: Any, folder: Path) -> Samples:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name}: {value!r} must be the path of a file with a number of seconds on each line")
    try:
        return read_samples(value, folder / value if os.path.exists(folder / value) else Path(value))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _bursts(value: Any) -> Bursts:
    body = _mapping("bursts", value, BURST_FIELDS)
    return Bursts(*(_positive(f"bursts.{name}", _required("bursts", body, name)) for name in BURST_FIELDS))


def _weights(value: Any) -> tuple[float, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ValueError(f"weights: {value!r} must be a list of percents, such as [1, 5, 25, 50, 100]")
    weights = tuple(_number(f"weights[{place}]", item, 0, 100) for place, item in enumerate(value))
    if weights[0] in (0, 100) or any(later <= earlier for earlier, later in pairwise(weights)):
        raise ValueError(
            f"weights: {list(weights)} must ascend from above 0, and begin below 100, such as [1, 5, 25, 50, 100]"
        )
    return weights


def _mapping(name: str, value: Any, known: Sequence[str]) -> Mapping[str, Any]:
    """What is stated: a field that is left empty is not. ``name``: of the field, empty for the whole file."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{name or 'the scenario'}: {value!r} is not a mapping: write fields and values")
    for field in value:
        if field not in known:
            near = get_close_matches(str(field), known, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"{_path(name, field)}: there is no such field; the nearest is {near} (fields: {', '.join(known)})"
            )
    return {field: stated for field, stated in value.items() if stated is not None}


def _required(name: str, fields: Mapping[str, Any], field: str) -> Any:
    if field not in fields:
        raise ValueError(f"{_path(name, field)}: is missing: state it")
    return fields[field]


def _path(name: str, field: Any) -> str:
    return f"{name}.{field}" if name else str(field)


def _positive(name: str, value: Any) -> float:
    found = _float(value)
    if not 0 < found < math.inf:
        raise ValueError(f"{name}: {value!r} must be a number above 0")
    return found


def _number(name: str, value: Any, least: float, most: float) -> float:
    found = _float(value)
    if not least <= found <= most:
        raise ValueError(f"{name}: {value!r} must be a number from {least:g} to {most:g}")
    return found


def _float(value: Any) -> float:
    """NaN of what is no number. Text counts too: YAML 1.1 takes 1e-3 for it."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def _whole(name: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name}: {value!r} must be a whole number from {least} to {most}")
    return value
