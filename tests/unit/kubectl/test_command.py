"""The command with a kubectl that only notes how it is called: arguments, exit statuses, errors."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rerank_api import names
from rerank_api.reranker import RolloutCheck
from rerank_kubectl.__main__ import run
from rerank_kubectl.kubectl import Failed, Kubectl
from unit.kubectl.build import CANARY, EARLIER, LOADED, STABLE, UNSURE, body, kept, rejection, rollout
from unit.kubectl.fake import FakeKubectl

CLUSTER = ["--context", "blue", "--kubeconfig", "/tmp/a config"]
FLAGS = ["--context=blue", "--kubeconfig=/tmp/a config"]
GET = ["get", "rerankers.rerank.dev"]


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        (["status"], [*GET, "--output=json"]),
        (["status", "-n", "search"], [*GET, "--namespace=search", "--output=json"]),
        (["-n", "search", "status"], [*GET, "--namespace=search", "--output=json"]),
        (["-n", "shop", "status", "-n", "search"], [*GET, "--namespace=search", "--output=json"]),
        ([*CLUSTER, "status", "-A"], [*GET, "--all-namespaces", "--output=json", *FLAGS]),
        (["status", "-A", *CLUSTER], [*GET, "--all-namespaces", "--output=json", *FLAGS]),
    ],
)
def test_the_table_is_asked_of_the_users_kubectl(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str], arguments: list[str], call: list[str]
):
    kubectl.has({"items": [body(rollout())]})
    assert run(arguments) == 0
    assert kubectl.calls == [call]
    assert capsys.readouterr().out.splitlines()[1].split() == (
        ["search"] * ("-A" in arguments) + ["products", "Traffic", "5", "%", "2/4", "123", CANARY]
    )


def test_one_status_as_json(kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]):
    kubectl.has(body(rollout()))
    assert run(["status", "products", "--json"]) == 0
    assert kubectl.calls == [[*GET, "products", "--output=json"]]
    assert json.loads(capsys.readouterr().out)["rollout"]["percent"] == 5


def test_no_reranker_is_no_failure(kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]):
    kubectl.has({"items": []})
    assert run(["status"]) == 0
    assert "no Rerankers in this namespace" in capsys.readouterr().err


PROMOTED = body(rollout("Promoted"), currentRevision=CANARY)
ROLLED_BACK = body(rollout("RolledBack"), rejectedRevision=rejection())


@pytest.mark.parametrize(("content", "code"), [(PROMOTED, 0), (ROLLED_BACK, 1), (body(rollout()), 3)])
@pytest.mark.parametrize("json_asked", [False, True])
def test_the_exit_statuses_of_a_watch(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str], content: Any, code: int, json_asked: bool
):
    kubectl.has(content)
    assert run(["status", "products", "--watch", "--timeout", "0s", *["--json"] * json_asked]) == code
    out = capsys.readouterr().out
    if json_asked:
        assert json.loads(out)["rollout"]["revision"] == CANARY
    else:
        assert CANARY in out.splitlines()[0]
        assert "What you can do" in out


@pytest.mark.parametrize(
    ("arguments", "content", "changes"),
    [
        (
            ["promote", "products", "--force"],
            body(rollout("Traffic", LOADED, UNSURE)),
            [f"rerank.dev/promote={EARLIER}", "rerank.dev/abort-"],
        ),
        (["abort", "products"], body(rollout()), [f"rerank.dev/abort={EARLIER}", "rerank.dev/promote-"]),
        (["pause", "products"], body(rollout()), ["rerank.dev/rollout-paused=true"]),
        (
            ["resume", "products"],
            body(rollout(), annotations={names.ANNOTATION_ROLLOUT_PAUSED: "true"}),
            ["rerank.dev/rollout-paused-"],
        ),
        (
            ["retry", "products"],
            ROLLED_BACK,
            ["rerank.dev/retry=2026-11-22T03:00:01Z", "rerank.dev/abort-", "rerank.dev/promote-"],
        ),
    ],
)
def test_a_change_is_one_annotate_call_in_the_rerankers_own_namespace(
    kubectl: FakeKubectl, arguments: list[str], content: Any, changes: list[str]
):
    kubectl.has(content)
    assert run([*arguments, *CLUSTER]) == 0
    annotate = ["annotate", "rerankers.rerank.dev", "products", "--namespace=search", "--overwrite", *changes, *FLAGS]
    assert kubectl.calls == [[*GET, "products", "--output=json", *FLAGS], annotate]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["promote", "products"], "--force"),
        (["abort", "products", "--revision", STABLE], "not bcdfghjklm"),
        (["retry", "products"], "no rejected revision"),
    ],
)
def test_what_is_refused_writes_nothing_and_ends_with_2(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
):
    kubectl.has(body(rollout("Traffic", LOADED, UNSURE)))
    assert run(arguments) == 2
    assert [call[0] for call in kubectl.calls] == ["get"]
    streams = capsys.readouterr()
    assert sentence in streams.err
    assert streams.out == ""


def test_resume_of_what_the_spec_holds_too_removes_the_annotation_and_ends_with_2(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]
):
    kubectl.has(body(rollout(), spec={"paused": True}, annotations={names.ANNOTATION_ROLLOUT_PAUSED: "true"}))
    assert run(["resume", "products"]) == 2
    assert kubectl.calls[1][-1] == "rerank.dev/rollout-paused-"
    assert "spec.rollout.paused is true" in capsys.readouterr().err


def test_history_asks_for_the_revisions_by_their_label(kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]):
    kubectl.has(body(), [kept(STABLE, 1), kept(CANARY, 2)])
    assert run(["history", "products"]) == 0
    selector = ["--selector=rerank.dev/reranker=products", "--namespace=search"]
    assert kubectl.calls[1] == ["get", "controllerrevisions.apps", *selector, "--output=json"]
    assert run(["history", "products", "--revision", CANARY]) == 0
    assert run(["history", "products", "--json"]) == 0
    assert f"hf://a/{CANARY}" in capsys.readouterr().out
    assert run(["history", "products", "--revision", "none"]) == 2
    assert f"there are {CANARY}, {STABLE}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        ('error: the server doesn\'t have a resource type "rerankers"\n', "this cluster knows no Rerankers"),
        (
            'Error from server (NotFound): rerankers.rerank.dev "products" not found\n',
            'rerankers.rerank.dev "products" not found: `kubectl rerank status -A` lists',
        ),
        (
            'Error from server (Forbidden): rerankers.rerank.dev is forbidden: User "me" cannot get resource\n',
            'User "me" cannot get resource: the ClusterRole view allows it',
        ),
        (
            'E1122 03:04:36.564290   31481 memcache.go:265] "Unhandled"\nThe connection to the server was refused\n',
            "kubectl rerank: The connection to the server was refused\n",
        ),
        ("", "did not say why"),
    ],
)
def test_a_failure_is_one_line_on_stderr(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str], stderr: str, said: str
):
    kubectl.fails(stderr)
    assert run(["status", "products"]) == 2
    streams = capsys.readouterr()
    assert said in streams.err
    assert streams.err.count("\n") == 1
    assert streams.out == ""


FORGED = "\x1b]0;owned\x07\x9b2J\u202eabc"


@pytest.mark.parametrize(
    "arguments",
    [["status"], ["status", "products"], ["history", "products"], ["history", "products", "--revision", CANARY]],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_nothing_that_others_have_written_moves_a_cursor(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str], arguments: list[str], as_json: bool
):
    check = RolloutCheck(FORGED, "hold", FORGED)
    one = body(rollout("Traffic", check, message=FORGED, revision=FORGED), currentRevision=FORGED)
    ended = msgspec.json.encode(rollout("RolledBack", check, message=FORGED)).decode()
    kubectl.has(one if len(arguments) > 1 else {"items": [one]}, [kept(CANARY, 2, ended) | {"data": {"text": FORGED}}])
    if as_json and "--revision" not in arguments:
        arguments = [*arguments, "--json"]
    assert run(arguments) == 0
    shown = capsys.readouterr().out
    assert "owned" in shown
    assert all(letter.isprintable() for letter in shown.replace("\n", ""))
    if arguments[-1] == "--json":
        assert repr(FORGED) in repr(json.loads(shown)), "and is what it was"


def test_nothing_that_a_server_says_of_a_failure_moves_a_cursor(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str]
):
    kubectl.fails(f"Error from server: admission webhook denied: {FORGED}\n")
    assert run(["pause", "products"]) == 2
    said = capsys.readouterr().err
    assert "denied:  ]0;owned  2J abc\n" in said
    assert all(letter.isprintable() for letter in said.replace("\n", ""))


def test_a_missing_kubectl_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run(["status"]) == 2
    assert "kubectl is not on PATH" in capsys.readouterr().err


def test_a_kubectl_that_hangs_is_not_waited_for_for_ever(kubectl: FakeKubectl):
    (kubectl.folder / "kubectl").write_text("#!/bin/sh\nexec sleep 60\n")
    with pytest.raises(Failed, match=r"did not answer within 0\.2 s") as failed:
        Kubectl(seconds=0.2).reranker("products")
    assert failed.value.passing


@pytest.mark.parametrize("content", ["[", '{"metadata": {"name": "products"}}'])
def test_an_answer_that_is_no_reranker_is_told(kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str], content: str):
    (kubectl.folder / "rerankers").write_text(content)
    assert run(["status", "products"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["promote"],
        ["status", "--watch"],
        ["status", "products", "-A"],
        ["status", "-A", "-n", "search"],
        ["status", "products", "--watch", "--timeout", "soon"],
        ["calibrate"],
        ["calibrate", "products", "--force"],
        ["tune", "products", "--seconds", "nan"],
        ["tune", "products", "--seconds", "5"],
        ["samples", "products", "--since", "yesterday"],
        ["samples", "products", "--since", "9" * 400 + "h"],
        ["tune", "products", "--wait", "9" * 400 + "h"],
    ],
)
def test_bad_input_ends_with_2_and_asks_nobody(
    kubectl: FakeKubectl, capsys: pytest.CaptureFixture[str], arguments: list[str]
):
    with pytest.raises(SystemExit) as ended:
        run(arguments)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err
    assert kubectl.calls == []


@pytest.mark.parametrize(
    "verb",
    [
        [],
        ["status"],
        ["promote"],
        ["abort"],
        ["pause"],
        ["resume"],
        ["retry"],
        ["history"],
        ["calibrate"],
        ["tune"],
        ["samples"],
    ],
)
def test_help_fits_a_terminal_of_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: list[str]
):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        run([*verb, "--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "usage: kubectl rerank" in out
    assert max(map(len, out.splitlines())) <= 80
