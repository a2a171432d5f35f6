"""Objects as the API server returns them, with just enough in them: builders for the operator's unit tests."""

from typing import Any

from rerank_api import names
from rerank_api.reranker import parse_reranker
from rerank_api.revision import object_name, revision_hash, revision_of
from rerank_operator.controller.actions import Apply, Delete, Scale
from rerank_operator.controller.conditions import Problem
from rerank_operator.controller.kinds import DEPLOYMENTS, PODS, RERANKERS, Kind
from rerank_operator.controller.observe import Observed, observe
from rerank_operator.controller.plan import Plan, make_plan
from rerank_operator.controller.store import Store
from rerank_operator.manifests.common import labels
from rerank_operator.manifests.pod_template import WorkerImage
from rerank_operator.rollout.canary import Findings

NAMESPACE, NAME, UID = "search", "products", "uid-1"
KEY = (NAMESPACE, NAME)
WORKER = WorkerImage("registry.example/worker:1")
NOW = 1_800_000_000.0
MODEL_A = {"uri": "file:///models/a"}
MODEL_B = {"uri": "file:///models/b"}


def reranker(model: dict[str, Any] = MODEL_A, *, status: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {
            "name": NAME,
            "namespace": NAMESPACE,
            "uid": UID,
            "generation": 1,
            "resourceVersion": "1",
        },
        "spec": {"model": model, **spec},
        **({"status": status} if status else {}),
    }


def hash_of(body: dict[str, Any]) -> str:
    return revision_hash(revision_of(parse_reranker(body).spec))


def pod(revision: str, index: int = 0, *, ready: bool = True, **changes: Any) -> dict[str, Any]:
    status: dict[str, Any] = {
        "phase": "Running",
        "conditions": [
            {"type": "Ready", "status": "True" if ready else "False"},
            {"type": "PodScheduled", "status": "True"},
        ],
        "containerStatuses": [{"name": "worker", "ready": ready, "restartCount": 0, "state": {"running": {}}}],
    }
    metadata = {
        "name": f"{object_name(NAME, revision)}-{index}",
        "namespace": NAMESPACE,
        "uid": f"pod-{revision}-{index}",
        "resourceVersion": "1",
        "labels": labels(NAME, revision),
    }
    return {"metadata": metadata | changes.pop("metadata", {}), "status": status | changes}


def unschedulable(
    revision: str, index: int = 0, *, since: str = "2027-01-15T07:00:00Z", words: str = ""
) -> dict[str, Any]:
    words = words or "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
    return pod(
        revision,
        index,
        ready=False,
        phase="Pending",
        conditions=[condition | {"lastTransitionTime": since}],
        containerStatuses=[],
    )


def crashed(
    revision: str, code: int, words: str, index: int = 0, *, restarts: int = 1, reason: str = "Error"
) -> dict[str, Any]:
    ended = {"exitCode": code, "reason": reason, "message": words}
    container = {
        "name": "worker",
        "ready": False,
        "restartCount": restarts,
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
        "lastState": {"terminated": ended},
    }
    return pod(revision, index, ready=False, containerStatuses=[container])


class World:
    """A store and what the API server, the Deployment controller, the scheduler and the kubelet would make of plans.

    ``room``: pods that fit, of all revisions together. ``broken``: revisions whose workers cannot load.
    """

    def __init__(self, room: int = 1000) -> None:
        self.store = Store()
        self.version = 1
        self.room = room
        self.broken: set[str] = set()
        self.now = NOW
        self.problem: Problem | None = None
        self.findings: Findings | None = None
        self.worker = WORKER

    def put(self, kind: Kind, body: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        body = body | {"metadata": {"uid": f"uid-{self.version}"} | body["metadata"]}
        body["metadata"]["resourceVersion"] = str(self.version)
        self.store.seen(kind, False, body)
        return body

    def remove(self, kind: Kind, name: str) -> None:
        self.version += 1
        metadata = {"name": name, "namespace": NAMESPACE, "resourceVersion": str(self.version)}
        self.store.seen(kind, True, {"metadata": metadata})

    def observe(self) -> Observed:
        observed = observe(self.store, KEY)
        assert observed is not None
        return observed

    def plan(self) -> Plan:
        return make_plan(self.observe(), self.worker, self.now, self.problem, findings=self.findings)

    def deployment(self, revision: str) -> dict[str, Any] | None:
        return self.store.get(DEPLOYMENTS, NAMESPACE, object_name(NAME, revision))

    def replicas(self) -> dict[str, int]:
        """Of each Deployment there is, by revision."""
        found = self.store.children(DEPLOYMENTS, KEY)
        return {body["metadata"]["labels"][names.LABEL_REVISION]: body["spec"]["replicas"] for body in found}

    def want(self, model: dict[str, Any] = MODEL_A, **spec: Any) -> str:
        """Change the spec, keep the status; returns the revision that it asks for."""
        old = self.store.get(RERANKERS, *KEY)
        body = reranker(model, status=old.get("status") if old else None, **spec)
        body["metadata"]["annotations"] = old["metadata"].get("annotations", {}) if old else {}
        body["metadata"]["generation"] = old["metadata"]["generation"] + 1 if old else 1
        self.put(RERANKERS, body)
        return hash_of(body)

    def annotate(self, name: str, value: str) -> None:
        body = self.store.get(RERANKERS, *KEY)
        assert body is not None
        annotations = body["metadata"].get("annotations", {}) | {name: value}
        self.put(RERANKERS, body | {"metadata": body["metadata"] | {"annotations": annotations}})

    @property
    def status(self) -> dict[str, Any]:
        body = self.store.get(RERANKERS, *KEY)
        assert body is not None
        return body.get("status", {})

    def condition(self, kind: str) -> tuple[str, str]:
        found = next(c for c in self.status["conditions"] if c["type"] == kind)
        return found["status"], found["reason"]

    def pods(self, revision: str | None = None) -> list[dict[str, Any]]:
        pods = self.store.children(PODS, KEY)
        found = [(p["metadata"]["labels"].get(names.LABEL_REVISION), p) for p in pods]
        return [p for label, p in found if label is not None and revision in (None, label)]  # others are warm pods

    def ready(self, revision: str | None = None) -> int:
        return sum(p["status"]["conditions"][0]["status"] == "True" for p in self.pods(revision))

    def carry_out(self, plan: Plan) -> None:
        for action in plan.actions:
            match action:
                case Apply():
                    metadata = action.manifest["metadata"]
                    old = self.store.get(action.kind, metadata["namespace"], metadata["name"]) or {}
                    kept = {key: value for key, value in old.items() if key not in action.manifest}
                    owned = old.get("metadata", {})
                    merged = owned | metadata
                    merged["annotations"] = owned.get("annotations", {}) | metadata.get("annotations", {})
                    merged["generation"] = owned.get("generation", 0) + 1
                    self.put(action.kind, kept | action.manifest | {"metadata": merged})
                case Scale():
                    old = self.store.get(DEPLOYMENTS, action.namespace, action.name)
                    assert old is not None
                    assert old["metadata"]["resourceVersion"] == action.resource_version
                    metadata = old["metadata"] | {"generation": old["metadata"]["generation"] + 1}
                    annotations = dict(metadata.get("annotations", {}))
                    annotations.pop(names.ANNOTATION_LENT_TO, None)
                    annotations.pop(names.ANNOTATION_FITS, None)
                    if action.lent_to:
                        annotations[names.ANNOTATION_LENT_TO] = action.lent_to
                    if action.fits is not None:
                        annotations[names.ANNOTATION_FITS] = str(action.fits)
                    metadata["annotations"] = annotations
                    spec = old["spec"] | {"replicas": action.replicas}
                    self.put(DEPLOYMENTS, old | {"metadata": metadata, "spec": spec})
                case Delete():
                    self.remove(action.kind, action.name)
        if plan.status is not None:
            body = self.store.get(RERANKERS, *KEY)
            assert body is not None
            self.put(RERANKERS, body | {"status": plan.status["status"]})

    def run_deployments(self) -> None:
        """Pods as many as each Deployment asks for: unready ones go first, new ones wait for room, no one is ready.

        Failed pods are left alone, as ReplicaSets do.
        """
        for body in self.store.children(DEPLOYMENTS, KEY):
            revision = body["metadata"]["labels"][names.LABEL_REVISION]
            alive = [p for p in self.pods(revision) if p["status"]["phase"] != "Failed"]
            pods = sorted(alive, key=lambda p: p["status"]["conditions"][0]["status"])
            wanted = body["spec"]["replicas"]
            for surplus in pods[: max(0, len(pods) - wanted)]:
                self.remove(PODS, surplus["metadata"]["name"])
            for _ in range(wanted - len(pods)):
                self.put(PODS, unschedulable(revision, self.version))
            status = {
                "observedGeneration": body["metadata"]["generation"],
                "replicas": wanted,
                "updatedReplicas": wanted,
            }
            if body.get("status") != status:
                self.put(DEPLOYMENTS, body | {"status": status})
        self.schedule()

    def schedule(self) -> None:
        for waiting in [p for p in self.pods() if p["status"]["phase"] == "Pending"]:
            if sum(p["status"]["phase"] != "Pending" for p in self.pods()) >= self.room:
                return
            revision = waiting["metadata"]["labels"][names.LABEL_REVISION]
            self.put(PODS, waiting | {"status": pod(revision, ready=False)["status"]})

    def run_one_pod(self) -> bool:
        """The first scheduled pod that is not ready loads, or fails to. False: there is none."""
        for body in self.pods():
            revision = body["metadata"]["labels"][names.LABEL_REVISION]
            status = body["status"]
            if status["phase"] in ("Pending", "Failed") or status["conditions"][0]["status"] == "True":
                continue
            broken = revision in self.broken
            after = crashed(revision, 64, "spec.model: no such file") if broken else pod(revision)
            if status != after["status"]:
                self.put(PODS, body | {"status": after["status"]})
                return True
        return False

    def step(self) -> Plan:
        self.now += 60
        plan = self.plan()
        self.carry_out(plan)
        self.run_deployments()
        return plan

    def settle(self, steps: int = 60) -> None:
        """Until nothing is left to do."""
        for _ in range(steps):
            plan = self.step()
            if not self.run_one_pod() and plan.status is None and not plan.actions:
                return
        raise AssertionError(f"not settled after {steps} steps: {self.plan()}")
