"""Has the Prometheus queries of one rollout asked, each at its interval, and keeps what they gave. Decides nothing.

Both revisions are asked at once, aside: a Prometheus that is slow must not keep the judge from looking. What was asked
and is not there yet when the operator ends is no point.
"""

import asyncio
import hashlib
from collections.abc import Callable, Mapping

import aiohttp
import msgspec
from rerank_api import units
from rerank_api.reranker import PrometheusQuery, Rollout, RolloutStatus

from rerank_operator.rollout import prometheus
from rerank_operator.rollout.judge.judge import MetricVerdict, Settings, chance_of_each
from rerank_operator.rollout.judge.series import Limit, Series, Values

PLACEHOLDER = "{revision}"
NOWHERE = (
    "the operator was not told of a Prometheus: set operator.prometheusUrl of its chart (its option --prometheus-url)"
)


class Queries:
    """Of one rollout."""

    def __init__(self, url: str | None, wall: Callable[[], float]) -> None:
        """``url``: of the Prometheus; None: there is none. ``wall``: Unix seconds."""
        self._url = url
        self._wall = wall
        self._asking: asyncio.Task[dict[str, Values]] | None = None
        """By what each value is of (Series.asked)."""

    def look(
        self,
        session: aiohttp.ClientSession,
        series: dict[str, Series],
        rollout: Rollout,
        state: RolloutStatus,
        step: int,
        settings: Settings,
    ) -> tuple[MetricVerdict, ...]:
        """What each query of ``rollout`` says now, in their order; those that are due are asked meanwhile.

        ``series``: by name, what is kept; it is brought up to date. ``step``: steps that are passed.
        """
        limits = _prepare(series, rollout, step, self._wall())
        self._take(series, limits)
        if self._url is not None and self._asking is None:
            self._ask(session, self._url, series, rollout.prometheus, state)
        chance = chance_of_each(settings, golden=rollout.golden_set is not None, queries=len(limits))
        found = (
            series[name].judge(name, limit, len(rollout.steps), chance, settings.miss_probability)
            for name, limit in limits.items()
        )
        return tuple(found) if self._url is not None else tuple(_unasked(one) for one in found)

    def stop(self) -> None:
        if self._asking is not None:
            self._asking.cancel()

    def _take(self, series: Mapping[str, Series], limits: Mapping[str, Limit]) -> None:
        if self._asking is None or not self._asking.done():
            return
        task, self._asking = self._asking, None
        found = task.result()
        for name, limit in limits.items():
            if (values := found.get(series[name].asked)) is not None:
                series[name].add(values, limit)

    def _ask(
        self,
        session: aiohttp.ClientSession,
        url: str,
        series: Mapping[str, Series],
        queries: list[PrometheusQuery],
        state: RolloutStatus,
    ) -> None:
        now = self._wall()
        due: dict[str, str] = {}
        for query in queries:
            one = series[query.name]
            if not 0 <= now - one.at < units.parse_duration(query.interval):
                one.at, due[one.asked] = now, query.query
        if due:
            asked = _ask_all(session, url, due, state.stable, state.revision)
            self._asking = asyncio.create_task(asked, name=f"queries {state.revision}")


def _prepare(series: dict[str, Series], rollout: Rollout, step: int, now: float) -> dict[str, Limit]:
    """Each query's limit by its name, in their order; ``series`` has those and no others then."""
    limits: dict[str, Limit] = {}
    for query in rollout.prometheus:
        higher = query.max_increase is not None
        share = query.max_increase if higher else query.max_decrease
        assert share is not None, "the schema asks for one of both"
        limits[query.name] = Limit(share, higher)
        asked = _fingerprint(query, len(rollout.steps))
        if query.name not in series or series[query.name].asked != asked:
            series[query.name] = Series.begin(asked, now)
        series[query.name].reach(step)
    for name in series.keys() - limits.keys():
        del series[name]
    return limits


def _fingerprint(query: PrometheusQuery, steps: int) -> str:
    return hashlib.sha256(msgspec.json.encode((query, steps))).hexdigest()[:16]


def _unasked(found: MetricVerdict) -> MetricVerdict:
    return msgspec.structs.replace(found, verdict="hold", message=f"{NOWHERE}; {found.message}")


async def _ask_all(
    session: aiohttp.ClientSession, url: str, due: Mapping[str, str], stable: str, canary: str
) -> dict[str, Values]:
    found = await asyncio.gather(*(_ask_both(session, url, query, stable, canary) for query in due.values()))
    return dict(zip(due, found, strict=True))


async def _ask_both(session: aiohttp.ClientSession, url: str, query: str, stable: str, canary: str) -> Values:
    try:
        arms = (query.replace(PLACEHOLDER, revision) for revision in (stable, canary))
        old, new = await asyncio.gather(*(prometheus.ask(session, url, arm) for arm in arms))
    except prometheus.CannotQuery as error:
        return Values(trouble=str(error))
    return Values(old, new)
