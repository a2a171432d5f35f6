"""Asks workers and gateways about each canary that is judged, and the judge what it says to that.

The edge between the pure judge and the cluster: it decides nothing and writes nothing. What it finds goes into the next
plan (``findings``). All that must survive a restart is in that plan's evidence, which is kept with the canary.
"""

import asyncio
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypedDict

import aiohttp
import msgspec
from rerank_api import names, units
from rerank_api.answers import Mirrored
from rerank_api.reranker import Rollout, RolloutCheck, RolloutStatus

from rerank_operator.controller import metrics
from rerank_operator.controller.api import ApiError, KubeApi, Unreachable
from rerank_operator.controller.golden_sets import stored_golden_set, worker_of
from rerank_operator.controller.kinds import Key
from rerank_operator.controller.observe import Observed, observe
from rerank_operator.controller.store import Store
from rerank_operator.controller.times import time_or_zero
from rerank_operator.rollout.answers import Cursors, Polled, poll
from rerank_operator.rollout.canary import JUDGED, Findings
from rerank_operator.rollout.golden.ask import CannotAsk
from rerank_operator.rollout.golden.compare import measured, verdict
from rerank_operator.rollout.golden.golden_set import BadGoldenSet
from rerank_operator.rollout.golden.workers import ask_worker
from rerank_operator.rollout.judge import memory
from rerank_operator.rollout.judge.difference import Effects, Figures, told
from rerank_operator.rollout.judge.judge import Judge, Settings
from rerank_operator.rollout.judge.judge import Verdict as Judged
from rerank_operator.rollout.judge.series import Series, suspicious, together
from rerank_operator.rollout.judge.windows import Window
from rerank_operator.rollout.mirror import differed, judge_mirror
from rerank_operator.rollout.queries import Queries

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""Between two looks at all canaries."""
KEEP_SECONDS = 10.0
"""Between two figures in the status, and two evidences, while nothing is decided."""
RETRY_SECONDS = 10.0
"""Between two tries to rank a golden set that cannot be read, or whose worker does not answer."""
MOST_MIRRORED = 500
"""Latest mirrored requests that are compared."""


class Evidence(msgspec.Struct, omit_defaults=True):
    """What is kept with the canary, as JSON."""

    started: str
    """Which rollout of that revision."""
    phase: str
    cursors: Cursors = msgspec.field(default_factory=Cursors)
    mirrored: list[Mirrored] = []
    judge: str | None = None
    """As judge.memory writes it."""
    series: dict[str, Series] = {}
    """Of the user's own metrics, by name."""
    stable: Figures = msgspec.field(default_factory=Figures)
    canary: Figures = msgspec.field(default_factory=Figures)
    """Of an A/B test."""


class _Split(TypedDict):
    """What has a part of the error probability, beside errors and latency."""

    golden: bool
    queries: int


@dataclass
class _Watched:
    """One rollout that is looked at."""

    evidence: Evidence
    findings: Findings
    queries: Queries
    judge: Judge | None = None
    golden: asyncio.Task[RolloutCheck] | None = None
    golden_asked: tuple[Any, ...] = ()
    """What of the spec it depends on, as it was when it began."""
    golden_version: str | None = None
    """Of the ConfigMap that was ranked last."""
    golden_due: float = 0.0
    told: float = 0.0
    """When the findings were last made."""
    heard: bool = True


class Rollouts:
    def __init__(
        self,
        api: KubeApi,
        store: Store,
        gateways: Callable[[], Collection[str]],
        active: Callable[[], bool],
        changed: Callable[[Key], None],
        wall: Callable[[], float],
        prometheus: str | None = None,
    ) -> None:
        """``gateways``: addresses of their admin ports; ``active``: whether this operator leads; ``changed`` is told a
        Reranker of whose canary something new is known. ``prometheus``: where users' own metrics are; None: nowhere."""
        self._api = api
        self._store = store
        self._gateways = gateways
        self._active = active
        self._changed = changed
        self._wall = wall
        self._prometheus = prometheus
        self._watched: dict[Key, _Watched] = {}
        self._shown: dict[Key, tuple[str, ...]] = {}
        """Checks that metrics tell of."""
        self._phases: dict[Key, tuple[str, str]] = {}
        """Canary and phase that metrics tell of."""

    def findings(self, observed: Observed) -> Findings | None:
        """About the canary of one Reranker; None: there is none, or nothing is known yet. From now on it is watched."""
        key = (observed.metadata.namespace, observed.metadata.name)
        state = observed.rollout
        if state is None or state.phase not in JUDGED:
            self.forget(key)
            return None
        watched = self._watched.get(key)
        if watched is None or (watched.findings.revision, watched.evidence.started) != (state.revision, state.started):
            self.forget(key)
            queries = Queries(self._prometheus, self._wall)
            watched = self._watched[key] = _Watched(_kept(observed, state), Findings(state.revision), queries)
        return watched.findings

    def show(self, key: Key, state: RolloutStatus | None, wanted: str | None = None) -> None:
        """In metrics, how the canary stands; None: there is none, nor was there. ``wanted``: the revision that the
        spec asks for."""
        for check in self._shown.pop(key, ()):
            metrics.CANARY_CHECKS.remove(*key, check)
        if (shown := self._phases.pop(key, None)) is not None:
            metrics.ROLLOUT_PHASE.remove(*key, *shown)
        if state is None:
            metrics.CANARY_PERCENT.remove(*key)
            metrics.CANARY_REQUESTS.remove(*key)
            return
        metrics.CANARY_PERCENT.labels(*key).set(state.percent)
        metrics.CANARY_REQUESTS.labels(*key).set(state.requests)
        self._phases[key] = state.revision, "Paused" if state.paused else state.phase
        metrics.ROLLOUT_PHASE.labels(*key, *self._phases[key]).set(state.revision == wanted)
        self._shown[key] = tuple(check.name for check in state.checks)
        for check in state.checks:
            metrics.CANARY_CHECKS.labels(*key, check.name).set(_SHOWN[check.verdict])

    def forget(self, key: Key) -> None:
        watched = self._watched.pop(key, None)
        if watched is None:
            return
        watched.queries.stop()
        if watched.golden is not None:
            watched.golden.cancel()

    def reset(self) -> None:
        """Another leads, or has led until now."""
        for key in list(self._watched):
            self.forget(key)
        for key in list(self._shown):
            self.show(key, None)

    async def run(self) -> None:
        async with aiohttp.ClientSession(auto_decompress=False, trust_env=False) as session:
            try:
                while True:
                    await asyncio.gather(*(self._look_safely(session, key) for key in list(self._watched)))
                    await asyncio.sleep(LOOK_SECONDS)
            finally:
                self.reset()

    async def _look_safely(self, session: aiohttp.ClientSession, key: Key) -> None:
        try:
            await self._look(session, key)
        except Exception:  # one Reranker that we cannot cope with must not stop the others
            log.exception("a canary could not be judged", extra={"namespace": key[0], "reranker": key[1]})

    async def _look(self, session: aiohttp.ClientSession, key: Key) -> None:
        observed = observe(self._store, key) if self._active() else None
        if observed is None or observed.reranker is None or self.findings(observed) is None:
            return
        watched, state, rollout = self._watched[key], observed.rollout, observed.reranker.spec.rollout
        assert state is not None
        if watched.evidence.phase != state.phase:
            watched.evidence = Evidence(state.started, state.phase)
        if state.phase == "Golden" and rollout.golden_set is not None:
            self._rank(session, watched, observed, rollout)
        elif state.phase == "Mirror":
            self._tell(key, watched, await self._mirror(session, key, watched, state, rollout))
        elif state.phase == "Traffic":
            self._tell(key, watched, await self._traffic(session, key, watched, state, rollout))

    def _tell(self, key: Key, watched: _Watched, found: Findings) -> None:
        """At once where something is decided; figures from time to time, with the evidence that they rest on."""
        if self._watched.get(key) is not watched:
            return  # the rollout is another one by now
        now, before = self._wall(), watched.findings
        if _decision(found) == _decision(before) and 0 <= now - watched.told < KEEP_SECONDS:
            return
        evidence = watched.evidence
        if watched.judge is not None:
            evidence.judge = memory.to_text(watched.judge)
        watched.told = now
        watched.findings = msgspec.structs.replace(found, evidence=msgspec.json.encode(evidence).decode())
        self._changed(key)

    # --- the golden set ---

    def _rank(self, session: aiohttp.ClientSession, watched: _Watched, observed: Observed, rollout: Rollout) -> None:
        """One ranking at a time, aside: it takes seconds to minutes."""
        key = (observed.metadata.namespace, observed.metadata.name)
        asked = (rollout.golden_set, settings_of(rollout), len(rollout.prometheus))
        if watched.golden_asked != asked:
            if watched.golden is not None:
                watched.golden.cancel()
            watched.golden, watched.golden_asked, watched.golden_version = None, asked, None
            watched.golden_due = 0.0
            if watched.findings.golden is not None:
                self._found_golden(key, watched, RolloutCheck("golden", "hold", "the spec has changed: ranked anew"))
        if watched.golden is not None and not watched.golden.done():
            return
        if watched.golden is not None:
            task, watched.golden = watched.golden, None
            try:
                check = task.result()
            except Exception as error:
                log.exception("a golden set could not be ranked", extra={"namespace": key[0], "reranker": key[1]})
                check = RolloutCheck("golden", "hold", f"it could not be ranked: {type(error).__name__}")
            watched.golden_due = self._wall() + RETRY_SECONDS
            self._found_golden(key, watched, check)
            return
        watched.golden_due = min(watched.golden_due, self._wall() + RETRY_SECONDS)  # the clock may have gone back
        decided = watched.findings.golden is not None and watched.findings.golden.verdict != "hold"
        if not decided and self._wall() >= watched.golden_due:
            ranking = self._golden(session, watched, observed, rollout)
            watched.golden = asyncio.create_task(ranking, name=f"golden {key}")

    def _found_golden(self, key: Key, watched: _Watched, check: RolloutCheck) -> None:
        watched.findings = msgspec.structs.replace(watched.findings, golden=check)
        self._changed(key)

    async def _golden(
        self, session: aiohttp.ClientSession, watched: _Watched, observed: Observed, rollout: Rollout
    ) -> RolloutCheck:
        assert rollout.golden_set is not None
        assert observed.rollout is not None
        try:
            stored = await stored_golden_set(self._api, observed.metadata.namespace, rollout.golden_set)
            if watched.findings.golden is not None and watched.golden_version == stored.version:
                return watched.findings.golden  # both revisions would rank it the same again, in their users' time
            golden = await stored.parsed()
            measure, k = measured(rollout.golden_set.metric, golden)
            found = []
            for revision in (observed.rollout.stable, observed.rollout.revision):
                found.append(await ask_worker(session, worker_of(observed, revision), golden, k))
        except (BadGoldenSet, CannotAsk) as error:
            return RolloutCheck("golden", "hold", str(error))
        except (ApiError, Unreachable) as error:
            return RolloutCheck("golden", "hold", f"the golden set cannot be read: {error}")
        told = verdict(found[0], found[1], settings_of(rollout), measure, len(rollout.prometheus)).metrics[0]
        watched.golden_version = stored.version
        return RolloutCheck("golden", told.verdict, told.message)

    # --- what gateways tell ---

    async def _poll(
        self,
        session: aiohttp.ClientSession,
        key: Key,
        watched: _Watched,
        state: RolloutStatus,
        from_start: bool = False,
    ) -> Polled:
        cursors = watched.evidence.cursors
        found = await poll(session, self._gateways(), key, state.stable, state.revision, cursors, from_start=from_start)
        watched.evidence.cursors = found.cursors
        if found.missed and watched.heard:
            told = "; ".join(f"{address}: {why}" for address, why in sorted(found.missed.items()))
            log.warning(
                "gateways that do not tell of answers: %s", told, extra={"namespace": key[0], "reranker": key[1]}
            )
        watched.heard = not found.missed
        return found

    async def _mirror(
        self, session: aiohttp.ClientSession, key: Key, watched: _Watched, state: RolloutStatus, rollout: Rollout
    ) -> Findings:
        found = await self._poll(session, key, watched, state)
        evidence = watched.evidence
        evidence.mirrored = [*evidence.mirrored, *found.mirrored][-MOST_MIRRORED:]
        settings = settings_of(rollout)
        needed = min(rollout.step_requests, MOST_MIRRORED)
        said = judge_mirror(evidence.mirrored, needed, settings, rollout.limits.rank_agreement)
        check = RolloutCheck("mirror", said.verdict, _unheard(found) + said.message)
        return msgspec.structs.replace(watched.findings, mirror=check, differed=differed(evidence.mirrored))

    async def _traffic(
        self, session: aiohttp.ClientSession, key: Key, watched: _Watched, state: RolloutStatus, rollout: Rollout
    ) -> Findings:
        now = self._wall() - time_or_zero(state.phase_started)
        judge = watched.judge if watched.judge is not None else _restored(watched.evidence, rollout)
        if judge is None or not _goes_on(judge, rollout):
            # It begins, and does so again under other settings: what stable did until now is what is compared with.
            watched.evidence.cursors = Cursors()
            found = await self._poll(session, key, watched, state, from_start=True)
            judge = Judge(rollout.steps, found.stable, settings_of(rollout), **_split(rollout))
            found = msgspec.structs.replace(found, stable=Window(), canary=Window())
        else:
            found = await self._poll(session, key, watched, state)
        if self._watched.get(key) is not watched:
            return watched.findings  # it has ended meanwhile: its queries are cancelled, and no more are asked
        watched.judge = judge
        if (step := min(state.step, len(judge.weights) - 1)) > judge.step:
            judge.skip_to(step, now)
        split = rollout.strategy == "ABTest"  # held until a person decides
        own = watched.queries.look(session, watched.evidence.series, rollout, state, judge.step, judge.settings)
        go_on = not (state.paused or split or suspicious(own))
        said = together(judge.look(now, found.stable, found.canary, go_on=go_on), own)
        checks = _checks(said, _unheard(found))
        return msgspec.structs.replace(
            watched.findings,
            action="hold" if split else said.action,
            reason=said.reason,
            step=judge.step,
            requests=judge.canary_requests,
            metrics=(*checks, _compared(watched.evidence, found, judge)) if split else checks,
        )


def settings_of(rollout: Rollout) -> Settings:
    """The judge's settings that a spec asks for."""
    limits = rollout.limits
    return Settings(
        error_probability=rollout.error_probability,
        step_requests=rollout.step_requests,
        step_seconds=units.parse_duration(rollout.step_duration),
        errors_margin=limits.error_increase,
        latency_margin=limits.latency_increase,
        ndcg_margin=limits.quality_drop,
    )


def _kept(observed: Observed, state: RolloutStatus) -> Evidence:
    """What an operator before this one has kept of this rollout; empty where it is of an earlier one."""
    notes = next((one.notes for one in observed.revisions if one.revision == state.revision), {})
    try:
        found = msgspec.json.decode(notes.get(names.ANNOTATION_EVIDENCE, ""), type=Evidence)
    except msgspec.MsgspecError:
        found = None
    same = found is not None and (found.started, found.phase) == (state.started, state.phase)
    return found if found is not None and same else Evidence(state.started, state.phase)


def _restored(evidence: Evidence, rollout: Rollout) -> Judge | None:
    if evidence.judge is None:
        return None
    try:
        return memory.from_text(evidence.judge, rollout.steps, settings_of(rollout), **_split(rollout))
    except memory.BadMemory as error:
        log.warning("the evidence about a canary begins anew: %s", error)
        return None


def _goes_on(judge: Judge, rollout: Rollout) -> bool:
    split = {"golden": judge.golden, "queries": judge.queries}
    return (judge.settings, tuple(judge.weights), split) == (settings_of(rollout), rollout.steps, _split(rollout))


def _split(rollout: Rollout) -> _Split:
    return {"golden": rollout.golden_set is not None, "queries": len(rollout.prometheus)}


def _unheard(found: Polled) -> str:
    """Before figures that nobody brings up to date; empty where a gateway tells."""
    if found.heard:
        return ""
    missed = next((f": {address}: {why}" for address, why in sorted(found.missed.items())), "")
    return f"no gateway tells of answers{missed}; "


def _checks(said: Judged, unheard: str) -> tuple[RolloutCheck, ...]:
    return tuple(RolloutCheck(metric.name, metric.verdict, unheard + metric.message) for metric in said.metrics)


def _compared(evidence: Evidence, found: Polled, judge: Judge) -> RolloutCheck:
    """For a person who decides about an A/B test."""
    evidence.stable.add(found.stable)
    evidence.canary.add(found.canary)
    median, tail = (effect for _, effect in judge.seen.latency.with_effects()[:2])
    effects = Effects(judge.seen.errors.design_effect(), median, tail)
    return RolloutCheck("difference", "hold", told(evidence.stable, evidence.canary, effects))


_SHOWN = {"pass": 1, "hold": 0, "fail": -1}


def _decision(found: Findings) -> tuple[str, int, str | None]:
    """What a rollout goes on or back by. Not each verdict: near its threshold one may change every second."""
    return found.action, found.step, found.mirror.verdict if found.mirror is not None else None
