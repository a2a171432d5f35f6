"""samples: what gateways have captured, out of their logs."""

import json
import logging
from typing import Any

import pytest
from rerank_gateway.logs import JsonFormatter
from rerank_kubectl import samples
from rerank_kubectl.__main__ import run
from rerank_kubectl.commands import Call
from unit.kubectl.build import CANARY, STABLE, body, reranker
from unit.kubectl.fake import FakeKubectl


def line(time: str = "2026-11-22T03:00:00.000+00:00", **more: Any) -> str:
    fields = {
        "time": time,
        "level": "info",
        "logger": "rerank_gateway.capture",
        "message": "captured",
        "id": "r-1",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "namespace": "search",
        "reranker": "products",
        "revision": STABLE,
        "reason": "sampled",
        "query": "wireless mouse",
        "documents": ["a keyboard", "a mouse\nwithout a wire \x1b[2J"],
        "scores": [0.125, 0.9876],
    }
    return json.dumps(fields | more)


GATEWAY = "rerank/gateway-1"
OTHERS = [
    line(reranker="other"),
    line(namespace="other"),
    line(logger="rerank_gateway.access"),
    '{"logger":"rerank_gateway.capture","cut": ',
    "Traceback (most recent call last)",
]
DISAGREED = line(
    "2026-11-22T02:00:00.000+00:00",
    reason="canary_disagreement",
    id="r-2",
    canary=CANARY,
    canary_scores=[0.75, 0.25],
    agreement=-1.0,
    drift=0.7376,
)


def test_only_this_rerankers_lines_are_read_oldest_first():
    found = samples.read({GATEWAY: [line(), *OTHERS, DISAGREED]}, reranker(), disagreements=False)
    assert [one.sample.id for one in found] == ["r-2", "r-1"]
    assert [one.sample.id for one in samples.read({GATEWAY: [line(), DISAGREED]}, reranker(), disagreements=True)] == [
        "r-2"
    ]


def test_documents_are_shown_best_first_and_move_no_cursor():
    (found,) = samples.read({GATEWAY: [line()]}, reranker(), disagreements=False)
    assert samples.page([found]).splitlines() == [
        "2026-11-22T03:00:00.000+00:00  r-1  sampled",
        "  gateway  rerank/gateway-1",
        f"  revision {STABLE}",
        "  trace    0af7651916cd43dd8448eb211c80319c",
        "  query    wireless mouse",
        "  SCORE    DOCUMENT",
        "  0.9876   a mouse without a wire  [2J",
        "  0.1250   a keyboard",
    ]


FIELDS = ["time", "id", "revision", "reason", "query", "trace_id", "canary"]


@pytest.mark.parametrize("field", FIELDS)
def test_no_field_of_a_forged_line_moves_a_cursor(field: str):
    forged = line(**{"canary": CANARY, field: "\x1b]0;owned\x07\x9b2J\r\n\u202eabc"})
    (found,) = samples.read({GATEWAY: [forged]}, reranker(), disagreements=False)
    shown = samples.page([found])
    assert "]0;owned  2J   abc" in shown
    assert all(letter.isprintable() for letter in shown.replace("\n", ""))


def test_a_line_that_is_printed_as_it_is_moves_no_cursor_either(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]
):
    kubectl.has(CAPTURING)
    kubectl.answers("pods", GATEWAYS)
    forged = line().replace("wireless mouse", "\x9b2J\u202eabc \U000e0041 \u4e2d").replace(", ", ",\t\r")
    kubectl.logs("gateway-1", forged + "\n")
    kubectl.logs("gateway-2", "")
    assert run(["samples", "products", "--json"]) == 0
    shown = capsys.readouterr().out
    assert all(letter.isprintable() for letter in shown.replace("\n", ""))
    assert "\u4e2d" in shown
    assert json.loads(shown) == json.loads(forged)


def test_a_disagreement_shows_both_scores():
    (found,) = samples.read({GATEWAY: [DISAGREED]}, reranker(), disagreements=True)
    lines = samples.page([found]).splitlines()
    assert lines[3] == f"  canary   {CANARY}, agreement -1.000, largest difference 0.738"
    assert lines[6].split() == ["SCORE", "CANARY", "DOCUMENT"]
    assert lines[8] == "  0.1250   0.7500   a keyboard"


def test_a_request_without_a_trace_and_a_canary_without_an_order_are_told_as_such():
    text = line(trace_id=None, canary=CANARY, canary_scores=[0.5, 0.5], agreement=None, drift=None)
    (found,) = samples.read({GATEWAY: [text]}, reranker(), disagreements=False)
    lines = samples.page([found]).splitlines()
    assert lines[3] == f"  canary   {CANARY}, no order to compare"
    assert lines[4].startswith("  query")


def test_a_genuine_gateways_line_is_read():
    record = logging.LogRecord(samples.LOGGER, logging.INFO, "", 0, "captured", (), None)
    record.fields = {key: value for key, value in json.loads(line()).items() if key not in ("time", "logger")}
    (found,) = samples.read({GATEWAY: [JsonFormatter().format(record)]}, reranker(), disagreements=False)
    assert found.sample.id == "r-1"


def test_what_the_gateway_has_cut_is_told():
    (found,) = samples.read({GATEWAY: [line(scores=[0.5, 0.25, 0.125, 0.0])]}, reranker(), disagreements=False)
    assert "and 2 documents more, which were not captured" in samples.page([found])


def test_lines_fit_the_terminal():
    (found,) = samples.read({GATEWAY: [line(query="wide " * 100, documents=["long " * 100, "b"])]}, reranker(), False)
    assert max(map(len, samples.page([found], 60).splitlines())) <= 60


CAPTURING = body(updatedRevision=STABLE)
CAPTURING["spec"]["observability"] = {"capture": {"percent": 5}}
GATEWAYS = {"items": [{"metadata": {"namespace": "rerank", "name": f"gateway-{number}"}} for number in (1, 2)]}


def test_the_logs_of_all_gateways_are_asked(kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]):
    kubectl.has(CAPTURING)
    kubectl.answers("pods", GATEWAYS)
    kubectl.logs("gateway-1", line() + "\n" + "\n".join(OTHERS) + "\n")
    kubectl.logs("gateway-2", DISAGREED + "\n")
    assert run(["samples", "products", "--since", "2h", "--json"]) == 0
    assert capsys.readouterr().out.splitlines() == [DISAGREED, line()]
    selector = "--selector=app.kubernetes.io/part-of=rerank,app.kubernetes.io/component=gateway"
    assert ["get", "pods", selector, "--all-namespaces", "--output=json"] in kubectl.calls
    assert kubectl.calls[-1] == ["logs", "gateway-2", "--namespace=rerank", "--container=gateway", "--since=7200s"]
    assert run(["samples", "products", "--disagreements", "--gateway-namespace", "rerank"]) == 0
    assert capsys.readouterr().out.count("canary_disagreement") == 1
    assert ["get", "pods", selector, "--namespace=rerank", "--output=json"] in kubectl.calls


def test_a_stranger_with_a_gateways_labels_is_not_taken_for_one(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]
):
    kubectl.has(CAPTURING)
    stranger = {"metadata": {"namespace": "elsewhere", "name": "gateway-3"}}
    kubectl.answers("pods", {"items": [*GATEWAYS["items"], stranger]})
    for name in ("gateway-1", "gateway-2", "gateway-3"):
        kubectl.logs(name, line() + "\n")
    assert run(["samples", "products"]) == 2
    streams = capsys.readouterr()
    assert "in 2 namespaces, elsewhere, rerank" in streams.err
    assert "--gateway-namespace NAME" in streams.err
    assert (streams.out, any(call[0] == "logs" for call in kubectl.calls)) == ("", False)
    kubectl.answers("pods", GATEWAYS)
    assert run(["samples", "products", "--gateway-namespace", "rerank"]) == 0
    assert "gateway  rerank/gateway-2" in capsys.readouterr().out


def test_a_gateway_whose_log_cannot_be_read_is_told_and_the_others_shown(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]
):
    kubectl.has(CAPTURING)
    kubectl.answers("pods", GATEWAYS)
    kubectl.logs("gateway-1", line() + "\n")
    assert run(["samples", "products"]) == 2
    streams = capsys.readouterr()
    assert "wireless mouse" in streams.out
    assert 'gateway rerank/gateway-2: Error from server (NotFound): pods "gateway-2" not found' in streams.err


@pytest.mark.parametrize(
    ("content", "arguments", "said"),
    [
        (body(), [], "captures nothing: to have 1 % of its requests"),
        (CAPTURING, [], "hold no captured request of search/products of the last 3600 s: 5 % are captured"),
        (CAPTURING, ["--disagreements"], "no captured request that a canary ranked otherwise"),
    ],
)
def test_why_there_is_nothing_is_told(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str], content: Any, arguments: list[str], said: str
):
    kubectl.has(content)
    kubectl.answers("pods", GATEWAYS)
    for gateway in ("gateway-1", "gateway-2"):
        kubectl.logs(gateway, "")
    assert run(["samples", "products", *arguments]) == 0
    streams = capsys.readouterr()
    assert said in streams.err
    assert streams.out == ""


def test_how_capture_is_switched_on_is_a_command_for_this_cluster():
    said = samples.none_found(reranker(revision=CANARY), 2, 3600, False, Call(context="blue"))
    assert """-p '{"spec":{"observability":{"capture":{"percent":1}}}}' --context=blue""" in said


def test_no_gateway_is_told(kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]):
    kubectl.has(CAPTURING)
    kubectl.answers("pods", {"items": []})
    assert run(["samples", "products"]) == 2
    assert "--gateway-namespace names another place" in capsys.readouterr().err


def test_who_may_not_look_everywhere_is_told_to_name_the_namespace(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]
):
    kubectl.has(CAPTURING)
    script = (kubectl.folder / "kubectl").read_text()
    refusal = 'echo "Error from server (Forbidden): pods is forbidden" >&2; exit 1'
    (kubectl.folder / "kubectl").write_text(
        script.replace('case "$1 $2" in', f'case "$1 $2" in "get pods") {refusal} ;;')
    )
    assert run(["samples", "products"]) == 2
    assert "is told by --gateway-namespace NAME" in capsys.readouterr().err
    assert run(["samples", "products", "--gateway-namespace", "rerank"]) == 2
    assert "is told by" not in capsys.readouterr().err
