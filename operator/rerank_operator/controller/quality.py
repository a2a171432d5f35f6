"""Has the golden set of each Reranker with spec.slo.quality ranked, again and again, by the revision that serves.

The edge: when it is due and what it comes to are pure (``rollout.golden.schedule``, ``summary``). One worker that is
there anyway ranks it, beside what users send; none is ever started for it, and none is asked while a canary is judged,
which has workers' time to itself. Few Rerankers are at it at a time. What is found goes into the next plan, and from
there into the status, from which another operator goes on.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp
import msgspec
from rerank_api.reranker import Activation, GoldenSetSource, QualityStatus
from rerank_api.units import parse_duration

from rerank_operator.controller import metrics
from rerank_operator.controller.api import ApiError, KubeApi, Unreachable
from rerank_operator.controller.golden_sets import stored_golden_set, worker_of
from rerank_operator.controller.kinds import Key
from rerank_operator.controller.notices import RANKING_QUALITY, Measured, counting
from rerank_operator.controller.observe import Observed, observe
from rerank_operator.controller.store import Store
from rerank_operator.controller.times import format_time, time_or_zero
from rerank_operator.rollout.canary import ENDED
from rerank_operator.rollout.golden.ask import CannotAsk
from rerank_operator.rollout.golden.golden_set import BadGoldenSet
from rerank_operator.rollout.golden.schedule import due
from rerank_operator.rollout.golden.summary import calibration, measures, summary
from rerank_operator.rollout.golden.workers import scores_of

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Between two looks at who is due."""
SKEW_SECONDS = 60.0
"""That the clock of a leader before may be ahead: a result that is dated later does not say when it was found."""
AT_ONCE = 2
"""Rerankers: their golden sets pass through this process."""
RESULTS = ("ok", "failed")


class _WorkerLeft(Exception):
    """It was stopped meanwhile, as workers are when there is less to do: no failure, and another one is asked."""


class _Asked(msgspec.Struct, frozen=True):
    """What a result is of."""

    revision: str
    source: GoldenSetSource


@dataclass
class _Watched:
    """One Reranker whose ranking is measured, as it was when it was last looked at."""

    uid: str
    asked: _Asked
    interval: float = 0.0
    waits: str = ""
    last: float | None = None
    """When it was ranked by this revision, with this golden set."""
    latest: QualityStatus | None = None
    """Of this process."""
    ranked: _Asked | None = None
    """What the latest is of, as far as this process knows."""
    compared: bool = False
    """Whether the golden set is the one that a process before this one had ranked, has been looked at."""
    digest: str = ""
    """Of that one; empty: there is no such result."""
    failed: str = ""
    failures: int = 0
    tried: float = 0.0
    task: asyncio.Task[None] | None = None
    """The latest."""

    @property
    def busy(self) -> bool:
        """Asked of the task itself: one that is cancelled before its first line runs none of its lines."""
        return self.task is not None and not self.task.done()

    def call_off(self) -> None:
        if self.task is not None:
            self.task.cancel()


class QualityRuns:
    def __init__(
        self,
        api: KubeApi,
        store: Store,
        active: Callable[[], bool],
        changed: Callable[[Key], None],
        wall: Callable[[], float],
    ) -> None:
        """``active``: whether this operator leads; ``changed`` is told a Reranker of which something new is known."""
        self._api = api
        self._store = store
        self._active = active
        self._changed = changed
        self._wall = wall
        self._watched: dict[Key, _Watched] = {}
        self._shown: dict[Key, QualityStatus] = {}
        """What metrics tell of."""

    # --- what others ask ---

    def look(self, observed: Observed) -> Measured | None:
        """What is known; None where the object is not understood. From now on it is ranked whenever it is due."""
        reranker, key = observed.reranker, (observed.metadata.namespace, observed.metadata.name)
        if reranker is None:
            return None
        objective, source = reranker.spec.slo.quality, reranker.spec.rollout.golden_set
        if objective is None or source is None:
            self.forget(key)
            return Measured()
        asked = _Asked(observed.status.get("currentRevision") or "", source)
        watched = self._watched.get(key)
        if watched is None or watched.uid != observed.metadata.uid:
            self.forget(key)
            watched = self._watched[key] = _Watched(observed.metadata.uid, asked, failed=told_failure(observed))
            for result in RESULTS:
                metrics.GOLDEN_RUNS.labels(*key, result)
        if watched.asked != asked:  # what failed was of something else
            metrics.GOLDEN_MINIMUM.remove(*key, watched.asked.source.metric)
            watched.call_off()
            watched.asked, watched.failed, watched.failures = asked, "", 0
        latest = watched.latest or observed.quality
        known = counting(reranker.spec, asked.revision, latest)
        if watched.compared and watched.ranked != asked:
            known = None
        watched.digest = known.digest if known is not None else ""
        watched.last = last_ranked(known, self._wall())
        watched.tried = min(watched.tried, self._wall())  # a clock that was set back
        watched.interval = parse_duration(objective.interval)
        watched.waits = hindrance(observed)
        if watched.waits:
            watched.call_off()
        metrics.GOLDEN_MINIMUM.labels(*key, source.metric).set(objective.minimum)
        self._show(key, latest)
        return Measured(latest, watched.failed, watched.waits)

    def keep(self, keys: set[Key]) -> None:
        """Forget Rerankers that are gone."""
        for key in self._watched.keys() - keys:
            self.forget(key)

    def forget(self, key: Key) -> None:
        watched = self._watched.pop(key, None)
        if watched is None:
            return
        watched.call_off()
        self._show(key, None)
        metrics.GOLDEN_MINIMUM.remove(*key, watched.asked.source.metric)
        for result in RESULTS:
            metrics.GOLDEN_RUNS.remove(*key, result)

    def reset(self) -> None:
        """Another leads, or has led until now: what counts stands in the statuses."""
        self.keep(set())

    def _show(self, key: Key, latest: QualityStatus | None) -> None:
        before = self._shown.get(key)
        if before == latest:
            return
        if before is not None:
            del self._shown[key]
            metrics.GOLDEN_TIME.remove(*key, before.revision)
            for measure in measures(before):
                metrics.GOLDEN_QUALITY.remove(*key, before.revision, measure)
            for measure in calibration(before):
                metrics.GOLDEN_CALIBRATION.remove(*key, before.revision, measure)
        if latest is not None:
            self._shown[key] = latest
            metrics.GOLDEN_TIME.labels(*key, latest.revision).set(time_or_zero(latest.time))
            for measure, value in measures(latest).items():
                metrics.GOLDEN_QUALITY.labels(*key, latest.revision, measure).set(value)
            for measure, value in calibration(latest).items():
                metrics.GOLDEN_CALIBRATION.labels(*key, latest.revision, measure).set(value)

    # --- ranking ---

    async def compare(self) -> None:
        """A golden set that is another one than a process before this one had ranked is due, whatever the time."""
        for key, watched in list(self._watched.items()):
            if watched.compared or not self._active():
                continue
            asked = watched.asked
            same = await self._is_same(key, watched)
            if same is None:
                return
            if self._watched.get(key) is watched and watched.asked == asked:
                watched.compared, watched.ranked = True, asked if same else None
                watched.last = watched.last if same else None

    async def _is_same(self, key: Key, watched: _Watched) -> bool | None:
        """None: the API server cannot tell now."""
        if not watched.digest or watched.failed:
            return False
        try:
            stored = await stored_golden_set(self._api, key[0], watched.asked.source)
        except Exception as error:
            if isinstance(error, Unreachable) or (isinstance(error, ApiError) and error.passing):
                return None
            return False  # it is ranked now, and that tells what is wrong
        return stored.digest == watched.digest

    async def run(self) -> None:
        async with aiohttp.ClientSession(auto_decompress=False, trust_env=False) as session:
            try:
                while True:
                    await self.compare()
                    self.start_due(session)
                    await asyncio.sleep(LOOK_SECONDS)
            finally:
                self.reset()

    def start_due(self, session: aiohttp.ClientSession) -> None:
        """As many as may be at it; who waits the longest comes first."""
        if not self._active():
            return
        free = AT_ONCE - sum(watched.busy for watched in self._watched.values())
        waiting = sorted(
            (due("/".join(key), watched.interval, watched.last, watched.failures, watched.tried), key)
            for key, watched in self._watched.items()
            if not watched.busy and not watched.waits
        )
        for when, key in waiting:
            if free <= 0 or when > self._wall():
                return
            watched, observed = self._watched[key], observe(self._store, key)
            if observed is None or observed.status.get("currentRevision") != watched.asked.revision:
                continue  # the next look at it will tell
            ranking = self._rank_safely(session, key, watched, observed)
            watched.task = asyncio.create_task(ranking, name=f"quality {key}")
            free -= 1

    async def _rank_safely(
        self, session: aiohttp.ClientSession, key: Key, watched: _Watched, observed: Observed
    ) -> None:
        asked, subject = watched.asked, {"namespace": key[0], "reranker": key[1]}
        found, failed, left = None, "", False
        try:
            found = await self._rank(session, observed, asked)
        except _WorkerLeft:
            left = True
        except (BadGoldenSet, CannotAsk) as error:
            failed = str(error)
        except (ApiError, Unreachable) as error:
            failed = f"the golden set cannot be read: {error}"
        except Exception as error:
            log.exception("a golden set could not be ranked", extra=subject)
            failed = f"it could not be ranked: {type(error).__name__}"
        if self._watched.get(key) is not watched or watched.asked != asked:
            return  # it says nothing about what is asked for by now
        if found is not None:
            metrics.GOLDEN_RUNS.labels(*key, "ok").inc()
            watched.latest, watched.ranked, watched.last, watched.compared = found, asked, self._wall(), True
            watched.failed, watched.failures = "", 0
        else:
            watched.failures, watched.tried = watched.failures + 1, self._wall()
        if found is None and not left:
            metrics.GOLDEN_RUNS.labels(*key, "failed").inc()
            log.warning("the golden set was not ranked: %s", failed, extra=subject)
            watched.failed = failed
        self._changed(key)

    async def _rank(self, session: aiohttp.ClientSession, observed: Observed, asked: _Asked) -> QualityStatus:
        """Raises BadGoldenSet, CannotAsk, ApiError, Unreachable, and _WorkerLeft."""
        namespace, name = observed.metadata.namespace, observed.metadata.name
        stored = await stored_golden_set(self._api, namespace, asked.source)
        golden, worker = await stored.parsed(), worker_of(observed, asked.revision)
        try:
            scores = await scores_of(session, worker, golden.queries)
        except CannotAsk:
            found = observe(self._store, (namespace, name))
            if found is not None and not any(p.address == worker and p.ready and p.counts for p in found.pods):
                raise _WorkerLeft from None
            raise
        found = await asyncio.to_thread(
            summary,
            golden,
            scores,
            metric=asked.source.metric,
            activation=activation_of(observed, asked.revision),
            revision=asked.revision,
            time=format_time(self._wall()),
        )
        return msgspec.structs.replace(found, digest=stored.digest)


def last_ranked(latest: QualityStatus | None, now: float) -> float | None:
    """When that was; None: it is not known, so that it is ranked again now."""
    at = time_or_zero(latest.time) if latest is not None else 0.0
    return min(at, now) if 0 < at <= now + SKEW_SECONDS else None


def told_failure(observed: Observed) -> str:
    """Why it could not be ranked, as the status says: that stands until somebody has ranked it."""
    told = [one for one in observed.status.get("conditions", ()) if one["type"] == RANKING_QUALITY]
    return told[0]["message"].partition(". Before that, ")[0] if told and told[0]["reason"] == "CannotMeasure" else ""


def hindrance(observed: Observed) -> str:
    """Why the golden set is not ranked now; empty: nothing is in the way."""
    serving = observed.status.get("currentRevision")
    if serving is None:
        return "no revision serves yet"
    if observed.rollout is not None and observed.rollout.phase not in ENDED:
        return "a canary is judged, and the workers are left to that"
    try:
        worker_of(observed, serving)
    except CannotAsk as error:
        return str(error)
    return ""


def activation_of(observed: Observed, revision: str) -> Activation:
    """Of that revision, which need not be the one that the spec asks for."""
    specs = [state.spec for state in observed.revisions if state.revision == revision and state.spec is not None]
    return specs[0].model.activation if specs else "auto"
