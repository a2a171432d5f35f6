"""A pool's Deployment, status and conditions; the same look gives the same plan, and a stored status is not written."""

import hashlib
from typing import Any

import pytest
from rerank_api import names
from rerank_api.reranker import Metadata
from rerank_operator.controller.actions import Apply, Mark
from rerank_operator.controller.conditions import Problem
from rerank_operator.controller.kinds import DEPLOYMENTS, PODS, RERANKERS, WARM_POOLS
from rerank_operator.controller.store import Store
from rerank_operator.manifests.pod_template import BadSpec
from rerank_operator.manifests.warm_pool import warm_pool_deployment
from rerank_operator.warm.members import Reader
from rerank_operator.warm.models import Failure, place
from rerank_operator.warm.observe import Loan, Wish, pool_state
from rerank_operator.warm.plan import Plan, make_plan, observe
from rerank_operator.warm.status import told
from rerank_operator.warm.tokens import new_key, pool_token, read_key
from unit.operator.build import WORKER
from unit.operator.warm.pool import (
    KEY,
    NAMESPACE,
    NOW,
    POOL,
    hash_of,
    holding,
    key_of,
    pod_body,
    reranker,
    spec,
    warm_pool,
)

OWNER = Metadata(name=POOL, namespace=NAMESPACE, uid="uid-pool")


def stored(pool: dict[str, Any], *pods: dict[str, Any], rerankers: tuple[dict[str, Any], ...] = ()) -> Store:
    store = Store()
    store.seen(WARM_POOLS, False, pool)
    for pod in pods:
        store.seen(PODS, False, pod)
    for body in rerankers:
        store.seen(RERANKERS, False, body)
    return store


def plan(store: Store, *wishes: Wish, problem: Problem | None = None, **known: Any) -> Plan:
    observed = observe(store, KEY, wishes, known.get("workers", {}), known.get("failures", {}), {}, Reader())
    assert observed is not None
    return make_plan(observed, "token", WORKER, NOW, problem)


def wish(name: str, loaners: int, since: float = NOW) -> Wish:
    return Wish((NAMESPACE, name), loaners, since)


def condition(made: Plan, kind: str) -> tuple[str, str, str]:
    assert made.status is not None
    (found,) = [one for one in made.status["status"]["conditions"] if one["type"] == kind]
    return found["status"], found["reason"], found["message"]


# --- the Deployment ---


def test_warm_pods_stand_by_under_restricted_pod_security_with_the_tokens_checksum_only():
    resources = {"limits": {"nvidia.com/gpu": 1}}
    manifest = warm_pool_deployment(OWNER, spec(3, max_models_per_pod=5, resources=resources), "secret", WORKER)
    template = manifest["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert manifest["spec"]["replicas"] == 3
    assert container["command"] == ["rerank-worker", "serve", "--standby", "--max-models", "5"]
    env = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert env["RERANK_ADMIN_TOKEN_SHA256"] == hashlib.sha256(b"secret").hexdigest()
    assert names.ENV_WORKER_CONFIG not in env
    assert "secret" not in str(manifest)
    assert container["resources"] == resources
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert template["spec"]["securityContext"]["runAsNonRoot"]
    assert manifest["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    (owner,) = manifest["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"], owner["controller"]) == ("WarmPool", "uid-pool", True)


def test_no_selector_of_a_reranker_finds_a_warm_pod_and_no_claim_takes_it_from_its_own():
    manifest = warm_pool_deployment(OWNER, spec(), "token", WORKER)
    labels = manifest["spec"]["template"]["metadata"]["labels"]
    assert names.LABEL_RERANKER not in labels
    assert names.LABEL_REVISION not in labels
    selector = manifest["spec"]["selector"]["matchLabels"]
    assert selector.items() <= labels.items()
    assert not {names.LABEL_LOANED_TO, names.LABEL_LOANED_REVISION} & selector.keys()


def test_an_overlay_is_laid_over_and_may_bring_a_volume_that_keeps_compile_caches():
    mount = {"name": "compiled", "mountPath": f"{names.CACHE_MOUNT}/torchinductor"}
    overlay = {
        "spec": {
            "volumes": [{"name": "compiled", "persistentVolumeClaim": {"claimName": "compiled"}}],
            "containers": [{"name": "worker", "volumeMounts": [mount]}],
        }
    }
    template = warm_pool_deployment(OWNER, spec(pod_template=overlay), "token", WORKER)["spec"]["template"]["spec"]
    assert [volume["name"] for volume in template["volumes"]] == ["cache", "compiled"]
    assert mount in template["containers"][0]["volumeMounts"]


@pytest.mark.parametrize(
    ("overlay", "field"),
    [
        (
            {"metadata": {"labels": {names.LABEL_LOANED_TO: "a"}}},
            "spec.podTemplate.metadata.labels.rerank.dev/loaned-to",
        ),
        ({"metadata": {"annotations": {names.ANNOTATION_LOAN_SERVING: "a"}}}, "metadata.annotations.rerank.dev/loan"),
        ({"metadata": {"labels": {names.LABEL_WARM_POOL: "b"}}}, "spec.podTemplate.metadata.labels"),
        ({"spec": {"containers": [{"name": "worker", "args": ["x"]}]}}, "spec.podTemplate.spec.containers[0].args"),
        (
            {"spec": {"containers": [{"name": "worker", "env": [{"name": "RERANK_ADMIN_TOKEN_SHA256"}]}]}},
            "RERANK_ADMIN_TOKEN_SHA256 may not be set",
        ),
        ({"spec": {"containers": [{"name": "worker", "resources": {}}]}}, "use spec.resources"),
    ],
)
def test_an_overlay_that_asks_for_what_the_operator_relies_on_is_refused_and_told(overlay: dict[str, Any], field: str):
    with pytest.raises(BadSpec) as refused:
        warm_pool_deployment(OWNER, spec(pod_template=overlay), "token", WORKER)
    assert field in str(refused.value)
    made = plan(stored(warm_pool(podTemplate=overlay), pod_body(1)))
    assert made.actions == ()
    assert condition(made, "Degraded")[:2] == ("True", "InvalidSpec")
    assert condition(made, "Ready")[0] == "True"


def test_the_deployment_is_made_and_not_made_again():
    store = stored(warm_pool())
    (made,) = plan(store).actions
    assert isinstance(made, Apply)
    assert (made.why, made.manifest["metadata"]["name"]) == ("create", "shared-warm")


# --- observation ---


def test_pods_that_end_are_nobodys_and_loans_are_read_from_the_labels():
    ending = pod_body(3)
    ending["metadata"]["deletionTimestamp"] = "2027-01-15T08:00:00Z"
    failed = pod_body(4)
    failed["status"]["phase"] = "Failed"
    loan = Loan("a", "r1", NOW - 1.5, "search.a.r1")
    state = pool_state(stored(warm_pool(), pod_body(1, loan=loan), pod_body(2), ending, failed), *KEY)
    assert [pod.name for pod in state.pods] == ["shared-warm-1", "shared-warm-2"]
    assert state.pods[0].loan == loan
    assert [pod.name for pod in state.free] == ["shared-warm-2"]
    assert (state.serving("a"), state.claiming("a"), state.serving("b")) == (1, 0, 0)


def test_a_loan_that_is_not_ready_is_on_its_way():
    loan = Loan("a", "r1", NOW, "search.a.r1")
    state = pool_state(stored(warm_pool(), pod_body(1, loan=loan, ready=False)), *KEY)
    assert (state.serving("a"), state.claiming("a"), len(state.free)) == (0, 1, 0)


def test_a_time_that_somebody_has_written_wrongly_does_not_hide_the_loan():
    body = pod_body(1, loan=Loan("a", "r1", NOW))
    body["metadata"]["annotations"][names.ANNOTATION_LOANED_AT] = "yesterday"
    (pod,) = pool_state(stored(warm_pool(), body), *KEY).pods
    assert pod.loan == Loan("a", "r1", 0.0)


def test_changes_make_the_pool_due_and_the_reranker_that_has_the_pod():
    told: list[Any] = []
    store = Store(told.append)
    store.seen(WARM_POOLS, False, warm_pool())
    assert store.seen(PODS, False, pod_body(1, 2)) is None
    assert store.seen(PODS, False, pod_body(1, 3, loan=Loan("a", "r1", NOW))) == (NAMESPACE, "a")
    assert store.seen(PODS, False, pod_body(1, 4)) == (NAMESPACE, "a")
    assert store.seen(RERANKERS, False, reranker("a", 5)) == (NAMESPACE, "a")
    assert store.seen(RERANKERS, False, reranker("a", 6, scaling={"warmPool": "other"})) == (NAMESPACE, "a")
    assert sorted(told) == sorted([*[KEY] * 6, (NAMESPACE, "other")])


# --- status and conditions ---


def test_counts_models_and_a_healthy_pool():
    body = reranker("a")
    loan = Loan("a", hash_of(body), NOW - 5, key_of(body))
    store = stored(warm_pool(), pod_body(1, loan=loan), pod_body(2), rerankers=(body,))
    workers = {"pod-1": holding(key_of(body)), "pod-2": holding(key_of(body), "search.gone.x")}
    made = plan(store, wish("a", 1), workers=workers)
    assert made.status is not None
    told = {key: value for key, value in made.status["status"].items() if key != "conditions"}
    assert told == {
        "observedGeneration": 1,
        "replicas": 2,
        "readyReplicas": 2,
        "free": 1,
        "loaned": 1,
        "selector": "rerank.dev/warm-pool=shared,app.kubernetes.io/component=worker",
        "models": [{"reranker": "a", "revision": hash_of(body), "pods": 2}],
    }
    assert condition(made, "Ready") == ("True", "PodsReady", "2 of 2 pods are ready")
    assert condition(made, "Degraded")[:2] == ("False", "Healthy")


def test_a_status_that_stands_is_not_written_again():
    pool = warm_pool(size=0)
    made = plan(stored(pool))
    assert made.status is not None
    assert made.status["status"]["free"] == 0
    assert plan(stored(pool | {"status": made.status["status"]})).status is None


@pytest.mark.parametrize(
    ("pool", "pods", "ready"),
    [
        (warm_pool(0), [], ("False", "NoPodsRequested")),
        (warm_pool(2), [pod_body(1, ready=False)], ("False", "WaitingForPods")),
        (warm_pool(2), [pod_body(1), pod_body(2, ready=False)], ("True", "PodsReady")),
    ],
)
def test_ready(pool: dict[str, Any], pods: list[dict[str, Any]], ready: tuple[str, str]):
    assert condition(plan(stored(pool, *pods)), "Ready")[:2] == ready


def test_exhaustion_is_told():
    made = plan(stored(warm_pool(1), pod_body(1), rerankers=(reranker("a"),)), wish("a", 2))
    status, reason, message = condition(made, "Degraded")
    assert (status, reason) == ("True", "Exhausted")
    assert message == "a: 1 more are wished for than there are: of 1 pods 0 are lent and none is free"


def test_what_needs_a_person_makes_an_event_and_so_does_its_end():
    greedy = plan(stored(warm_pool(1), pod_body(1), rerankers=(reranker("a"),)), wish("a", 2)).status
    content = plan(stored(warm_pool(1), pod_body(1), rerankers=(reranker("a"),)), wish("a", 1)).status
    assert greedy is not None
    assert content is not None
    assert told({}, content) == ()
    (event,) = told(content["status"], greedy)
    assert (event.type, event.reason) == ("Warning", "Exhausted")
    (event,) = told(greedy["status"], content)
    assert (event.type, event.reason) == ("Normal", "Recovered")
    assert told(greedy["status"], greedy) == ()


def test_resources_that_are_not_offered_are_told_and_nothing_is_claimed():
    body = reranker("a", runtime={"resources": {"limits": {"nvidia.com/gpu": 1}}})
    made = plan(stored(warm_pool(1), pod_body(1), rerankers=(body,)), wish("a", 1))
    assert made.loans.claims == ()
    assert condition(made, "Degraded")[1] == "CannotServe"
    assert "a: it asks for nvidia.com/gpu: 1, and the pods have none" in condition(made, "Degraded")[2]


def test_a_load_that_failed_is_told_and_when_it_may_be_tried_again_is_known():
    body = reranker("a")
    failure = Failure(3, NOW - 1, NOW + 7, "weights are damaged", {"pod-1": None})
    store = stored(warm_pool(1), pod_body(1), rerankers=(body,))
    made = plan(store, wish("a", 1), failures={key_of(body): failure}, workers={"pod-1": holding()})
    assert condition(made, "Degraded")[1] == "LoadFailed"
    assert "weights are damaged" in condition(made, "Degraded")[2]
    assert made.requeue_after == pytest.approx(7)


def test_a_preload_that_nobody_uses_and_one_that_does_not_fit_are_told():
    body, pool = reranker("a"), warm_pool(1, preload=[{"uri": "file:///models/a"}, {"uri": "file:///models/x"}])
    made = plan(stored(pool, pod_body(1), rerankers=(body,)), workers={"pod-1": holding(key_of(body))})
    assert condition(made, "Degraded")[1] == "PreloadUnused"
    assert "file:///models/x" in condition(made, "Degraded")[2]
    failures = {place("pod-1", key_of(body)): Failure(1, NOW, NOW + 9, "does not fit", {"pod-1": None})}
    made = plan(stored(pool, pod_body(1), rerankers=(body,)), workers={"pod-1": holding()}, failures=failures)
    assert condition(made, "Degraded")[1:] == ("PreloadFailed", f"{key_of(body)}: does not fit")


def test_what_the_api_server_refused_is_told():
    made = plan(stored(warm_pool(1)), problem=Problem("ApplyFailed", "quota"))
    assert condition(made, "Degraded") == ("True", "ApplyFailed", "quota")
    assert condition(made, "Ready") == ("False", "ApplyFailed", "quota")


def test_trouble_of_the_pods_names_the_pools_own_fields():
    body = pod_body(1, ready=False)
    ended = {"exitCode": 137, "reason": "OOMKilled"}
    body["status"]["containerStatuses"][0] |= {"state": {"terminated": ended}, "restartCount": 1}
    status, reason, message = condition(plan(stored(warm_pool(1), body)), "Degraded")
    assert (status, reason) == ("True", "OutOfMemory")
    assert "raise spec.resources.limits.memory" in message


def test_a_pool_that_cannot_be_read_touches_nothing():
    pool = warm_pool()
    pool["spec"]["size"] = "many"
    made = plan(stored(pool, pod_body(1, loan=Loan("a", "r", NOW)), rerankers=(reranker("a"),)), wish("a", 0))
    assert (made.actions, made.loans.releases, made.jobs) == ((), (), ())
    assert condition(made, "Degraded")[1] == "InvalidSpec"


def test_a_pool_that_is_being_deleted_is_left_to_garbage_collection():
    pool = warm_pool()
    pool["metadata"]["deletionTimestamp"] = "2027-01-15T08:00:00Z"
    assert plan(stored(pool, pod_body(1), rerankers=(reranker("a"),)), wish("a", 1)) == Plan()
    assert observe(Store(), KEY, (), {}, {}, {}, Reader()) is None


# --- tokens ---


def test_tokens_differ_by_pool_and_key(tmp_path):
    key = new_key()
    tokens = {
        pool_token(key, "a", "b", "uid"),
        pool_token(key, "a", "b", "uid-2"),
        pool_token(key, "a", "c", "uid"),
        pool_token(new_key(), "a", "b", "uid"),
    }
    assert len(tokens) == 4
    assert pool_token(key, "a", "b", "uid") in tokens
    path = tmp_path / "key"
    path.write_bytes(b"0123456789abcdef\n")
    assert read_key(path) == b"0123456789abcdef"
    path.write_bytes(b"short-secret")
    with pytest.raises(ValueError, match="at least 16") as refused:
        read_key(path)
    assert "short-secret" not in str(refused.value)


def test_a_canary_that_borrows_room_takes_a_pod_that_is_not_lent():
    canary = {"revision": "r2", "stable": "r1", "phase": "Starting", "started": "2027-01-15T08:00:00Z", "borrowed": 1}
    body = reranker("a", status={"rollout": canary})
    lent = pod_body(0, loan=Loan("a", hash_of(body), NOW, key_of(body)))
    store = stored(warm_pool(2), lent, pod_body(1), rerankers=(body,))
    deployment = warm_pool_deployment(OWNER, spec(2), "token", WORKER)
    deployment["metadata"] |= {"uid": "uid-d", "resourceVersion": "1", "generation": 1}
    store.seen(DEPLOYMENTS, False, deployment)
    marks, fewer = plan(store, wish("a", 1)).actions
    assert marks == Mark(NAMESPACE, f"{POOL}-warm-1", "pod-1", -1)
    assert isinstance(fewer, Apply)
    assert fewer.manifest["spec"]["replicas"] == 1

    # Until one has gone the mark stays; what is lent meanwhile, or stays, is none to go.
    deployment = fewer.manifest | {"metadata": deployment["metadata"] | {"resourceVersion": "2"}}
    deployment["metadata"]["annotations"] = fewer.manifest["metadata"]["annotations"]
    store.seen(DEPLOYMENTS, False, deployment)
    marked = pod_body(1, 2)
    marked["metadata"]["annotations"] = {names.ANNOTATION_DELETION_COST: "-1"}
    store.seen(PODS, False, marked)
    assert plan(store, wish("a", 1)).actions == ()
    store.seen(PODS, True, {"metadata": lent["metadata"] | {"resourceVersion": "3"}})
    assert plan(store, wish("a", 1)).actions == (Mark(NAMESPACE, f"{POOL}-warm-1", "pod-1", None),)
