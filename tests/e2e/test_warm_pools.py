"""Warm pools on a genuine API server: no pod is lent twice, and a loan lives through crashes, rollouts and deletions.

The operator runs from this checkout, without gateways: ``minReplicas`` makes a Reranker wish for a warm pod, and
``suspend`` makes it give it back. Workers and models are genuine.
"""

import asyncio
import json
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.cluster import Cluster, wait_for
from harness.operators import Operator, operators_of, own_cluster
from harness.release import condition, namespace, reranker, warm_pool
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import load_kube_config
from rerank_api import names
from rerank_operator.controller.api import KubeApi
from rerank_operator.controller.events import Event
from rerank_operator.controller.kinds import DEPLOYMENTS, PODS, RERANKERS, WARM_POOLS, Key, Kind
from rerank_operator.controller.pools import Pools
from rerank_operator.controller.store import Store
from rerank_operator.manifests.pod_template import WorkerImage
from rerank_operator.manifests.warm_pool import labels
from rerank_operator.warm.observe import Wish, warm_pod

pytestmark = pytest.mark.local_only

SPACE, POOL = "t-warm-pools", "shared"
ROUNDS = 200
START_SECONDS = 180
"""A worker imports its libraries, on a machine that may be busy."""
STEP_SECONDS = 90


@pytest.fixture(scope="module")
def kube() -> Iterator[Cluster]:
    with own_cluster("warm-pools", nodes=1) as cluster:
        cluster.apply(namespace(SPACE))
        yield cluster


# --- two controllers, one pod ---


class Told:
    """Wishes that a test sets."""

    def __init__(self) -> None:
        self.loaners = 0
        self.key: Key = (SPACE, "")

    def wishes(self, namespace: str, pool: str) -> list[Wish]:
        return [Wish(self.key, self.loaners, time.time())]


class Recording(KubeApi):
    """Notes each claim that the API server let through."""

    def __init__(self, configuration: Configuration) -> None:
        super().__init__(configuration)
        self.claims: list[tuple[str, str]] = []

    async def merge(self, kind: Kind, namespace: str, name: str, patch: dict[str, Any]) -> dict[str, Any]:
        answer = await super().merge(kind, namespace, name, patch)
        if patch["metadata"].get("labels", {}).get(names.LABEL_LOANED_TO):
            self.claims.append((answer["metadata"]["labels"][names.LABEL_LOANED_TO], name))
        return answer


async def unheard(_event: Event, _metadata: Any) -> None:
    pass


async def controller(api: KubeApi, name: str) -> tuple[Pools, Store, Told]:
    store, told = Store(), Told()
    for kind in (RERANKERS, WARM_POOLS, DEPLOYMENTS, PODS):
        known = store.before_list(kind)
        listed = await api.list(kind, SPACE)
        store.listed(kind, SPACE, listed["items"], listed["metadata"]["resourceVersion"], known)
    told.key = (SPACE, name)
    made = Pools(api, store, told, WorkerImage("example/worker:1"), b"k" * 32, name, lambda _: None, unheard)
    return made, store, told


def a_pod_that_is_ready(kube: Cluster, name: str, pool_name: str) -> None:
    """Without a worker: nobody schedules it, and its status is what we say."""
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": SPACE, "labels": labels(pool_name)},
        "spec": {
            "schedulerName": "nobody",
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "worker", "image": "example/worker:1", "securityContext": security}],
        },
    }
    kube.apply(pod)
    conditions = [{"type": "Ready", "status": "True"}, {"type": "ContainersReady", "status": "True"}]
    status = {"status": {"phase": "Running", "podIP": "127.0.0.9", "conditions": conditions}}
    kube.kubectl("patch", "pod", name, "-n", SPACE, "--subresource=status", "--type=merge", "-p", json.dumps(status))


async def test_two_controllers_never_lend_the_last_pod_twice(kube: Cluster):
    kube.apply(warm_pool("race", SPACE, 0))
    for name in ("left", "right"):
        kube.apply(reranker(name, SPACE, "file:///models/a", scaling={"warmPool": "race"}))
    a_pod_that_is_ready(kube, "last-one", "race")
    configuration = Configuration()
    await load_kube_config(config_file=str(kube.kubeconfig), client_configuration=configuration)
    api = Recording(configuration)
    api.fence = lambda: 15.0
    key = (SPACE, "race")
    won = {"left": 0, "right": 0}
    try:
        both = [await controller(api, name) for name in ("left", "right")]
        for _ in range(ROUNDS):
            api.claims.clear()
            for _, _, told in both:
                told.loaners = 1
            await asyncio.gather(*(pools.reconcile(key) for pools, _, _ in both))
            ((winner, _),) = api.claims
            won[winner] += 1
            for pools, store, told in both:
                body = store.get(PODS, SPACE, "last-one")
                assert body is not None
                loan = warm_pod(body, {}).loan
                assert loan is not None
                assert loan.reranker == winner
                waits = pools.waiting((SPACE, told.key[1]))
                assert (waits is None) == (told.key[1] == winner)
            for pools, _, told in both:
                pools.clear()  # the load, for which there is no worker
                told.loaners = 0
            await next(pools for pools, _, told in both if told.key[1] == winner).reconcile(key)
            released = await api.get(PODS, SPACE, "last-one")
            assert names.LABEL_LOANED_TO not in released["metadata"]["labels"]
            for pools, store, _ in both:
                store.learned(PODS, json.loads(json.dumps(released)))
                pools.clear()
        for pools, _, _ in both:
            pools.queue.close()
            await pools.run()
    finally:
        await api.close()
    print(json.dumps({"rounds": ROUNDS, "won": won}))
    kube.kubectl("delete", "pod", "last-one", "-n", SPACE, "--grace-period=0", "--force")
    kube.kubectl("delete", "rerankers,warmpools", "--all", "-n", SPACE)


# --- loans, with genuine workers ---


@pytest.fixture(scope="module")
def operator(kube: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    folder = tmp_path_factory.mktemp("operator")
    key = folder / "key"
    key.write_bytes(os.urandom(32).hex().encode())
    with operators_of(kube, folder, f"--warm-pool-key-file={key}") as start:
        one = start()
        wait_for("an operator that leads", one.leads, timeout=60)
        yield one


@pytest.fixture(scope="module")
def warm(kube: Cluster, operator: Operator) -> dict[str, Any]:
    """The pool, once both pods are ready."""
    kube.apply(warm_pool(POOL, SPACE, 2))

    def ready() -> dict[str, Any] | None:
        found = kube.get("warmpool", POOL, "-n", SPACE)
        return found if found.get("status", {}).get("free") == 2 else None

    return wait_for("two warm pods", ready, timeout=START_SECONDS)


def warm_pods(kube: Cluster) -> list[dict[str, Any]]:
    pods = kube.items("pods", "-n", SPACE, "-l", f"{names.LABEL_WARM_POOL}={POOL}")
    return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]


def loans(kube: Cluster, name: str) -> list[dict[str, Any]]:
    return [pod for pod in warm_pods(kube) if pod["metadata"]["labels"].get(names.LABEL_LOANED_TO) == name]


def serving(kube: Cluster, name: str) -> dict[str, Any] | None:
    for pod in loans(kube, name):
        if pod["metadata"].get("annotations", {}).get(names.ANNOTATION_LOAN_SERVING):
            return pod
    return None


def wait_serving(kube: Cluster, name: str, other_than: str = "", revision: str | None = None) -> dict[str, Any]:
    def seen() -> dict[str, Any] | None:
        pod = serving(kube, name)
        if pod is None or pod["metadata"]["uid"] == other_than:
            return None
        return pod if revision in (None, pod["metadata"]["labels"][names.LABEL_LOANED_REVISION]) else None

    return wait_for(f"a warm pod that serves {name}", seen, timeout=STEP_SECONDS)


def score(pod: dict[str, Any]) -> list[float]:
    key = pod["metadata"]["annotations"][names.ANNOTATION_LOAN_SERVING]
    url = f"http://{pod['status']['podIP']}:{names.WORKER_PORT}/v1/models/{key}/score"
    body = json.dumps({"query": "a red shoe", "documents": ["red shoes", "a blue bag"]}).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=30) as answer:
        return json.load(answer)["scores"]


NO_ROOM = {"resources": {"requests": {"cpu": "1000"}}}
"""Its own workers find no node, so that they take no time from the warm ones."""


def wish_for_one(name: str, uri: str, **spec: Any) -> dict[str, Any]:
    scaling = {"minReplicas": 1, "maxReplicas": 2, "warmPool": POOL}
    return reranker(name, SPACE, uri, scaling=scaling, **spec)


def wait_no_loan(kube: Cluster, name: str) -> None:
    wait_for(f"no loan of {name}", lambda: not loans(kube, name), timeout=STEP_SECONDS)


def events(kube: Cluster, reason: str) -> list[str]:
    found = kube.items("events.events.k8s.io", "-n", SPACE)
    return [event["note"] for event in found if event.get("reason") == reason]


def test_claim_load_serve_crash_rollout_and_release(
    kube: Cluster, warm: dict[str, Any], operator: Operator, model_uri: str, other_model_uri: str
):
    kube.apply(wish_for_one("products", model_uri))
    first = wait_serving(kube, "products")
    assert len(score(first)) == 2
    # Its own worker crashes: the loan goes on in the other pod.
    (process,) = kube.processes(namespace=SPACE, pod=first["metadata"]["name"], container="worker")
    os.kill(process["pid"], signal.SIGKILL)
    second = wait_serving(kube, "products", other_than=first["metadata"]["uid"])
    before = score(second)
    # A new revision that serves takes the loan along.
    kube.apply(wish_for_one("products", other_model_uri))

    def rolled_out() -> str | None:
        status = kube.get("reranker", "products", "-n", SPACE).get("status", {})
        current, wanted = status.get("currentRevision"), status.get("updatedRevision")
        old = second["metadata"]["labels"][names.LABEL_LOANED_REVISION]
        return current if current == wanted and current != old else None

    revision = wait_for("the rollout", rolled_out, timeout=START_SECONDS)
    moved = wait_serving(kube, "products", revision=revision)
    assert score(moved) != before
    # What is suspended holds no pod, and its model no memory.
    kube.apply(wish_for_one("products", other_model_uri, suspend=True))
    wait_no_loan(kube, "products")
    for pod in warm_pods(kube):
        kept = {*pod["metadata"]["labels"], *pod["metadata"].get("annotations", {})}
        assert not kept & {
            names.LABEL_LOANED_REVISION,
            names.ANNOTATION_LOANED_AT,
            names.ANNOTATION_LOAN_SERVING,
            names.ANNOTATION_DELETION_COST,
        }
    wait_for("models to be unloaded", lambda: not any(map(models, warm_pods(kube))), timeout=STEP_SECONDS)
    assert operator.metric("rerank_operator_wake_phase_seconds_count") >= 3
    kube.kubectl("delete", "reranker", "products", "-n", SPACE)


def models(pod: dict[str, Any]) -> list[str]:
    url = f"http://{pod['status']['podIP']}:{names.WORKER_PORT}/v1/models"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return [model["key"] for model in json.load(answer)["models"]]


def test_a_model_that_cannot_be_loaded_is_told_and_its_pod_given_back(kube: Cluster, warm: dict[str, Any]):
    kube.apply(wish_for_one("broken", "file:///nowhere/at/all", runtime=NO_ROOM))
    wait_for("the Event", lambda: events(kube, "WarmPodLoadFailed"), timeout=STEP_SECONDS)
    assert "/nowhere/at/all" in events(kube, "WarmPodLoadFailed")[0]

    def told() -> bool:
        found = condition(kube.get("warmpool", POOL, "-n", SPACE), "Degraded")
        return found.get("reason") == "LoadFailed" and "/nowhere/at/all" in found["message"]

    wait_for("the condition", told, timeout=STEP_SECONDS)
    kube.kubectl("delete", "reranker", "broken", "-n", SPACE)
    wait_no_loan(kube, "broken")


def test_exhaustion_is_told_in_both_objects(kube: Cluster, warm: dict[str, Any], model_uri: str):
    greedy = wish_for_one("greedy", model_uri, runtime=NO_ROOM)
    greedy["spec"]["scaling"] |= {"minReplicas": 3, "maxReplicas": 3}
    kube.apply(greedy)
    wait_for("both pods", lambda: len(loans(kube, "greedy")) == 2, timeout=STEP_SECONDS)

    def told() -> tuple[str, str] | None:
        of_pool = condition(kube.get("warmpool", POOL, "-n", SPACE), "Degraded")
        of_reranker = condition(kube.get("reranker", "greedy", "-n", SPACE), "Scaling").get("message", "")
        found = of_pool.get("reason") == "Exhausted" and "Too few warm pods" in of_reranker
        return (of_pool["message"], of_reranker) if found else None

    for message in wait_for("both conditions", told, timeout=STEP_SECONDS):
        assert "1 more are wished for than there are: of 2 pods 2 are lent and none is free" in message
    assert events(kube, "WarmPoolExhausted")
    kube.kubectl("delete", "reranker", "greedy", "-n", SPACE)
    wait_no_loan(kube, "greedy")


def test_what_the_pods_do_not_offer_is_told_and_nothing_is_claimed(kube: Cluster, warm: dict[str, Any], model_uri: str):
    kube.apply(
        wish_for_one("gpus", model_uri, runtime={"resources": {"limits": {"nvidia.com/gpu": 8}}, "device": "auto"})
    )

    def told() -> str | None:
        found = condition(kube.get("warmpool", POOL, "-n", SPACE), "Degraded")
        return found["message"] if found.get("reason") == "CannotServe" else None

    assert "nvidia.com/gpu: 8" in wait_for("the condition", told, timeout=STEP_SECONDS)
    assert loans(kube, "gpus") == []
    kube.kubectl("delete", "reranker", "gpus", "-n", SPACE)


def test_a_new_leader_goes_on_with_a_loan_that_the_old_one_has_begun(
    kube: Cluster, warm: dict[str, Any], operator: Operator, model_uri: str, tmp_path: Path
):
    """The leader is frozen while a claim is on its way to serving, and its lease runs out."""
    key = operator.log.parent / "key"
    standby = Operator(kube, tmp_path / "standby.log", f"--warm-pool-key-file={key}")
    try:
        wait_for("a standby", standby.ready, timeout=60)
        kube.apply(wish_for_one("handed", model_uri, runtime=NO_ROOM))
        wait_for("a claim", lambda: loans(kube, "handed"), timeout=STEP_SECONDS, poll=0.02)
        operator.signal(signal.SIGSTOP)
        wait_for("the standby to lead", standby.leads, timeout=STEP_SECONDS)
        pod = wait_serving(kube, "handed")
        assert len(score(pod)) == 2
        operator.signal(signal.SIGCONT)
        wait_for("the old leader to notice", lambda: not operator.leads(), timeout=STEP_SECONDS)
        assert len(loans(kube, "handed")) == 1
    finally:
        operator.signal(signal.SIGCONT)
        standby.signal(signal.SIGTERM)
        standby.process.wait(timeout=30)
        standby.end()
    wait_for("leadership to return", operator.leads, timeout=STEP_SECONDS)
    kube.kubectl("delete", "reranker", "handed", "-n", SPACE)
    wait_no_loan(kube, "handed")


def test_a_pool_that_is_deleted_while_pods_are_lent(kube: Cluster, warm: dict[str, Any], model_uri: str):
    kube.apply(wish_for_one("left-alone", model_uri))
    wait_serving(kube, "left-alone")
    kube.kubectl("delete", "warmpool", POOL, "-n", SPACE)
    wait_for("garbage collection", lambda: not warm_pods(kube), timeout=STEP_SECONDS)

    def own_serves() -> bool:
        found = condition(kube.get("reranker", "left-alone", "-n", SPACE), "Ready")
        return (
            found.get("status") == "True"
            and kube.get("reranker", "left-alone", "-n", SPACE)["status"]["readyReplicas"] == 1
        )

    wait_for("its own worker", own_serves, timeout=START_SECONDS)
