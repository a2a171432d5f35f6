"""What a scenario may say, and what is said about one that cannot be used."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from rerank_operator.rollout.simulate.scenario import (
    GOLDEN_CORRELATION,
    Arm,
    BadInput,
    Bursts,
    LogNormal,
    Quality,
    Samples,
    read_scenario,
)

STABLE = {"error_rate": 0.001, "latency": {"p50_seconds": 0.05, "p95_seconds": 0.12}}
LEAST = {"requests_per_second": 5, "horizon_seconds": 600, "stable": STABLE, "canary": STABLE}
ARM = Arm(0.001, LogNormal(0.05, 0.12), None)


def write(folder: Path, body: Any) -> Path:
    path = folder / "scenario.yaml"
    path.write_text(body if isinstance(body, str) else yaml.safe_dump(body))
    return path


def test_what_is_not_stated_has_defaults(tmp_path: Path):
    found = read_scenario(write(tmp_path, LEAST))
    assert (found.requests_per_second, found.horizon, found.runs, found.seed) == (5, 600, 200, 0)
    assert (found.weights, found.correlation, found.bursts) == ((1, 5, 25, 50, 100), 0, None)
    assert (found.golden_queries, found.golden_correlation) == (0, GOLDEN_CORRELATION)
    assert (found.stable, found.canary) == (ARM, ARM)


def test_everything_can_be_stated(tmp_path: Path):
    found = read_scenario(
        write(
            tmp_path,
            """
            requests_per_second: 0.2
            horizon_seconds: 3600
            runs: 7
            seed: 3
            weights: [0.5, 10]
            correlation: 0.9
            bursts: {factor: 4, on_seconds: 10, off_seconds: 50}
            golden_queries: 100
            golden_correlation: 0.5
            stable: {error_rate: 1e-3, latency: {p50_seconds: 0.05, p95_seconds: 0.12}, ndcg: 0.72, ndcg_sd: 0.2}
            canary: {error_rate: 0.01, latency: {p50_seconds: 0.06, p95_seconds: 0.2}, ndcg: 0.7, ndcg_sd: 0.25}
            """,
        )
    )
    assert (found.requests_per_second, found.runs, found.seed, found.weights) == (0.2, 7, 3, (0.5, 10))
    assert (found.correlation, found.bursts) == (0.9, Bursts(4, 10, 50))
    assert (found.golden_queries, found.golden_correlation) == (100, 0.5)
    assert found.stable == Arm(0.001, LogNormal(0.05, 0.12), Quality(0.72, 0.2))
    assert found.canary == Arm(0.01, LogNormal(0.06, 0.2), Quality(0.7, 0.25))


@pytest.mark.parametrize(
    ("shared", "arm"),
    [
        ({"golden_queries": 40}, {"ndcg": 0.7, "ndcg_sd": 0.2}),
        ({}, {"ndcg": 0.7, "ndcg_sd": 0.2, "golden_queries": 40}),
        ({}, {"ndcg": {"mean": 0.7, "ndcg_sd": 0.2, "golden_queries": 40}}),
        ({"golden_queries": 40}, {"ndcg": {"mean": 0.7}, "ndcg_sd": 0.2, "golden_queries": 40}),
        ({"golden_queries": 40, "ndcg_sd": 0.2}, {"ndcg": 0.7}),
        ({"golden_queries": 40, "ndcg_sd": 0.3}, {"ndcg": {"ndcg": 0.7, "sd": 0.2}}),
    ],
)
def test_the_golden_set_may_stand_at_the_top_or_in_the_arms(tmp_path: Path, shared: dict, arm: dict):
    found = read_scenario(write(tmp_path, LEAST | shared | {"stable": STABLE | arm, "canary": STABLE | arm}))
    assert (found.golden_queries, found.stable.quality, found.canary.quality) == (
        40,
        Quality(0.7, 0.2),
        Quality(0.7, 0.2),
    )


def test_samples_are_beside_the_scenario_or_where_the_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "here" / "a.txt").write_text("# recorded\n0.5\n0.25\n\n1e-1\n")
    (tmp_path / "there" / "a.txt").write_text("7\n")
    (tmp_path / "there" / "b.txt").write_text("8\n")
    monkeypatch.chdir(tmp_path / "there")
    stable, canary = ({"error_rate": 0, "latency": {"samples": name}} for name in ("a.txt", "b.txt"))
    found = read_scenario(write(tmp_path / "here", LEAST | {"stable": stable, "canary": canary}))
    assert found.stable.latency == Samples("a.txt", (0.5, 0.25, 0.1))
    assert found.canary.latency == Samples("b.txt", (8.0,))
    assert found.correlation is None


def test_samples_with_a_correlation_keep_the_stated_one(tmp_path: Path):
    (tmp_path / "a.txt").write_text("1\n")
    arm = {"error_rate": 0, "latency": {"samples": "a.txt"}}
    assert read_scenario(write(tmp_path, LEAST | {"canary": arm, "correlation": 0})).correlation == 0


def test_what_is_left_empty_is_not_stated(tmp_path: Path):
    arm = STABLE | {"ndcg": None, "ndcg_sd": None, "golden_queries": None}
    optional = ("runs", "seed", "weights", "correlation", "bursts", "golden_queries", "golden_correlation")
    stated = LEAST | dict.fromkeys(optional) | {"stable": arm}
    assert read_scenario(write(tmp_path, stated)) == read_scenario(write(tmp_path, LEAST))


@pytest.mark.parametrize("nothing", [{"bursts": {}}, {"bursts": False}, {"golden_queries": 0}, {"ndcg_sd": 0.2}])
def test_none_may_be_said_in_other_ways(tmp_path: Path, nothing: dict[str, Any]):
    assert read_scenario(write(tmp_path, LEAST | nothing)) == read_scenario(write(tmp_path, LEAST))


def test_a_whole_number_may_have_a_point(tmp_path: Path):
    found = read_scenario(write(tmp_path, LEAST | {"runs": 300.0, "seed": 7.0}))
    assert (found.runs, found.seed) == (300, 7)


def test_a_scenario_may_have_a_name(tmp_path: Path):
    named = LEAST | {"name": "healthy, 5 requests/s", "description": ["as good", "as stable"]}
    assert read_scenario(write(tmp_path, named)) == read_scenario(write(tmp_path, LEAST))


def with_arm(name: str = "canary", **fields: Any) -> dict[str, Any]:
    return LEAST | {name: {key: value for key, value in (STABLE | fields).items() if value is not None}}


QUALITY: dict[str, Any] = {"ndcg": 0.7, "ndcg_sd": 0.2, "golden_queries": 200}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("{", "is no YAML"),
        ("[" * 5000, "is no YAML"),
        ("seed: 1\nseed: 2", "seed: stands there twice, the second time in line 2: leave one out"),
        ("stable: {error_rate: 0.1, error_rate: 0.2}", "error_rate: stands there twice"),
        ("seed: 2001-13-45", "is no YAML that can be used (month must be in 1..12)"),
        (f"seed: {'9' * 5000}", "is no YAML that can be used (Exceeds the limit"),
        ("", "the scenario: None is not a mapping"),
        ("[1]", "the scenario: [1] is not a mapping"),
        (LEAST | {"horizon": 3}, "horizon: there is no such field; the nearest is horizon_seconds"),
        (LEAST | {"weigths": [1]}, "weigths: there is no such field; the nearest is weights"),
        (LEAST | {1: 2}, "1: there is no such field"),
        (with_arm(eror_rate=0.1), "canary.eror_rate: there is no such field; the nearest is error_rate"),
        (with_arm(latency={"p99_seconds": 1}), "canary.latency.p99_seconds: there is no such field"),
        (LEAST | {"bursts": {"factor": 2, "seconds": 1}}, "bursts.seconds: there is no such field"),
        ({"stable": STABLE, "canary": STABLE, "horizon_seconds": 1}, "requests_per_second: is missing"),
        ({"stable": STABLE, "canary": STABLE, "requests_per_second": 1}, "horizon_seconds: is missing"),
        ({"stable": STABLE, "requests_per_second": 1, "horizon_seconds": 1}, "canary: is missing"),
        (with_arm("stable", error_rate=None), "stable.error_rate: is missing"),
        (with_arm(latency=None), "canary.latency: is missing"),
        (with_arm(latency={"p50_seconds": 1}), "canary.latency.p95_seconds: is missing"),
        (LEAST | {"bursts": {"factor": 2, "on_seconds": 1}}, "bursts.off_seconds: is missing"),
        (LEAST | {"stable": 3}, "stable: 3 is not a mapping"),
        (LEAST | {"requests_per_second": 0}, "requests_per_second: 0 must be a number above 0"),
        (LEAST | {"requests_per_second": "many"}, "requests_per_second: 'many' must be a number above 0"),
        (LEAST | {"requests_per_second": True}, "requests_per_second: True must be a number above 0"),
        (LEAST | {"horizon_seconds": float("inf")}, "horizon_seconds: inf must be a number above 0"),
        (LEAST | {"horizon_seconds": float("nan")}, "horizon_seconds: nan must be a number above 0"),
        (LEAST | {"requests_per_second": 10**400}, "requests_per_second: 1000"),
        (LEAST | {"requests_per_second": 1e9}, "requests_per_second, horizon_seconds: a run would have up to 6e+11"),
        (LEAST | {"runs": 0}, "runs: 0 must be a whole number from 1"),
        (LEAST | {"runs": 2.5}, "runs: 2.5 must be a whole number from 1"),
        (LEAST | {"runs": True}, "runs: True must be a whole number from 1"),
        (LEAST | {"seed": -1}, "seed: -1 must be a whole number from 0"),
        (LEAST | {"correlation": 1.5}, "correlation: 1.5 must be a number from 0 to 1"),
        (LEAST | {"requests_per_second": None}, "requests_per_second: is missing"),
        (LEAST | {"golden_correlation": -0.1}, "golden_correlation: -0.1 must be a number from 0 to 1"),
        (LEAST | {"bursts": {"factor": 0, "on_seconds": 1, "off_seconds": 1}}, "bursts.factor: 0 must be a number"),
        (LEAST | {"weights": []}, "weights: [] must be a list of percents"),
        (LEAST | {"weights": "1, 5"}, "weights: '1, 5' must be a list of percents"),
        (LEAST | {"weights": [5, 1]}, "weights: [5.0, 1.0] must ascend"),
        (LEAST | {"weights": [5, 5]}, "weights: [5.0, 5.0] must ascend"),
        (LEAST | {"weights": [0, 5]}, "weights: [0.0, 5.0] must ascend from above 0"),
        (LEAST | {"weights": [100]}, "weights: [100.0] must ascend from above 0, and begin below 100"),
        (LEAST | {"weights": [5, 101]}, "weights[1]: 101 must be a number from 0 to 100"),
        (with_arm(error_rate=2), "canary.error_rate: 2 must be a number from 0 to 1"),
        (with_arm(latency={"p50_seconds": 0, "p95_seconds": 1}), "canary.latency.p50_seconds: 0 must be"),
        (with_arm(latency={"p50_seconds": 2, "p95_seconds": 1}), "canary.latency.p95_seconds: 1 is below p50_seconds"),
        (with_arm(latency={"p50_seconds": 2, "samples": "a"}), "canary.latency: has samples and quantiles"),
        (with_arm(latency={"samples": 3}), "canary.latency.samples: 3 must be the path of a file"),
        (with_arm(latency={"samples": "none.txt"}), "canary.latency.samples: none.txt cannot be read (No such file"),
        (with_arm(latency={"samples": "a" * 400}), f"canary.latency.samples: {'a' * 400} cannot be read (File name"),
        (with_arm(latency={"samples": "empty.txt"}), "canary.latency.samples: empty.txt has no numbers"),
        (with_arm(latency={"samples": "words.txt"}), "canary.latency.samples: words.txt, line 2: 'soon' must be"),
        (with_arm(latency={"samples": "minus.txt"}), "canary.latency.samples: minus.txt, line 1: '-1' must be"),
        (with_arm(latency={"samples": "bytes.txt"}), "canary.latency.samples: bytes.txt is no text"),
        (with_arm(**QUALITY), "stable.ndcg: is missing: state it for both arms"),
        (with_arm("stable", **QUALITY), "canary.ndcg: is missing: state it for both arms"),
        (with_arm(ndcg_sd=0.2), "canary.ndcg: is missing, while canary.ndcg_sd is there"),
        (with_arm(ndcg=0.7), "canary.ndcg_sd: is missing"),
        (with_arm(ndcg=1.2, ndcg_sd=0.2), "canary.ndcg: 1.2 must be a number from 0 to 1"),
        (with_arm(ndcg={"ndcg_sd": 0.2}), "canary.ndcg.mean: is missing"),
        (with_arm(ndcg={"mean": 0.2, "std": 0.2}), "canary.ndcg.std: there is no such field; the nearest is sd"),
        (with_arm(ndcg={"mean": 0.7, "sd": 0.2}, ndcg_sd=0.3), "canary.ndcg_sd: stands twice, once as canary.ndcg.sd"),
        (with_arm(ndcg={"mean": 0.7, "ndcg": 0.7}), "canary.ndcg: stands twice, once as canary.ndcg.ndcg"),
        (with_arm(golden_queries=-1), "canary.golden_queries: -1 must be a whole number from 0"),
        (
            LEAST
            | {"golden_queries": 0}
            | {name: STABLE | {"ndcg": 0.7, "ndcg_sd": 0.2} for name in ("stable", "canary")},
            "golden_queries: is 0: state how many",
        ),
        (
            LEAST | {"stable": STABLE | QUALITY, "canary": STABLE | QUALITY | {"golden_queries": 100}},
            "stable.golden_queries is 200, canary.golden_queries is 100: both arms answer the same queries",
        ),
        (
            LEAST | {"golden_queries": 50, "stable": STABLE | QUALITY, "canary": STABLE | QUALITY},
            "stable.golden_queries is 200, canary.golden_queries is 200, golden_queries is 50",
        ),
        (
            LEAST | {name: STABLE | {"ndcg": 0.7, "ndcg_sd": 0.2} for name in ("stable", "canary")},
            "golden_queries: is missing",
        ),
    ],
)
def test_a_bad_scenario_is_refused_with_its_field(tmp_path: Path, body: Any, said: str):
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "words.txt").write_text("0.1\nsoon\n")
    (tmp_path / "minus.txt").write_text("-1\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    path = write(tmp_path, body)
    with pytest.raises(BadInput) as refused:
        read_scenario(path)
    assert str(refused.value).startswith(f"{path}: {said}")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path):
    with pytest.raises(BadInput, match=r"none\.yaml: cannot be read \(No such file"):
        read_scenario(tmp_path / "none.yaml")
    path = tmp_path / "scenario.yaml"
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(BadInput, match=r"scenario\.yaml: is no YAML"):
        read_scenario(path)
