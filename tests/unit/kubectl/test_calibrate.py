"""calibrate: the report and its doubts by tables, and the verb with a kubectl that forwards to a worker of the test."""

import json
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rerank_api import names, wire
from rerank_api.reranker import Reranker
from rerank_kubectl import calibrate, workers
from rerank_kubectl.__main__ import run
from rerank_kubectl.calibrate import Report
from rerank_kubectl.commands import Call
from rerank_kubectl.kubectl import Failed, Kubectl
from rerank_kubectl.workers import Worker
from rerank_operator.rollout.golden.calibration import Labelled, probability
from rerank_operator.rollout.golden.golden_set import LabelledQuery
from unit.kubectl.build import CANARY, STABLE, body, reranker, rollout
from unit.kubectl.fake import FakeKubectl

SETTLED: dict[str, Any] = {"updatedRevision": STABLE}
CALL = Call(context="blue")


def drawn(queries: int, temperature: float = 2.0, documents: int = 10) -> list[Labelled]:
    """Labels as they fall if sigmoid(logit / temperature) is true."""
    chance = random.Random(11)
    found = []
    for _ in range(queries):
        logits = [chance.gauss(-1, 3) * temperature for _ in range(documents)]
        found.append(Labelled(logits, [chance.random() < probability(logit, temperature) for logit in logits]))
    return found


def reported(
    queries: list[Labelled], *, activation: str = "sigmoid", temperature: float = 1.0, of: Reranker | None = None
) -> Report:
    of = of or reranker(None, **SETTLED)
    return calibrate.report(of, STABLE, "labels.jsonl", "products-1", activation, temperature, queries)


def test_scores_that_are_too_sure_are_found_and_mended():
    found = reported(drawn(200))
    assert found.fitted == pytest.approx(2.0, rel=0.1)
    assert found.validated is not None
    assert found.validated.ece < found.before.ece / 3
    assert found.validated.brier < found.before.brier
    assert found.validated.log_loss < found.before.log_loss
    assert found.doubts == []
    assert calibrate.patch(found) == {"spec": {"model": {"temperature": found.fitted}}}
    page = calibrate.page(found, CALL)
    assert f"temperature {found.fitted:g}, on other queries" in page
    assert "--context=blue" in page.splitlines()[-1]
    assert max(len(line) for line in page.splitlines()[:-1]) <= 80


def test_scores_that_are_right_are_left_alone():
    found = reported(drawn(200), temperature=reported(drawn(200)).fitted)
    assert calibrate.same(found)
    assert "Nothing to change" in calibrate.page(found, CALL)


@settings(max_examples=50)
@given(st.integers(2, 12), st.floats(0.05, 20), st.floats(0.05, 20))
def test_the_labels_are_never_less_likely_afterwards(queries: int, true: float, in_force: float):
    labelled = drawn(queries, true)
    if len({label for query in labelled for label in query.relevant}) == 2:
        found = reported(labelled, temperature=in_force)
        assert found.after.log_loss <= found.before.log_loss + 1e-5  # the fitted one is rounded
        assert sum(one.count for one in found.before.bins) == found.documents


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([[1, 3], [2]], "all 3 labels say relevant"),
        ([[0]], "all 1 labels say not relevant"),
        ([[0], [1]], None),
    ],
)
def test_labels_of_one_kind_fit_nothing(labels: list[list[int]], said: str | None):
    found = calibrate.one_kind([LabelledQuery("q", ["d"] * len(one), one) for one in labels])
    assert found is None if said is None else said in str(found)


MANY = drawn(100)
TOLD_APART = [Labelled([3.0, 4.0, -3.0, -4.0, -5.0], [True, True, False, False, False])] * 40
WRONG_WAY = [Labelled([-3.0, -4.0, 3.0, 4.0, 5.0], [True, True, False, False, False])] * 40


@pytest.mark.parametrize(
    ("queries", "more", "said"),
    [
        (MANY, {"activation": "identity"}, ["activation is identity"]),
        (TOLD_APART, {}, ["at its bound, 0.01"]),
        (WRONG_WAY, {}, ["at its bound, 100"]),
        (MANY[:5], {}, ["too few labels: "]),
        (drawn(1, documents=400), {}, ["of 1 queries", "too few queries to test"]),
        (MANY, {"of": reranker(None, generation=3, **SETTLED)}, ["not read the latest spec"]),
        (MANY, {"of": reranker()}, [f"the spec asks for revision {CANARY}"]),
        (MANY, {"of": reranker(rollout(), **SETTLED)}, ["a rollout goes on"]),
        (MANY, {}, []),
    ],
)
def test_what_speaks_against_setting_it(queries: list[Labelled], more: dict[str, Any], said: list[str]):
    found = reported(queries, **more)
    assert len(found.doubts) == len(said), found.doubts
    for doubt, words in zip(found.doubts, said, strict=True):
        assert words in doubt
        assert doubt.split()[0] in calibrate.page(found, CALL)


def test_a_temperature_that_only_fits_what_it_has_seen_is_doubted():
    # Each fold says the contrary of the others, so that what is learnt from four is wrong of the fifth.
    sure, wrong = Labelled([4.0, -4.0] * 6, [True, False] * 6), Labelled([4.0, -4.0] * 6, [False, True] * 6)
    found = reported([sure, wrong, sure, sure, sure] * 2, temperature=3.5)
    assert found.validated is not None
    assert found.validated.log_loss > found.after.log_loss
    assert any("no better than the one in force" in doubt for doubt in found.doubts)


def test_a_shift_that_no_temperature_mends_is_noted():
    shifted = [Labelled([logit + 6 for logit in query.logits], query.relevant) for query in MANY]
    assert any("does not shift" in note for note in reported(shifted).notes)
    assert not any("does not shift" in note for note in reported(MANY).notes)


def test_the_diagram_puts_share_and_mean_side_by_side():
    # 40 documents at 0.95 of which half are relevant: a bar of half the width, the mark at its end.
    queries = [Labelled([2.944, 2.944, -2.944, -2.944], [True, False, False, False])] * 20
    lines = calibrate.page(reported(queries), CALL).splitlines()
    top = next(line for line in lines if line.startswith("  0.9-1.0"))
    assert top.split()[:4] == ["0.9-1.0", "40", "0.950", "0.500"]
    assert top.split()[4] == "#" * 15 + "." * 13 + "|" + "."
    empty = next(line for line in lines if line.startswith("  0.5-0.6"))
    assert empty.split() == ["0.5-0.6", "0", "-", "-"]


def pod(name: str, *, ready: bool = True, deleted: bool = False, loan: str | None = None) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "namespace": "search", "labels": {}}
    if deleted:
        metadata["deletionTimestamp"] = "2026-11-22T03:00:00Z"
    if loan is not None:
        metadata["labels"] = {names.LABEL_WARM_POOL: "pool"}
        metadata["annotations"] = {names.ANNOTATION_LOAN_SERVING: loan}
    return {"metadata": metadata, "status": {"conditions": [{"type": "Ready", "status": "True" if ready else "False"}]}}


KEY = names.model_key("search", "products", STABLE)


@pytest.mark.parametrize(
    ("pods", "found"),
    [
        ([pod("a", ready=False), pod("b", deleted=True), pod("c")], [Worker("search", "c")]),
        ([{"metadata": {"name": "a", "namespace": "search"}}], []),
        ([pod("warm", loan=KEY)], [Worker("search", "warm", KEY)]),
        ([pod("warm", loan="search.products.other")], []),
    ],
)
def test_only_a_worker_that_serves_this_revision_is_asked(pods: list[Any], found: list[Worker]):
    assert workers.serving(pods, "products", STABLE) == found


class FakeWorker(ThreadingHTTPServer):
    """Answers as a worker does, with the number in front of each document for its logit."""

    def __init__(self, key: str = "default") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.key = key
        self.asked: list[tuple[str, dict[str, str], wire.ScoreRequest]] = []
        self.then: Callable[[], None] = lambda: None
        self.facts: dict[str, Any] = {"activation": "sigmoid", "temperature": 1.0, "more": 1}
        self.redirects: str | None = None


class _Handler(BaseHTTPRequestHandler):
    @property
    def worker(self) -> FakeWorker:
        assert isinstance(self.server, FakeWorker)
        return self.server

    def do_GET(self) -> None:
        if self.worker.redirects is not None:
            self.send_response(302)
            self.send_header("Location", self.worker.redirects)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self._answer({"models": [{"key": "other", "facts": {}}, {"key": self.worker.key, "facts": self.worker.facts}]})

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        asked = msgspec.json.decode(content, type=wire.ScoreRequest)
        self.worker.asked.append((self.path, dict(self.headers), asked))
        self.worker.then()
        self._answer(wire.ScoreResponse([float(text.split()[0]) for text in asked.documents], tokens=1))

    def _answer(self, content: Any) -> None:
        found = msgspec.json.encode(content)
        self.send_response(200)
        self.send_header("Content-Length", str(len(found)))
        self.end_headers()
        self.wfile.write(found)

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def worker(kubectl: FakeKubectl) -> Iterator[FakeWorker]:
    with FakeWorker() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        kubectl.forwards(server.server_address[1])
        kubectl.answers("pods", {"items": [pod("products-1")]})
        yield server
        server.shutdown()
        thread.join()


def lines_of(queries: list[Labelled]) -> str:
    return "\n".join(
        json.dumps(
            {
                "query": f"q{number}",
                "documents": [f"{logit!r} text" for logit in query.logits],
                "labels": [int(label) for label in query.relevant],
            }
        )
        for number, query in enumerate(queries)
    )


def ended(kubectl: FakeKubectl) -> bool:
    """Whether the port-forward is over."""
    try:
        os.kill(int((kubectl.folder / "forwarding").read_text()), 0)
    except ProcessLookupError:
        return True
    return False


def test_labels_of_a_file_are_scored_by_a_worker_as_logits_with_low_priority(
    kubectl: FakeKubectl, worker: FakeWorker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    kubectl.has(body(**SETTLED))
    path = tmp_path / "labels.jsonl"
    path.write_text(lines_of(MANY))
    assert run(["calibrate", "products", "--labels", str(path), "--json", "--context", "blue"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = reported(MANY)
    assert (found["fitted"], found["queries"]) == (expected.fitted, 100)
    assert found["validated"]["ece"] == pytest.approx(expected.validated.ece if expected.validated else None)
    assert found["patch"] == {"spec": {"model": {"temperature": expected.fitted}}}
    assert len(worker.asked) == 100
    path_asked, headers, request = worker.asked[0]
    assert path_asked == f"{wire.MODELS_PATH}/default/score"
    assert headers[wire.HEADER_PRIORITY] == "low"
    assert request.raw_scores
    forward = ["port-forward", "pod/products-1", f":{names.WORKER_PORT}", "--namespace=search", "--address=127.0.0.1"]
    assert [*forward, "--context=blue"] in kubectl.calls
    assert ended(kubectl)
    assert not any(call[0] == "patch" for call in kubectl.calls)


def golden(spec: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return body(spec={"goldenSet": {"configMap": "golden"} | (spec or {})}, **(SETTLED | more))


def test_the_golden_set_is_asked_where_no_file_is_given_and_apply_sets_the_temperature(
    kubectl: FakeKubectl, worker: FakeWorker, capsys: pytest.CaptureFixture[str]
):
    kubectl.has(golden())
    kubectl.answers("configmaps", {"data": {"set.jsonl": lines_of(MANY)}})
    assert run(["calibrate", "products", "--apply"]) == 0
    assert ["get", "configmaps", "golden", "--namespace=search", "--output=json"] in kubectl.calls
    patch = json.dumps({"spec": {"model": {"temperature": reported(MANY).fitted}}})
    place = ["patch", "rerankers.rerank.dev", "products", "--namespace=search", "--type=merge"]
    assert kubectl.calls[-1] == [*place, f"--patch={patch}"]
    streams = capsys.readouterr()
    assert "ConfigMap golden, set.jsonl" in streams.out
    assert "a new revision" in streams.err


def test_what_is_doubted_is_set_by_force_only(
    kubectl: FakeKubectl, worker: FakeWorker, capsys: pytest.CaptureFixture[str]
):
    kubectl.has(golden())
    kubectl.answers("configmaps", {"data": {"set.jsonl": lines_of(MANY[:5])}})
    assert run(["calibrate", "products", "--apply"]) == 2
    assert "too few labels" in capsys.readouterr().err
    assert not any(call[0] == "patch" for call in kubectl.calls)
    assert run(["calibrate", "products", "--apply", "--force"]) == 0
    assert kubectl.calls[-1][0] == "patch"


def test_a_spec_that_has_changed_meanwhile_is_left_alone(
    kubectl: FakeKubectl, worker: FakeWorker, capsys: pytest.CaptureFixture[str]
):
    kubectl.has(golden())
    kubectl.answers("configmaps", {"data": {"set.jsonl": lines_of(MANY)}})
    worker.then = lambda: kubectl.has(golden(generation=3))
    assert run(["calibrate", "products", "--apply", "--force"]) == 2
    assert "the spec has changed since" in capsys.readouterr().err
    assert not any(call[0] == "patch" for call in kubectl.calls)


@pytest.mark.parametrize(
    ("content", "maps", "said"),
    [
        (body(**SETTLED), {}, "give labels with --labels FILE"),
        (golden(), {"a": "", "b": ""}, "has no key (goldenSet.key): there is a, b"),
        (golden({"key": "c"}), {"a": ""}, "has no key c: there is a"),
        (golden(), {"a": "["}, "ConfigMap golden, a: is neither YAML nor JSON"),
        (golden(currentRevision=None), {"a": lines_of(MANY)}, "serves no revision yet"),
        (golden(), {"a": lines_of([Labelled([1.0], [True])])}, "all 1 labels say relevant"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    kubectl: FakeKubectl,
    worker: FakeWorker,
    capsys: pytest.CaptureFixture[str],
    content: Any,
    maps: dict[str, str],
    said: str,
):
    kubectl.has(content)
    kubectl.answers("configmaps", {"data": maps})
    assert run(["calibrate", "products"]) == 2
    streams = capsys.readouterr()
    assert said in streams.err
    assert streams.out == ""


def test_a_model_that_is_asleep_is_told(kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]):
    kubectl.has(golden())
    kubectl.answers("configmaps", {"data": {"set.jsonl": lines_of(MANY)}})
    kubectl.answers("pods", {"items": []})
    assert run(["calibrate", "products"]) == 2
    assert "is ready: wake it with a request" in capsys.readouterr().err


def test_a_worker_without_the_model_is_told_by_its_pods_name(
    kubectl: FakeKubectl, worker: FakeWorker, capsys: pytest.CaptureFixture[str]
):
    worker.key = "another"
    kubectl.has(golden())
    kubectl.answers("configmaps", {"data": {"set.jsonl": lines_of(MANY)}})
    assert run(["calibrate", "products"]) == 2
    assert "worker products-1: has no model default any more" in capsys.readouterr().err
    assert ended(kubectl)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"activation": "sigmoid", "temperature": 0.0}, "$.temperature"),
        ({"activation": "sigmoid", "temperature": -1.0}, "$.temperature"),
        ({"activation": "\x1b[2Jsigmoid", "temperature": 1.0}, "$.activation"),
    ],
)
def test_facts_that_nothing_can_be_computed_from_are_told(
    kubectl: FakeKubectl, worker: FakeWorker, capsys: pytest.CaptureFixture[str], facts: dict[str, Any], said: str
):
    worker.facts = facts
    kubectl.has(golden())
    kubectl.answers("configmaps", {"data": {"set.jsonl": lines_of(MANY)}})
    assert run(["calibrate", "products"]) == 2
    streams = capsys.readouterr()
    assert "worker products-1: did not tell its models" in streams.err
    assert said in streams.err
    assert "\x1b" not in streams.err + streams.out


def test_a_worker_sends_nobody_elsewhere(kubectl: FakeKubectl, worker: FakeWorker, capsys: pytest.CaptureFixture[str]):
    """What runs in a pod must not have this machine ask whatever it can reach."""
    asked: list[str] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as other:
        thread = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        worker.redirects = f"http://127.0.0.1:{other.server_address[1]}/admin"
        kubectl.has(golden())
        kubectl.answers("configmaps", {"data": {"set.jsonl": lines_of(MANY)}})
        assert run(["calibrate", "products"]) == 2
        other.shutdown()
        thread.join()
    assert asked == []
    assert "worker products-1: did not tell its models" in capsys.readouterr().err


def test_ctrl_c_ends_the_port_forward_too(kubectl: FakeKubectl, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: Any, **__: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(30)

    monkeypatch.setattr(workers, "_score", interrupted)
    kubectl.has(golden())
    kubectl.answers("configmaps", {"data": {"set.jsonl": lines_of(MANY)}})
    before = signal.getsignal(signal.SIGINT)
    assert run(["calibrate", "products"]) == 128 + signal.SIGINT
    assert ended(kubectl)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_port_forward_that_does_not_come_about_is_told(kubectl: FakeKubectl):
    (kubectl.folder / "kubectl").write_text("#!/bin/sh\necho 'error: unable to forward port' >&2; exit 1\n")
    with pytest.raises(Failed, match="unable to forward port"), Kubectl().forward("search", "products-1", 8080):
        pass
    (kubectl.folder / "kubectl").write_text("#!/bin/sh\nexec sleep 60\n")
    with (
        pytest.raises(Failed, match=r"did not reach the pod within 0\.2 s"),
        Kubectl(seconds=0.2).forward("search", "products-1", 8080),
    ):
        pass
