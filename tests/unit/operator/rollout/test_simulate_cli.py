"""A scenario in, one JSON object out; and what is said about one that cannot be used."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from rerank_operator.rollout.simulate.cli import main

SCENARIO = """
requests_per_second: 2
horizon_seconds: 120
runs: 2
weights: [10, 50]
golden_queries: 50
stable: {error_rate: 0.001, latency: {p50_seconds: 0.05, p95_seconds: 0.12}, ndcg: 0.7, ndcg_sd: 0.1}
canary: {error_rate: 0.001, latency: {samples: recorded.txt}, ndcg: 0.7, ndcg_sd: 0.1}
"""
KEYS = {
    "judge",
    "runs",
    "rollback_rate",
    "promote_rate",
    "hold_rate",
    "canary_requests_to_rollback_p50",
    "canary_requests_to_rollback_p90",
    "seconds_to_decision_p50",
    "user_requests_on_canary_p50",
    "reasons",
    "settings",
    "warnings",
}


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "scenario.yaml"
    path.write_text(SCENARIO)
    (tmp_path / "recorded.txt").write_text("0.05\n0.07\n0.04\n")
    return path


@pytest.mark.parametrize("judge", ["ours", "flagger", "kayenta"])
def test_json_has_what_is_promised(scenario: Path, capsys: pytest.CaptureFixture, judge: str):
    assert main(["--scenario", str(scenario), "--judge", judge, "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    found = json.loads(printed.out)
    assert found.keys() == KEYS
    assert (found["judge"], found["runs"]) == (judge, 2)
    assert found["rollback_rate"] + found["promote_rate"] + found["hold_rate"] == pytest.approx(1)
    settings = found["settings"]
    assert (settings["requests_per_second"], settings["weights"], settings["golden_queries"]) == (2, [10, 50], 50)
    assert settings["stable"]["latency"] == {"p50_seconds": 0.05, "p95_seconds": 0.12}
    assert settings["canary"]["latency"] == {"samples": "recorded.txt", "recorded": 3}
    assert (settings["correlation"], settings["bursts"]) == (None, None)


def test_what_the_judge_cannot_tell_apart_is_warned_of(scenario: Path, capsys: pytest.CaptureFixture):
    scenario.write_text(SCENARIO + "correlation: 1\n")
    for judge, count in (("ours", 1), ("flagger", 0)):
        assert main(["--scenario", str(scenario), "--judge", judge, "--json"]) == 0
        printed = capsys.readouterr()
        warnings = json.loads(printed.out)["warnings"]
        assert len(warnings) == count
        assert all(warning.startswith("correlation: 1 is more than 0.9") for warning in warnings)
        assert printed.err.count("simulate: warning: correlation: 1 is more than 0.9") == count


def test_the_same_scenario_gives_the_same_figures(scenario: Path, capsys: pytest.CaptureFixture):
    printed = []
    for _ in range(2):
        main(["--scenario", str(scenario), "--json"])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_runs_and_seed_may_be_given_anew(scenario: Path, capsys: pytest.CaptureFixture):
    assert main(["--scenario", str(scenario), "--runs", "3", "--seed", "9", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["runs"], found["settings"]["runs"], found["settings"]["seed"]) == (3, 3, 9)


def test_the_table_is_for_people(scenario: Path, capsys: pytest.CaptureFixture):
    assert main(["--scenario", str(scenario)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "judge ours, 2 runs, seed 0"
    assert lines[2].startswith("rolled back ")


def test_a_bad_scenario_ends_with_2_and_its_field(scenario: Path, capsys: pytest.CaptureFixture):
    scenario.write_text(SCENARIO.replace("runs: 2", "run: 2"))
    assert main(["--scenario", str(scenario)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"simulate: {scenario}: run: there is no such field; the nearest is runs")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--judge", "theirs"], "argument --judge"),
        (["--runs", "0"], "argument --runs"),
        (["--runs", "1.5"], "argument --runs"),
        (["--seed", "-1"], "argument --seed"),
    ],
)
def test_bad_options_are_refused(scenario: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as ended:
        main(["--scenario", str(scenario), *arguments])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_the_module_runs(scenario: Path):
    command = [sys.executable, "-m", "rerank_operator.rollout.simulate", "--scenario", str(scenario), "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout)["judge"] == "ours"


def test_a_reader_that_has_had_enough_is_no_error(scenario: Path):
    command = f"{sys.executable} -m rerank_operator.rollout.simulate --scenario {scenario} --json"
    ended = subprocess.run(["sh", "-c", f"{command} | true"], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def _heed_interrupts() -> None:
    """A shell that runs the tests in the background has them, and all that they start, ignore an interrupt."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_who_watches_sees_it_begin_and_may_stop_it(scenario: Path):
    """Ctrl-C goes to every process of the terminal's group: no traceback of any of them, and the line is taken away."""
    watcher, terminal = os.openpty()
    command = [
        sys.executable,
        "-m",
        "rerank_operator.rollout.simulate",
        "--scenario",
        str(scenario),
        "--runs",
        "4000",
    ]
    started = subprocess.Popen(
        command, stdout=terminal, stderr=terminal, start_new_session=True, preexec_fn=_heed_interrupts
    )
    os.close(terminal)
    said = b""
    try:
        while b"\r9 of" not in said:  # The workers are there.
            said += os.read(watcher, 1024)
        os.killpg(started.pid, signal.SIGINT)
        assert started.wait(200) == 130
    finally:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
    with suppress(OSError):  # A terminal's end.
        while news := os.read(watcher, 1024):
            said += news
    os.close(watcher)
    assert said.startswith(b"\r0 of 4000 runs")
    assert b"Traceback" not in said, said.decode()
    assert said.endswith(b" of 4000 runs\r\x1b[K"), said.decode()


def test_without_numpy_it_says_what_to_install(scenario: Path):
    """The operator's image has none; a None in sys.modules is what an import of a missing module meets."""
    program = (
        "import sys; sys.modules['numpy'] = None\n"
        "from rerank_operator.rollout.simulate.cli import main\n"
        f"sys.exit(main(['--scenario', {str(scenario)!r}]))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert ended.stderr == "simulate: needs numpy, which is not installed: pip install numpy\n"


def test_a_threshold_of_ours_can_be_set(scenario: Path, capsys: pytest.CaptureFixture):
    def promoted(*options: str) -> float:
        assert main(["--scenario", str(scenario), "--json", *options]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["settings"]["judge"]["stepRequests"] == (1 if options else 20)
        return found["promote_rate"]

    easy = [
        f"{name}={value}"
        for name, value in (
            ("stepRequests", 1),
            ("stepSeconds", 0),
            ("errorsMargin", 0.5),
            ("latencyMargin", 1),
            ("ndcgMargin", 1),
        )
    ]
    assert promoted() == 0
    assert promoted(*(word for one in easy for word in ("--set", one)), "--set", "latencyQuantile=0.5") > 0


@pytest.mark.parametrize(
    ("given", "judge", "told"),
    [
        ("stepRequests", "ours", "--set: 'stepRequests' must be NAME=VALUE"),
        ("steps=3", "ours", "contains unknown field `steps`; there are errorProbability, "),
        ("errorProbability=0", "ours", "`float` >= 1e-06"),
        ("errorProbability=soon", "ours", "`$.errorProbability`"),
        ("latencyQuantile=0.9", "ours", "latencyQuantile: 0.9 must be one of 0.5, 0.95, 0.99"),
        ("errorsMargin=0.0001", "ours", "errorsMargin: 0.0001 must be more than errorsTolerated, 0.0005"),
        ("stepRequests=3", "flagger", "--set: flagger is played with its published defaults"),
    ],
)
def test_a_threshold_that_cannot_be_set_is_named(
    scenario: Path, capsys: pytest.CaptureFixture, given: str, judge: str, told: str
):
    assert main(["--scenario", str(scenario), "--judge", judge, "--set", given]) == 2
    assert told in capsys.readouterr().err
