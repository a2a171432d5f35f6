"""Files in, one JSON object out; and what is said about files that cannot be used."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rerank_operator.scaling.simulate import runs
from rerank_operator.scaling.simulate.cli import main
from rerank_operator.scaling.simulate.fleet import Plant
from rerank_operator.scaling.simulate.inputs import BadInput, Limits, read_manifest, read_trace
from rerank_operator.scaling.simulate.report import quantile
from unit.operator.scaling.simulated import manifest

MANIFEST = """
apiVersion: rerank.dev/v1alpha1
kind: Reranker
metadata: {name: products}
spec:
  model: {uri: "pvc://models/reranker"}
  requests: {timeout: 2m, queueLimit: 500}
  scaling: {maxReplicas: 4, warmPool: shared}
  slo: {latency: {threshold: 300ms, quantile: 0.9}}
"""
TRACE = "seconds,tokens,priority\n0.5,1000,normal\n0.25,500,high\n30,2000,low\n"
FIGURES = {
    "requests",
    "lost",
    "replica_seconds",
    "slo_miss_ratio",
    "wait_p50_seconds",
    "wait_p95_seconds",
    "wait_p99_seconds",
    "peak_replicas",
    "scale_events",
}


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "search.csv"
    path.write_text(TRACE)
    return path


@pytest.fixture
def reranker(tmp_path: Path) -> Path:
    path = tmp_path / "reranker.yaml"
    path.write_text(MANIFEST)
    return path


def test_a_trace_is_read_in_order_of_time(trace: Path):
    assert read_trace(trace) == [(0.25, 500, 0), (0.5, 1000, 1), (30.0, 2000, 2)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seconds,tokens,priority\n", []),
        ("\ufeffseconds,tokens,priority\r\n1,2,\r\n\r\n", [(1.0, 2, 1)]),
        ("priority,client,tokens,seconds\nlow,a,7,3e2\n", [(300.0, 7, 2)]),
        ("seconds,tokens,priority\n1,1000000000000,high", [(1.0, 10**12, 0)]),
    ],
)
def test_other_forms_of_a_trace(tmp_path: Path, text: str, expected: list):
    path = tmp_path / "trace.csv"
    path.write_text(text, encoding="utf-8")
    assert read_trace(path) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: no column seconds, tokens, priority"),
        (
            "0,100,normal\n",
            "line 1: no column seconds, tokens, priority: the first line must be seconds,tokens,priority",
        ),
        ("seconds,tokens\n1,1\n", "line 1: no column priority"),
        ("seconds,tokens,priority\n1,5,normal\nsoon,5,normal\n", "line 3: seconds: 'soon' must be a number from 0"),
        ("seconds,tokens,priority\n-1,5,normal\n", "line 2: seconds: '-1'"),
        ("seconds,tokens,priority\nnan,5,normal\n", "line 2: seconds: 'nan'"),
        ("seconds,tokens,priority\ninf,5,normal\n", "line 2: seconds: 'inf'"),
        ("seconds,tokens,priority\n1,2.5,normal\n", "line 2: tokens: '2.5' must be a whole number from 1"),
        ("seconds,tokens,priority\n1,0,normal\n", "line 2: tokens: '0'"),
        ("seconds,tokens,priority\n1,99999999999999999,normal\n", "line 2: tokens: '99999999999999999'"),
        ("seconds,tokens,priority\n1,1,urgent\n", "line 2: priority: 'urgent' must be one of high, normal, low"),
        ("seconds,tokens,priority\n1,1\n", "line 2: 2 columns are fewer than the header has"),
    ],
)
def test_a_bad_trace_is_refused_with_its_place(tmp_path: Path, text: str, said: str):
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(BadInput) as refused:
        read_trace(path)
    assert str(refused.value).startswith(f"{path}, {said}")


def test_seconds_since_the_begin_and_unix_times_in_one_trace_are_refused(tmp_path: Path):
    """Simulated second by second, the fifty years between them never ended."""
    path = tmp_path / "trace.csv"
    path.write_text("seconds,tokens,priority\n1,100,\n1700000000,100,\n")
    with pytest.raises(BadInput, match=r"from 1 to 1\.7e\+09.*use one of the two"):
        read_trace(path)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path):
    path = tmp_path / "trace.csv"
    path.write_bytes(b"seconds,tokens,priority\n\xff\xfe\x00")
    with pytest.raises(BadInput, match="is no CSV file in UTF-8"):
        read_trace(path)
    with pytest.raises(BadInput, match="cannot be read"):
        read_trace(tmp_path / "none.csv")


def test_a_manifest_is_read(reranker: Path):
    found = read_manifest(reranker)
    assert (found.name, found.limits) == ("products", Limits(queue=500, timeout=120.0))
    assert (found.policy.max_replicas, found.policy.latency_threshold) == (4, 0.3)


def test_a_manifest_that_states_no_limits_loses_nothing(tmp_path: Path):
    path = tmp_path / "reranker.yaml"
    path.write_text("kind: Reranker\nspec: {}\n---\nkind: ConfigMap\n")
    assert read_manifest(path).limits == Limits()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is neither YAML nor JSON"),
        ("", "holds 0 objects of kind Reranker"),
        ("kind: Deployment", "holds 0 objects of kind Reranker"),
        ("kind: Reranker\nspec: {}\n---\nkind: Reranker\nspec: {}", "holds 2 objects of kind Reranker"),
        ("kind: Reranker\nspec: 3", "spec: 3 is not a mapping"),
        ("kind: Reranker\nspec: {scaling: {maxReplica: 3}}", "spec.scaling.maxReplica: there is no such field"),
        ("kind: Reranker\nspec: {scaling: {idleTimeout: 5}}", "spec.scaling.idleTimeout: '5' is not a duration"),
        ("kind: Reranker\nspec: {requests: {timeout: soon}}", "spec.requests.timeout: 'soon' is not a duration"),
        ("kind: Reranker\nspec: {requests: {timeout: 0s}}", "spec.requests.timeout: '0s' must be more than 0s"),
        ("kind: Reranker\nspec: {requests: {queueLimit: many}}", "spec.requests.queueLimit: 'many' must be a whole"),
        ("kind: Reranker\nspec: {requests: {queueLimit: 0}}", "spec.requests.queueLimit: 0 must be a whole"),
        ("kind: Reranker\nspec: {requests: [1]}", "spec.requests: [1] is not a mapping"),
    ],
)
def test_a_bad_manifest_is_refused_with_its_field(
    tmp_path: Path, trace: Path, capsys: pytest.CaptureFixture, text: str, said: str
):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert main(["--trace", str(trace), "--reranker", str(path)]) == 2
    said_of_it = capsys.readouterr().err
    assert said_of_it.startswith(f"simulate: {path}: {said}")


@pytest.mark.parametrize("controller", ["ours", "kpa", "keda-hpa"])
def test_json_has_what_is_promised(trace: Path, reranker: Path, capsys: pytest.CaptureFixture, controller: str):
    arguments = ["--trace", str(trace), "--trace", str(trace), "--reranker", str(reranker), "--controller", controller]
    assert main([*arguments, "--warm-pods", "1", "--cold-start", "20", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["controller"] == controller
    assert found["total"].keys() >= FIGURES
    assert [one.keys() >= FIGURES for one in found["rerankers"]] == [True, True]
    assert [one["requests"] for one in (*found["rerankers"], found["total"])] == [3, 3, 6]
    assert found["total"]["lost"] == 0
    assert (found["warm_idle_seconds"] > 0) == (controller == "ours")
    assert ("swept" in found) == (controller != "ours")


def test_the_same_run_gives_the_same_figures(trace: Path, reranker: Path, capsys: pytest.CaptureFixture):
    printed = []
    for _ in range(2):
        main(["--trace", str(trace), "--reranker", str(reranker), "--json"])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_the_table_names_each_trace(trace: Path, reranker: Path, capsys: pytest.CaptureFixture):
    assert main(["--trace", str(trace), "--reranker", str(reranker), "--controller", "kpa", "--target", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("search ")
    assert lines[2].startswith("total ")
    assert "controller kpa, target 4 requests at once per replica" in lines[4]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--capacity", "0"],
        ["--capacity", "nan"],
        ["--cold-start", "-1"],
        ["--cold-start", "soon"],
        ["--warm-pods", "-1"],
        ["--warm-pods", "1.5"],
        ["--target", "0"],
        ["--controller", "hpa"],
    ],
)
def test_bad_options_are_refused(trace: Path, reranker: Path, arguments: list[str], capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as ended:
        main(["--trace", str(trace), "--reranker", str(reranker), *arguments])
    assert ended.value.code == 2
    assert f"argument {arguments[0]}" in capsys.readouterr().err


def test_as_many_manifests_as_traces_or_one(trace: Path, reranker: Path, capsys: pytest.CaptureFixture):
    arguments = ["--trace", str(trace)] * 3 + ["--reranker", str(reranker)] * 2
    assert main(arguments) == 2
    assert "2 manifests for 3 traces" in capsys.readouterr().err


def test_the_module_runs(trace: Path, reranker: Path):
    command = [
        sys.executable,
        "-m",
        "rerank_operator.scaling.simulate",
        "--trace",
        str(trace),
        "--reranker",
        str(reranker),
    ]
    ended = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout)["controller"] == "ours"


def test_a_reader_that_has_had_enough_is_no_error(trace: Path, reranker: Path):
    command = f"{sys.executable} -m rerank_operator.scaling.simulate --trace {trace} --reranker {reranker} --json"
    ended = subprocess.run(["sh", "-c", f"{command} | true"], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_best_target_is_the_cheapest_that_meets_the_objective_or_else_misses_least():
    case = runs.Case(["a"], [[]], [manifest()], Plant(1000.0, 1.0, 1.0))

    def swept(*runs: tuple[float, float]) -> list[dict]:
        return [{"total": {"cost_replica_seconds": cost, "slo_miss_ratio": misses}} for cost, misses in runs]

    assert runs.best(case, swept((100, 0.01), (80, 0.049), (60, 0.06))) == 1
    assert runs.best(case, swept((100, 0.50), (80, 0.505), (60, 0.7))) == 1


@pytest.mark.parametrize(("share", "value"), [(0.5, 2.0), (0.75, 3.0), (0.95, 4.0), (0.01, 1.0)])
def test_quantiles_are_values_that_were_seen(share: float, value: float):
    assert quantile([1.0, 2.0, 3.0, 4.0], share) == value
    assert quantile([], share) == 0.0
