"""tune: the Job that is made of a worker's Deployment, how it is followed, and that it is always removed."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from rerank_api.reranker import Metadata, Model, Reranker, RolloutStatus, Runtime, ScalingStatus
from rerank_api.revision import RevisionSpec, object_name
from rerank_gateway.cluster.state import parse_pod
from rerank_kubectl import jobs, tune
from rerank_kubectl.__main__ import run
from rerank_kubectl.changes import Refused
from rerank_kubectl.kubectl import Failed
from rerank_kubectl.tune import Stage
from rerank_operator.manifests.deployment import deployment
from rerank_operator.manifests.pod_template import WorkerImage
from unit.kubectl.build import CANARY, STABLE, body, reranker, rollout
from unit.kubectl.fake import FakeKubectl

OVERLAY = {
    "metadata": {"labels": {"team": "search"}, "annotations": {"egress": "hub"}},
    "spec": {
        "nodeSelector": {"gpu": "h100"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "containers": [{"name": "proxy", "image": "proxy"}, {"name": "worker", "env": [{"name": "HF_TOKEN"}]}],
    },
}
REVISION = RevisionSpec(
    Model("pvc://models/reranker"),
    Runtime(pod_template=OVERLAY, resources={"limits": {"nvidia.com/gpu": 1}}),
)
DEPLOYMENT = deployment(Metadata("products", "search"), STABLE, REVISION, 2, "10s", WorkerImage("worker:1"))
RERANKER = reranker(updatedRevision=STABLE)
NAME = "products-tune-0a1b2c3d"


def made(seconds: float = 60, as_json: bool = False) -> dict[str, Any]:
    return tune.job(NAME, DEPLOYMENT, RERANKER, seconds, 600, as_json)


def test_the_job_runs_where_a_worker_would_and_measures_the_workers_own_configuration():
    worker = next(one for one in DEPLOYMENT["spec"]["template"]["spec"]["containers"] if one["name"] == "worker")
    spec = made()["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["command"] == ["rerank-worker", "tune", "--seconds=60", "--batch-sizes", "8", "16", "32", "64"]
    for key in ("image", "env", "resources", "securityContext", "volumeMounts"):
        assert container[key] == worker[key]
    assert not container.keys() & {"startupProbe", "readinessProbe", "livenessProbe", "ports"}
    assert spec["nodeSelector"] == {"gpu": "h100"}
    assert spec["tolerations"] == OVERLAY["spec"]["tolerations"]
    assert spec["volumes"] == DEPLOYMENT["spec"]["template"]["spec"]["volumes"]
    assert spec["restartPolicy"] == "Never"
    assert made(as_json=True)["spec"]["template"]["spec"]["containers"][0]["command"][-1] == "--json"


def test_nobody_takes_the_pod_of_the_job_for_a_worker():
    metadata = made()["spec"]["template"]["metadata"]
    assert metadata["labels"]["team"] == "search"
    assert metadata["annotations"] == {"egress": "hub"}
    selected = DEPLOYMENT["spec"]["selector"]["matchLabels"]
    assert selected.items() & metadata["labels"].items() == set()
    running = {
        "metadata": metadata | {"name": "p", "namespace": "search", "uid": "u"},
        "status": {"podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]},
    }
    assert parse_pod(msgspec.json.encode(running)) is None
    workers = running | {
        "metadata": running["metadata"] | {"labels": DEPLOYMENT["spec"]["template"]["metadata"]["labels"]}
    }
    assert parse_pod(msgspec.json.encode(workers)) is not None


def test_the_job_ends_by_itself_and_goes_with_its_reranker():
    job = made(seconds=120)
    assert job["spec"]["backoffLimit"] == 0
    assert job["spec"]["activeDeadlineSeconds"] == 600 + 120 + tune.LOAD_SECONDS + tune.ENDING_SECONDS
    assert job["spec"]["ttlSecondsAfterFinished"] == tune.KEPT_SECONDS
    (owner,) = job["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == ("Reranker", "products")
    assert "controller" not in owner
    assert "blockOwnerDeletion" not in owner


def test_a_long_name_leaves_room_for_the_jobs_own():
    assert tune.job_name("a" * 39 + ".b" * 5, "0a1b2c3d") == "a" * 39 + "-tune-0a1b2c3d"
    assert len(tune.job_name("a" * 253, "0a1b2c3d")) + len("-xxxxx") <= 63, "with what its pod's name has more"


def busy(going: RolloutStatus | None = None, ready: int = 1, **more: Any) -> Reranker:
    return reranker(going, scaling=ScalingStatus("Auto", 1, **more), readyReplicas=ready, updatedRevision=STABLE)


@pytest.mark.parametrize(
    ("of", "said"),
    [
        (busy(), []),
        (busy(queued_requests=0), []),
        (reranker(), []),
        (busy(queued_requests=3), ["3 requests wait"]),
        (busy(ready=0), ["1 workers are wanted and 0 are ready"]),
        (busy(rollout()), ["a rollout goes on"]),
    ],
)
def test_who_else_may_need_the_room(of: Reranker, said: list[str]):
    found = tune.hindrances(of)
    assert [words in one for words, one in zip(said, found, strict=True)] == [True] * len(said)


def pod(phase: str, state: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    injected = {"name": "injected", "state": {"running": {}}}
    statuses = [injected, {"name": "worker", "state": state}] if state is not None else []
    return {"metadata": {"name": "p"}, "status": {"phase": phase, "containerStatuses": statuses} | status}


FULL = {"type": "PodScheduled", "status": "False", "message": "0/2 nodes: Insufficient nvidia.com/gpu"}


@pytest.mark.parametrize(
    ("pods", "found"),
    [
        ([], Stage("waiting", "its pod has not been made yet: `kubectl describe jobs` tells why")),
        ([pod("Pending", conditions=[FULL])], Stage("waiting", FULL["message"], "p")),
        (
            [pod("Pending", {"waiting": {"reason": "ContainerCreating"}})],
            Stage("waiting", "its pod is being started", "p"),
        ),
        (
            [pod("Pending", {"waiting": {"reason": "ErrImagePull", "message": "no such image"}})],
            Stage("waiting", "ErrImagePull: no such image", "p"),
        ),
        ([pod("Running", {"running": {}})], Stage("running", pod="p")),
        ([pod("Succeeded", {"terminated": {"exitCode": 0, "reason": "Completed"}})], Stage("done", pod="p")),
        ([pod("Running", {"terminated": {"exitCode": 0, "reason": "Completed"}})], Stage("done", pod="p")),
        (
            [pod("Failed", {"terminated": {"exitCode": 137, "reason": "OOMKilled"}})],
            Stage("failed", "exit code 137 (OOMKilled)", "p"),
        ),
        ([pod("Failed", {"terminated": {"exitCode": 71, "reason": "Error"}})], Stage("failed", "exit code 71", "p")),
        (
            [pod("Failed", reason="Evicted", message="The node was low on memory")],
            Stage("failed", "Evicted: The node was low on memory", "p"),
        ),
    ],
)
def test_how_far_it_is(pods: list[Any], found: Stage):
    assert tune.stage(pods) == found


WAITING, RUNNING, DONE = Stage("waiting", "no room", "p"), Stage("running", pod="p"), Stage("done", pod="p")


def followed(looks: list[Stage | Exception], patience: float = 10, seconds: float = 10) -> tuple[Stage, list[str]]:
    """Each look takes no time and each wait what it says; the last look stays."""
    now, told = 0.0, []

    def look() -> Stage:
        found = looks.pop(0) if len(looks) > 1 else looks[0]
        if isinstance(found, Exception):
            raise found
        return found

    def wait(duration: float) -> None:
        nonlocal now
        now += duration

    return tune.follow(look, lambda _: "round 1", told.append, lambda: now, wait, patience, seconds), told


def test_it_is_followed_to_its_end_with_what_is_new():
    assert followed([WAITING, Failed("away"), RUNNING, RUNNING, DONE]) == (DONE, ["no room", "round 1", "round 1"])
    failed = Stage("failed", "exit code 71", "p")
    assert followed([failed])[0] == failed


@pytest.mark.parametrize(
    ("looks", "error", "said"),
    [
        ([WAITING], Refused, "did not begin within 10 s (--wait): no room"),
        ([WAITING, RUNNING], Refused, "not ended 10 s after its start"),
        ([RUNNING, Failed("away")], Failed, "away"),
        ([RUNNING, Failed("forbidden", passing=False)], Failed, "forbidden"),
    ],
)
def test_it_is_not_followed_for_ever(looks: list[Stage | Exception], error: type[Exception], said: str):
    with pytest.raises(error) as ended:
        followed(looks)
    assert said in str(ended.value)


LOG = ["reading the model", "round 1 of at most 5, 1/9: torch-flat", "50 pairs, 5400 tokens (108 a pair)", "", "table"]


@pytest.mark.parametrize(
    ("log", "as_json", "found"),
    [
        (LOG, False, "50 pairs, 5400 tokens (108 a pair)\n\ntable\n"),
        (["reading the model", "{", '  "pairs": 50', "}"], True, '{\n  "pairs": 50\n}\n'),
        # What a library says at the end of the process.
        (
            ["{", '  "trials": [', "    {", "    }", "  ]", "}", "[W] leaked"],
            True,
            '{\n  "trials": [\n    {\n    }\n  ]\n}\n',
        ),
        (["{", '  "pairs": 50'], True, None),
        (["reading the model"], False, None),
        ([], True, None),
    ],
)
def test_the_report_is_what_follows_the_progress(log: list[str], as_json: bool, found: str | None):
    assert tune.report_of(log, as_json) == found


@pytest.fixture
def cluster(kubectl: FakeKubectl, monkeypatch: pytest.MonkeyPatch) -> FakeKubectl:
    monkeypatch.setattr(tune, "EVERY", 0.01)
    kubectl.has(body(updatedRevision=STABLE))
    kubectl.answers("deployments.apps", DEPLOYMENT)
    kubectl.answers("pods", {"items": [pod("Succeeded", {"terminated": {"exitCode": 0}})]})
    kubectl.logs("p", "\n".join(LOG) + "\n")
    monkeypatch.setattr(jobs.secrets, "token_hex", lambda _: "0a1b2c3d")
    return kubectl


REMOVED = ["delete", "jobs.batch", NAME, "--namespace=search", "--ignore-not-found", "--wait=false"]


def test_the_report_is_printed_and_the_job_removed(cluster: FakeKubectl, capsys: pytest.CaptureFixture[str]):
    assert run(["tune", "products", "--seconds", "60"]) == 0
    assert capsys.readouterr().out == "50 pairs, 5400 tokens (108 a pair)\n\ntable\n"
    assert cluster.created == made(seconds=60)
    asked = ["get", "deployments.apps", object_name("products", STABLE), "--namespace=search", "--output=json"]
    assert asked in cluster.calls
    assert cluster.calls[-1] == REMOVED


def test_nothing_that_the_job_prints_moves_a_cursor(cluster: FakeKubectl, capsys: pytest.CaptureFixture[str]):
    forged = "\x1b]0;owned\x07\x9b2J"
    jobs.Progress().show(f"round 1 {forged}")
    cluster.logs("p", f"50 pairs, 5400 tokens {forged}\n{forged}\n")
    assert run(["tune", "products"]) == 0
    cluster.answers("pods", {"items": [pod("Failed", {"terminated": {"exitCode": 71, "reason": forged}})]})
    assert run(["tune", "products"]) == 2
    shown = capsys.readouterr()
    assert all(letter.isprintable() for letter in (shown.out + shown.err).replace("\n", ""))
    assert "round 1  ]0;owned  2J\n" in shown.err


def test_a_failed_job_is_told_with_the_end_of_its_log_and_removed(
    cluster: FakeKubectl, capsys: pytest.CaptureFixture[str]
):
    cluster.answers("pods", {"items": [pod("Failed", {"terminated": {"exitCode": 71, "reason": "Error"}})]})
    cluster.logs("p", "reading the model\nrerank-worker: no memory\n")
    assert run(["tune", "products"]) == 2
    streams = capsys.readouterr()
    assert "the measuring failed: exit code 71; its log ends with:\n  reading the model\n  rerank-worker" in streams.err
    assert streams.out == ""
    assert cluster.calls[-1] == REMOVED


def test_a_job_without_room_is_removed_when_patience_is_over(cluster: FakeKubectl, capsys: pytest.CaptureFixture[str]):
    cluster.answers("pods", {"items": [pod("Pending", conditions=[FULL])]})
    assert run(["tune", "products", "--wait", "0s"]) == 2
    assert "Insufficient nvidia.com/gpu. It needs the room of one more worker" in capsys.readouterr().err
    assert cluster.calls[-1] == REMOVED


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_person_who_has_had_enough_leaves_no_job(
    cluster: FakeKubectl, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
):
    def had_enough(**_: Callable[..., Any]) -> Stage:
        os.kill(os.getpid(), number)
        threading.Event().wait(30)
        return DONE

    monkeypatch.setattr(jobs.tune, "follow", had_enough)
    assert run(["tune", "products"]) == 128 + number
    assert cluster.calls[-1] == REMOVED


def test_a_person_who_cannot_wait_for_the_removal_leaves_no_job(cluster: FakeKubectl, monkeypatch: pytest.MonkeyPatch):
    def had_enough(**_: Callable[..., Any]) -> Stage:
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(30)
        return DONE

    monkeypatch.setattr(jobs.tune, "follow", had_enough)
    signals = "; ".join(f"kill -{name} $PPID" for name in ("INT", "TERM", "HUP"))
    folder = cluster.folder
    cluster.does("delete", f"{signals}; sleep 0.2; cut -d ' ' -f 6 /proc/$$/stat > {folder}/session")
    assert run(["tune", "products"]) == 128 + signal.SIGINT
    assert cluster.calls[-1] == REMOVED
    assert int((folder / "session").read_text()) != os.getsid(0), "where no terminal's Ctrl-C comes to"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_terminal_that_is_gone_leaves_no_job(cluster: FakeKubectl, monkeypatch: pytest.MonkeyPatch):
    class Gone:
        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> int:
            if text.startswith("\r"):
                return len(text)
            raise OSError(5, "Input/output error")

        def flush(self) -> None: ...

    def hung_up(show: Callable[[str], None], **_: Callable[..., Any]) -> Stage:
        show("round 1")
        os.kill(os.getpid(), signal.SIGHUP)
        threading.Event().wait(30)
        return DONE

    monkeypatch.setattr(jobs.sys, "stderr", Gone())
    monkeypatch.setattr(jobs.tune, "follow", hung_up)
    with pytest.raises(OSError, match="Input/output"):
        run(["tune", "products"])
    assert cluster.calls[-1] == REMOVED


def test_a_reader_that_has_had_enough_leaves_no_job(cluster: FakeKubectl):
    """The progress is printed into a pipe that nobody reads any more, as of ``2>&1 | head -1``."""
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, "-m", "rerank_kubectl", "tune", "products"]
    ended = subprocess.run(command, stdout=writes, stderr=writes, timeout=60, check=False)
    os.close(writes)
    assert ended.returncode == 128 + signal.SIGPIPE
    assert cluster.calls[-1][:2] == ["delete", "jobs.batch"]


def test_what_is_to_outlive_its_terminal_does(cluster: FakeKubectl):
    """nohup has SIGHUP ignored, and a script's background job SIGINT: so it stays."""
    cluster.does("create", f"cat > {cluster.folder}/created; kill -HUP $PPID; kill -INT $PPID")
    program = "import signal, os, sys\nfor one in (signal.SIGHUP, signal.SIGINT): signal.signal(one, signal.SIG_IGN)\n"
    program += "os.execv(sys.executable, [sys.executable, '-m', 'rerank_kubectl', 'tune', 'products'])"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("50 pairs")


def test_a_signal_while_an_ended_job_is_removed_changes_nothing(
    cluster: FakeKubectl, capsys: pytest.CaptureFixture[str]
):
    cluster.does("delete", f"kill -INT $PPID; sleep 0.2; echo > {cluster.folder}/deleted")
    assert run(["tune", "products"]) == 0
    assert (cluster.folder / "deleted").exists()
    assert capsys.readouterr().out.startswith("50 pairs")


def test_a_job_that_is_being_made_is_removed_too(cluster: FakeKubectl):
    cluster.does("create", f"cat > {cluster.folder}/created; kill -INT $PPID; exec sleep 30")
    assert run(["tune", "products"]) == 128 + signal.SIGINT
    assert cluster.created["metadata"]["name"] == NAME
    assert cluster.calls[-1] == REMOVED


def test_a_job_that_cannot_be_removed_is_told_with_the_command_that_does(
    cluster: FakeKubectl, capsys: pytest.CaptureFixture[str]
):
    cluster.does("delete", "echo 'error: connection refused' >&2; exit 1")
    assert run(["tune", "products", "--context", "blue"]) == 2
    by_hand = f"kubectl delete jobs.batch {NAME} --namespace=search --ignore-not-found --context=blue"
    assert f"connection refused. Job search/{NAME} may be left and hold a GPU; to remove it: {by_hand}" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("said", "removed"),
    [("Error from server (Forbidden): jobs.batch is forbidden", False), ("Unable to connect to the server: EOF", True)],
)
def test_a_job_that_was_refused_is_none(
    cluster: FakeKubectl, capsys: pytest.CaptureFixture[str], said: str, removed: bool
):
    cluster.does("create", f"echo '{said}' >&2; exit 1")
    assert run(["tune", "products"]) == 2
    assert said in capsys.readouterr().err
    assert (cluster.calls[-1] == REMOVED) is removed


def test_what_may_hinder_others_is_asked_for_by_yes(cluster: FakeKubectl, capsys: pytest.CaptureFixture[str]):
    cluster.has(body(rollout(), updatedRevision=CANARY))
    assert run(["tune", "products"]) == 2
    assert "a rollout goes on. To measure all the same: --yes" in capsys.readouterr().err
    assert not any(call[0] == "create" for call in cluster.calls)
    assert run(["tune", "products", "--yes"]) == 0
