"""A Reranker's change tried as a canary under steady load: how it went, how it ended, and what users met.

What happened is read from a watch of the status and from the load's own outcomes, never from the operator's word alone.
"""

import contextlib
import json
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from harness.cluster import ROOT, Cluster, CommandError, wait_for
from harness.load import Outcome, Report, SteadyLoad
from harness.release import Release, reranker, wait_settled
from harness.watching import Change, Watch

NAME = "shop"
GOLDEN = ROOT / "docs" / "examples" / "golden.jsonl"
BODY: dict[str, Any] = {
    "query": "list files",
    "documents": ["ls lists the files of a folder", "rm removes files", "cat shows what is in a file"],
}
"""Small, so that stable, a canary and what is mirrored share two cores easily."""
RATE = 20.0
ROLLOUT: dict[str, Any] = {
    "strategy": "Canary",
    "steps": [20, 50],
    "stepDuration": "3s",
    "stepRequests": 20,
    "mirrorPercent": 50,
    "goldenSet": {"configMap": "golden"},
}
"""Two short steps, for a test's time. The limits and the error probability are the defaults: they are what is shown."""
PHASES = ("Starting", "Golden", "Mirror", "Traffic", "Promoting", "Promoted")
ENDED = ("Promoted", "RolledBack", "Cancelled")
DECISION_SECONDS = 240.0
"""How long a decision is waited for, on a machine that may be busy."""


def golden_set(namespace: str) -> dict[str, Any]:
    """The ConfigMap that ROLLOUT names."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": ROLLOUT["goldenSet"]["configMap"], "namespace": namespace},
        "data": {GOLDEN.name: GOLDEN.read_text()},
    }


class Place(NamedTuple):
    """How far a rollout has come; places compare as rollouts go."""

    phase: str
    step: int

    @property
    def rank(self) -> tuple[int, int]:
        return PHASES.index(self.phase), self.step


@dataclass(frozen=True)
class Moment:
    """A Reranker as its watch told it at ``seen`` (Unix seconds)."""

    seen: float
    object: Mapping[str, Any]

    @property
    def status(self) -> Mapping[str, Any]:
        return self.object.get("status", {})

    @property
    def rollout(self) -> Mapping[str, Any]:
        """Empty where there was none yet."""
        return self.status.get("rollout") or {}

    @property
    def place(self) -> Place:
        return Place(self.rollout["phase"], self.rollout.get("step", 0))

    def percent(self, revision: str) -> int:
        """Of the users' requests that it is to get."""
        return sum(s["percent"] for s in self.status.get("traffic", []) if s["revision"] == revision)

    @property
    def paused(self) -> bool:
        return bool(self.rollout.get("paused"))

    def check(self, name: str) -> Mapping[str, Any]:
        return next((check for check in self.rollout.get("checks", []) if check["name"] == name), {})

    @property
    def failed_checks(self) -> list[str]:
        return [check["name"] for check in self.rollout.get("checks", []) if check["verdict"] == "fail"]


def moments(changes: Iterable[Change], name: str) -> list[Moment]:
    return [
        Moment(change.seen, change.object) for change in changes if change.name == name and change.kind != "DELETED"
    ]


def places(story: Iterable[Moment], started: str) -> list[Place]:
    """Where the rollout that began at ``started`` has been, each stay once."""
    found: list[Place] = []
    for moment in story:
        if moment.rollout.get("started") == started and (not found or found[-1] != moment.place):
            found.append(moment.place)
    return found


def went_back(stays: Sequence[Place]) -> list[tuple[Place, Place]]:
    """Neighbours of which the later is not further; a rollout that was taken back or cancelled ends there."""
    on = [place for place in stays if place.phase not in ("RolledBack", "Cancelled")]
    return [(before, after) for before, after in pairwise(on) if after.rank <= before.rank]


def met(outcomes: Iterable[Outcome], revision: str) -> int:
    """Users' requests that ``revision`` has answered."""
    return sum(outcome.revision == revision for outcome in outcomes)


class Trial:
    """Changes of one Reranker, each tried while users' requests come in."""

    def __init__(self, cluster: Cluster, namespace: str, load: SteadyLoad, watch: Watch, name: str = NAME) -> None:
        self.cluster, self.namespace, self.name = cluster, namespace, name
        self.load, self._watch = load, watch
        self.applied = 0.0
        """Unix seconds."""
        self._before = ""

    @property
    def story(self) -> list[Moment]:
        """Since the last change was applied."""
        return moments(self._watch.since(self.applied), self.name)

    @property
    def now(self) -> Moment:
        return moments(list(self._watch.changes), self.name)[-1]

    def apply(self, manifest: Mapping[str, Any], begins: bool = True) -> None:
        self.change(lambda: self.cluster.apply(manifest), begins)

    def change(self, change: Callable[[], object], begins: bool = True) -> None:
        """From now on the rollout is meant that this change brings, or, if it ``begins`` none, the one that goes on."""
        self._before = self.now.rollout.get("started", "") if begins else ""
        self.applied = time.time()
        change()

    def wait(self, what: str, condition: Callable[[Moment], bool], timeout: float = DECISION_SECONDS) -> Moment:
        """The first moment of the new rollout of which ``condition`` is true."""

        def found() -> Moment | None:
            return next((m for m in self.story if self._is_new(m) and condition(m)), None)

        try:
            return wait_for(what, found, timeout, poll=0.05)
        except CommandError:
            status = json.dumps(self.now.status, indent=1)
            pods = self.cluster.kubectl("get", "pods", "-n", self.namespace, "-o", "wide", check=False).stdout
            raise CommandError(f"waited {timeout:g} s for {what}\n{status}\n{pods}") from None

    def at(self, phase: str, step: int = 0) -> Moment:
        """The first moment there or further on."""
        least = Place(phase, step).rank
        return self.wait(f"{phase} {step}", lambda m: m.place.phase in PHASES and m.place.rank >= least)

    def decided(self) -> Moment:
        """How the rollout ended."""
        return self.wait("a decision", lambda m: m.rollout["phase"] in ENDED)

    def _is_new(self, moment: Moment) -> bool:
        return bool(moment.rollout) and moment.rollout.get("started", "") != self._before

    def more_requests(self, count: int = 30) -> None:
        """Until so many more have ended than have now."""
        seen = len(self.load.report.outcomes)
        wait_for(f"{count} more requests", lambda: len(self.load.report.outcomes) >= seen + count, timeout=60)

    def figures(self, what: str, end: Moment) -> dict[str, Any]:
        """For people to read, of the rollout that ended with ``end``."""
        canary, report = end.rollout["revision"], self.load.report
        stays = places(self.story, end.rollout["started"])
        return {
            "canary": what,
            "phase": end.rollout["phase"],
            "gate": end.failed_checks,
            "reason": (end.status.get("rejectedRevision") or {}).get("reason", ""),
            "seconds": round(end.seen - self.applied, 1),
            "users_requests_answered_by_canary": met(report.outcomes, canary),
            "canary_requests_judged": end.rollout.get("requests", 0),
            "stays": [f"{place.phase} {place.step}" if place.phase == "Traffic" else place.phase for place in stays],
            "load_late_ms": round(1000 * report.late, 1),
            **report.summary(),
        }


@contextlib.contextmanager
def under_load(
    cluster: Cluster, release: Release, namespace: str, rate: float = RATE, name: str = NAME
) -> Generator[Trial]:
    """A Trial of the Reranker ``name`` while ``rate`` requests a second come in."""
    path = f"/apis/rerank.dev/v1alpha1/namespaces/{namespace}/rerankers"
    body = {"model": f"{namespace}/{name}", **BODY}
    with (
        release.reach_gateways() as urls,
        Watch(cluster, path) as watch,
        SteadyLoad(lambda: urls, "/v2/rerank", body, rate=rate) as load,
    ):
        wait_for("steady traffic", lambda: len(load.report.outcomes) >= 30 and watch.changes, timeout=60)
        yield Trial(cluster, namespace, load, watch, name)


def shop(namespace: str, uri: str, *, rollout: Mapping[str, Any] = ROLLOUT, **spec: Any) -> dict[str, Any]:
    """The Reranker that is changed. By hand, for replicas that share a machine's cores serve no faster."""
    scale = {} if "scaling" in spec else {"replicas": 1}
    settings = {"rollout": dict(rollout), "requests": {"timeout": "30s"}, **scale, **spec}
    return reranker(NAME, namespace, uri, **settings)


def begin_anew(cluster: Cluster, manifest: Mapping[str, Any]) -> str:
    """``manifest`` serves, whatever was there before, and the next change is a canary; its revision."""
    namespace = manifest["metadata"]["namespace"]
    # At once: the way back from the last test is no canary that has to be judged.
    cluster.apply({**manifest, "spec": {**manifest["spec"], "rollout": {"strategy": "Replace"}}})
    wait_settled(cluster, manifest["metadata"]["name"], namespace)
    cluster.apply(manifest)
    return wait_settled(cluster, manifest["metadata"]["name"], namespace)["status"]["currentRevision"]


def failed_for_users(report: Report) -> list[str]:
    return [f"{outcome.status} {outcome.error}" for outcome in report.failed]
