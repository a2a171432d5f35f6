"""Reads what a user gives: traces (CSV) and Reranker manifests (YAML or JSON).

Refuses what it does not understand with the file, the line and the field; it never guesses a value.
"""

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rerank_api.units import parse_duration

from rerank_operator.scaling.policy import Policy, policy_from_manifest

PRIORITIES = ("high", "normal", "low")
COLUMNS = ("seconds", "tokens", "priority")
MOST_SECONDS = 1e11
MOST_TOKENS = 10**15

CALENDAR = 1e8
"""Seconds from which a trace is taken to hold Unix times: it then begins with its first request, and not at 0."""

Arrival = tuple[float, int, int]
"""Seconds, tokens, and the place of its priority in ``PRIORITIES``."""


class BadInput(ValueError):
    """A file that cannot be used; the message names it, the place in it, and the remedy."""


@dataclass(frozen=True, slots=True)
class Limits:
    """``spec.requests`` as far as it loses requests; what a manifest does not state loses none."""

    queue: float = math.inf
    """Requests that may wait."""
    timeout: float = math.inf
    """Seconds that a request may wait."""


@dataclass(frozen=True, slots=True)
class Manifest:
    name: str
    model: str
    policy: Policy
    limits: Limits


def read_trace(path: Path) -> list[Arrival]:
    """The requests in ``path``, in order of time (the file's lines may be in any order).

    Raises BadInput with the line and the column.
    """
    arrivals: list[Arrival] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file)
            places = _places(path, next(lines, []))
            for row in lines:
                if row:
                    try:
                        arrivals.append(_arrival(row, *places))
                    except ValueError as error:
                        raise BadInput(f"{path}, line {lines.line_num}: {error}") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}): give the path of a CSV file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadInput(
            f"{path}: is no CSV file in UTF-8 ({error}): write a header and a line for each request"
        ) from None
    arrivals.sort(key=lambda arrival: arrival[0])
    if arrivals and arrivals[0][0] < CALENDAR <= arrivals[-1][0]:
        raise BadInput(
            f"{path}: seconds go from {arrivals[0][0]:g} to {arrivals[-1][0]:g}: from {CALENDAR:g} on they are Unix "
            "times, below they count from the trace's begin: use one of the two in all lines"
        )
    return arrivals


def _places(path: Path, header: list[str]) -> tuple[int, int, int]:
    names = [name.strip() for name in header]
    missing = [column for column in COLUMNS if column not in names]
    if missing:
        raise BadInput(f"{path}, line 1: no column {', '.join(missing)}: the first line must be {','.join(COLUMNS)}")
    seconds, tokens, priority = (names.index(column) for column in COLUMNS)
    return seconds, tokens, priority


def _arrival(row: list[str], seconds_at: int, tokens_at: int, priority_at: int) -> Arrival:
    if len(row) <= max(seconds_at, tokens_at, priority_at):
        raise ValueError(f"{len(row)} columns are fewer than the header has: write {','.join(COLUMNS)}")
    text = row[seconds_at]
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= MOST_SECONDS:
        raise ValueError(f"seconds: {text!r} must be a number from 0 to {MOST_SECONDS:g}")
    text = row[tokens_at]
    try:
        tokens = int(text)
    except ValueError:
        tokens = 0
    if not 1 <= tokens <= MOST_TOKENS:
        raise ValueError(f"tokens: {text!r} must be a whole number from 1 to {MOST_TOKENS:g}")
    text = row[priority_at].strip() or "normal"
    if text not in PRIORITIES:
        raise ValueError(f"priority: {text!r} must be one of {', '.join(PRIORITIES)}, or empty for normal")
    return seconds, tokens, PRIORITIES.index(text)


def read_manifest(path: Path) -> Manifest:
    """The Reranker in ``path``. Raises BadInput with the field."""
    try:
        documents = [document for document in yaml.safe_load_all(path.read_text("utf-8")) if document is not None]
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}): give the path of a Reranker's manifest") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"{path}: is neither YAML nor JSON: {error}") from None
    rerankers = [body for body in documents if isinstance(body, Mapping) and body.get("kind") == "Reranker"]
    if len(rerankers) != 1:
        raise BadInput(f"{path}: holds {len(rerankers)} objects of kind Reranker: give a manifest with one")
    try:
        return _manifest(rerankers[0])
    except ValueError as error:
        raise BadInput(f"{path}: {error}") from None


def _manifest(body: Mapping[str, Any]) -> Manifest:
    policy = policy_from_manifest(body)
    spec = body["spec"] if isinstance(body.get("spec"), Mapping) else {}
    metadata = body["metadata"] if isinstance(body.get("metadata"), Mapping) else {}
    model = spec["model"] if isinstance(spec.get("model"), Mapping) else {}
    return Manifest(
        name=str(metadata.get("name", "reranker")),
        model=f"{model.get('uri', '')}@{model.get('revision', '')}",
        policy=policy,
        limits=_limits(spec.get("requests") or {}),
    )


def _limits(requests: Any) -> Limits:
    if not isinstance(requests, Mapping):
        raise ValueError(f"spec.requests: {requests!r} is not a mapping: write fields and values")
    queue, timeout = requests.get("queueLimit"), requests.get("timeout")
    if queue is None:
        queue = math.inf
    elif isinstance(queue, bool) or not isinstance(queue, int) or queue < 1:
        raise ValueError(f"spec.requests.queueLimit: {queue!r} must be a whole number from 1")
    if timeout is None:
        return Limits(queue=queue)
    try:
        seconds = parse_duration(str(timeout))
    except ValueError as error:
        raise ValueError(f"spec.requests.timeout: {error}") from None
    if seconds <= 0:
        raise ValueError(f"spec.requests.timeout: {timeout!r} must be more than 0s")
    return Limits(queue=queue, timeout=seconds)
