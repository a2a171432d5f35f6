"""What a Reranker's spec asks of its scaling, as plain seconds and numbers.

Reads the manifest as a user wrote it and refuses what it does not understand; nothing here decides anything.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from rerank_api.units import parse_duration

from rerank_operator.scaling.schedules import Schedule

MOST_REPLICAS = 1000
"""The CRD's own bound of minReplicas and maxReplicas."""


@dataclass(frozen=True, slots=True)
class Policy:
    """``spec.scaling`` and the part of ``spec.slo`` that replicas are counted for."""

    min_replicas: int = 0
    max_replicas: int = 8
    target_queue_depth: float = 4.0
    """Waiting requests per replica that are no backlog yet."""
    target_queue_time: float = 0.020
    """Seconds that a request may wait on average."""
    idle_timeout: float = 300.0
    """Seconds since the last request ended, until the last replica goes."""
    schedules: tuple[Schedule, ...] = ()
    warm_pool: str | None = None
    """A WarmPool's name."""
    mode: Literal["auto", "recommend"] = "auto"
    """recommend: decisions are told and not carried out, which is the caller's business; they are the same."""
    latency_threshold: float = 0.150
    """Seconds from arrival to answer, that a share ``latency_quantile`` of the requests may take at most."""
    latency_quantile: float = 0.95


def policy_from_manifest(manifest: Mapping[str, Any]) -> Policy:
    """The policy in ``spec.scaling`` and ``spec.slo`` of a Reranker's manifest (YAML or JSON, parsed).

    Raises ValueError that names the field, what is wrong with it and what to write.
    """
    spec = _Fields(manifest, "manifest").section("spec", "spec")
    scaling, slo = spec.section("scaling", "spec.scaling"), spec.section("slo", "spec.slo")
    latency = slo.section("latency", "spec.slo.latency")
    default = Policy()
    policy = Policy(
        min_replicas=scaling.integer("minReplicas", default.min_replicas, 0, MOST_REPLICAS),
        max_replicas=scaling.integer("maxReplicas", default.max_replicas, 1, MOST_REPLICAS),
        target_queue_depth=scaling.number("targetQueueDepth", default.target_queue_depth, 0.0, 1e6),
        target_queue_time=scaling.duration("targetQueueTime", default.target_queue_time),
        idle_timeout=scaling.duration("idleTimeout", default.idle_timeout),
        schedules=tuple(_schedules(scaling.items("schedules"))),
        warm_pool=scaling.text("warmPool"),
        mode=cast("Literal['auto', 'recommend']", scaling.choice("mode", ("auto", "recommend"))),
        latency_threshold=latency.duration("threshold", default.latency_threshold),
        latency_quantile=latency.number("quantile", default.latency_quantile, 0.0, 1.0),
    )
    # Objectives of the service that no replica is counted for; they are checked where they are used.
    slo.known.update(("availability", "quality", "queueTime"))
    for fields in (scaling, latency, slo):
        fields.refuse_unknown()
    _refuse_contradictions(policy)
    return policy


def _schedules(items: Iterable["_Fields"]) -> Iterable[Schedule]:
    names: set[str] = set()
    for item in items:
        name, start, end = (item.required_text(field) for field in ("name", "start", "end"))
        timezone = item.text("timezone") or "UTC"
        min_replicas = item.integer("minReplicas", None, 1, MOST_REPLICAS)
        item.refuse_unknown()
        if name in names:
            raise ValueError(f"{item.path}.name: {name!r} stands twice: give each schedule a name of its own")
        names.add(name)
        try:
            yield Schedule(name, start, end, min_replicas, timezone)
        except ValueError as error:
            raise ValueError(f"{item.path}.{error}") from None


def _refuse_contradictions(policy: Policy) -> None:
    if policy.min_replicas > policy.max_replicas:
        raise ValueError(
            f"spec.scaling.minReplicas: {policy.min_replicas} is more than maxReplicas ({policy.max_replicas}): "
            "lower it or raise maxReplicas"
        )
    for schedule in policy.schedules:
        if schedule.min_replicas > policy.max_replicas:
            raise ValueError(
                f"spec.scaling.schedules: {schedule.name!r} asks for {schedule.min_replicas} replicas, more than "
                f"maxReplicas ({policy.max_replicas}): lower it or raise maxReplicas"
            )
    if not 0 < policy.latency_quantile < 1:
        raise ValueError("spec.slo.latency.quantile: must lie between 0 and 1, such as 0.95")
    for path, seconds in (
        ("spec.slo.latency.threshold", policy.latency_threshold),
        ("spec.scaling.targetQueueTime", policy.target_queue_time),
    ):
        if seconds <= 0:
            raise ValueError(f"{path}: must be more than 0s, such as 150ms")
    if policy.target_queue_depth <= 0:
        raise ValueError("spec.scaling.targetQueueDepth: must be more than 0, such as 4")
    if policy.target_queue_time >= policy.latency_threshold:
        raise ValueError(
            f"spec.scaling.targetQueueTime: {policy.target_queue_time:g}s of waiting leave no time to serve within "
            f"spec.slo.latency.threshold ({policy.latency_threshold:g}s): lower it or raise the threshold"
        )


class _Fields:
    """One mapping of a manifest, read field by field; ``known`` are the fields that were asked for."""

    def __init__(self, values: object, path: str) -> None:
        if not isinstance(values, Mapping):
            raise ValueError(f"{path}: {values!r} is not a mapping: write fields and values")
        self.values: Mapping[str, Any] = values
        self.path = path
        self.known: set[str] = set()

    def _get(self, field: str) -> Any:
        self.known.add(field)
        return self.values.get(field)

    def section(self, field: str, path: str) -> "_Fields":
        value = self._get(field)
        return _Fields({} if value is None else value, path)

    def items(self, field: str) -> list["_Fields"]:
        value = self._get(field)
        if value is None:
            return []
        if not isinstance(value, list):
            raise ValueError(f"{self.path}.{field}: {value!r} is not a list: write one item a line, each after '- '")
        return [_Fields(item, f"{self.path}.{field}[{index}]") for index, item in enumerate(value)]

    def integer(self, field: str, default: int | None, low: int, high: int) -> int:
        value = self._get(field)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{self.path}.{field}: {value!r} must be a whole number from {low} to {high}")
        return value

    def number(self, field: str, default: float, low: float, high: float) -> float:
        value = self._get(field)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"{self.path}.{field}: {value!r} must be a number from {low:g} to {high:g}")
        return float(value)

    def duration(self, field: str, default: float) -> float:
        value = self._get(field)
        if value is None:
            return default
        try:
            return parse_duration(value if isinstance(value, str) else repr(value))
        except ValueError as error:
            raise ValueError(f"{self.path}.{field}: {error}") from None

    def text(self, field: str) -> str | None:
        value = self._get(field)
        if value is not None and (not isinstance(value, str) or not value):
            raise ValueError(f"{self.path}.{field}: {value!r} must be a text that is not empty")
        return value

    def required_text(self, field: str) -> str:
        value = self.text(field)
        if value is None:
            raise ValueError(f"{self.path}.{field}: is missing: every schedule needs it")
        return value

    def choice(self, field: str, choices: tuple[str, ...]) -> str:
        value = self.text(field) or choices[0]
        if value not in choices:
            raise ValueError(f"{self.path}.{field}: {value!r} must be one of {', '.join(choices)}")
        return value

    def refuse_unknown(self) -> None:
        for field in self.values:
            if field not in self.known:
                known = ", ".join(sorted(self.known))
                raise ValueError(f"{self.path}.{field}: there is no such field: write one of {known}, or remove it")
