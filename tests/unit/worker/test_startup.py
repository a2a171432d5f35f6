"""Before serving: flags and environment, device and precision, the sentence and exit code of a failure, log lines."""

import json
import logging
import socket
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from rerank_api import names
from rerank_api.worker_config import ModelSource, WorkerConfig
from rerank_worker import cli, logs
from rerank_worker.engine import device
from rerank_worker.failures import ConfigurationFailure, EnvironmentFailure, StartupFailure, report


def config(*arguments: str, **environment: str) -> WorkerConfig:
    read = cli.read_config(cli.parser().parse_args(["serve", *arguments]), environment)
    assert read is not None
    return read


def test_flags_say_what_to_serve() -> None:
    assert config("--model", "/m", "--max-length", "128", "--precision", "float16") == WorkerConfig(
        model=ModelSource(path="/m"), max_length=128, precision="float16"
    )


def test_the_operator_s_variable_says_what_to_serve() -> None:
    given = '{"model": {"path": "/m"}, "maxDelaySeconds": 0.01, "reranker": "products"}'
    assert config(RERANK_WORKER_CONFIG=given) == WorkerConfig(
        model=ModelSource(path="/m"), max_delay_seconds=0.01, reranker="products"
    )


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ([], {}, "name a model with --model"),
        (["--model", "/m"], {"RERANK_WORKER_CONFIG": "{}"}, "both"),
        (["--max-length", "3"], {"RERANK_WORKER_CONFIG": "{}"}, "both"),
        ([], {"RERANK_WORKER_CONFIG": "{"}, "not a configuration"),
        ([], {"RERANK_WORKER_CONFIG": '{"model": {"path": "/m"}, "new": 1}'}, "unknown field `new`"),
        ([], {"RERANK_WORKER_CONFIG": '{"model": {"path": 3}}'}, r"\$\.model\.path"),
        ([], {"RERANK_WORKER_CONFIG": '{"model": {"path": "/m"}, "device": "tpu"}'}, "write one of auto, cuda, cpu"),
        (["--model", "/m", "--temperature", "0"], {}, r"spec\.model\.temperature \(--temperature\) is 0.*more than 0$"),
        (["--model", "/m", "--temperature", "inf"], {}, r"spec\.model\.temperature"),
        (["--model", "/m", "--max-length", "0"], {}, r"spec\.model\.maxLength \(--max-length\) is 0.*at least 1"),
        (["--model", "/m", "--max-delay-seconds", "-1"], {}, r"--max-delay-seconds\) is -1.0: it must be 0 or more"),
        (["--model", "/m", "--max-batch-tokens", "0"], {}, r"spec\.batching\.maxBatchTokens"),
        (["--model", "/m", "--quality-floor", "nan"], {}, r"spec\.runtime\.qualityFloor"),
        (["--model", "/m", "--revision", "main"], {}, "hf://"),
    ],
)
def test_contradictions_are_refused(arguments: list[str], environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationFailure, match=message):
        config(*arguments, **environment)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "65536"], "--port is 65536"),
        (["--port", "-1"], "--port is -1"),
        (["--threads", "0"], "--threads is 0"),
        (["--lame-duck-seconds", "nan"], "--lame-duck-seconds is nan"),
        (["--lame-duck-seconds", "-1"], "--lame-duck-seconds is -1"),
        (["--stall-seconds", "inf"], "--stall-seconds is inf"),
        (["--stall-seconds", "0"], "--stall-seconds is 0.0: it must be at least 2"),
    ],
)
def test_options_out_of_range_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigurationFailure, match=message):
        cli.read_options(cli.parser().parse_args(["serve", "--model", "/m", *arguments]), {})


def test_a_worker_that_stands_by_knows_its_token_in_one_way() -> None:
    standby = cli.parser().parse_args(["serve", "--standby"])
    with pytest.raises(ConfigurationFailure, match=r"--admin-token-file.*RERANK_ADMIN_TOKEN_SHA256"):
        cli.read_options(standby, {"RERANK_ADMIN_TOKEN_SHA256": ""})
    assert cli.read_options(standby, {"RERANK_ADMIN_TOKEN_SHA256": "ab"}).admin_token_sha256 == "ab"
    assert cli.read_options(standby, {"RERANK_ADMIN_TOKEN_FILE": "/t"}).admin_token_file == "/t"


@pytest.mark.parametrize(
    "arguments", [[], ["serve", "--threads", "two"], ["score", "--model", "/m"], ["tune", "--nice", "ten"]]
)
def test_a_mistaken_command_line_ends_with_64(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments, {})
    assert ended.value.code == 64
    assert "usage: rerank-worker" in capsys.readouterr().err


def test_what_nobody_foresaw_has_a_traceback_and_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("rerank_worker.commands.tune.config_of", lambda *_: {}["odd"])
    log = tmp_path / "termination-log"
    assert cli.main(["tune", "--model", "/m"], {names.ENV_TERMINATION_LOG: str(log)}) == 71
    # In a pod it is the server's, which goes on.
    assert not log.exists()
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.splitlines()[-1] == "rerank-worker tune failed: KeyError: 'odd'"


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"], ["score", "--help"], ["tune", "--help"]])
def test_help_needs_nothing_and_has_examples(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "--model" in said
    assert "examples:\n  rerank-worker " in said


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"rerank-worker {version('rerank-worker')}\n"


@pytest.mark.parametrize(
    ("asked", "present", "error", "expected", "warned"),
    [
        ("cpu", True, None, "cpu", False),
        ("auto", True, None, "cuda", False),
        ("cuda", True, None, "cuda", False),
        ("auto", False, None, "cpu", True),
        ("auto", True, "driver too old", "cpu", True),
    ],
)
def test_device(asked: Any, present: bool, error: str | None, expected: str, warned: bool) -> None:
    chosen, why = device.choose_device(asked, present, error)
    assert (chosen, why is not None) == (expected, warned)


@pytest.mark.parametrize(
    ("present", "kind", "message"),
    [
        (False, ConfigurationFailure, r"spec\.runtime\.device is cuda.*nvidia\.com/gpu: 1"),
        (True, EnvironmentFailure, r"spec\.runtime\.device is cuda, but CUDA does not start.*driver too old"),
    ],
)
def test_cuda_never_becomes_the_cpu(present: bool, kind: type[StartupFailure], message: str) -> None:
    with pytest.raises(kind, match=message):
        device.choose_device("cuda", present, "driver too old")


@pytest.mark.parametrize(
    ("asked", "on", "expected"),
    [
        ("auto", "cuda", "float16"),
        ("auto", "cpu", "float32"),
        ("bfloat16", "cpu", "bfloat16"),
        ("float32", "cuda", "float32"),
    ],
)
def test_precision(asked: Any, on: Any, expected: str) -> None:
    assert device.choose_precision(asked, on) == expected


@pytest.mark.parametrize(
    ("cpu_max", "allowed", "expected"),
    [(None, 8, 8), ("max 100000", 8, 8), ("150000 100000", 8, 2), ("50000 100000", 8, 1), ("1600000 100000\n", 8, 8)],
)
def test_cores(cpu_max: str | None, allowed: int, expected: int) -> None:
    assert device.cores(cpu_max, allowed) == expected


@pytest.mark.parametrize(("told", "expected"), [("1", 1), ("64", 8), ("0", 8), ("", 8), ("two", 8), (None, 8)], ids=str)
def test_omp_num_threads_can_only_lower_the_cores(told: str | None, expected: int) -> None:
    assert device.cores("max 100000", 8, told) == expected


def test_a_failure_is_one_short_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failure = ConfigurationFailure("spec.model.uri: it\nfails " + "x" * 2000)
    report(failure, str(tmp_path / "log"))
    sentence = (tmp_path / "log").read_text()
    assert sentence.startswith("spec.model.uri: it fails x")
    assert len(sentence) == 1000
    assert capsys.readouterr().err == sentence + "\n"


def test_an_unwritable_termination_log_does_not_hide_the_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    report(EnvironmentFailure("out of memory"), "/nowhere/log")
    assert capsys.readouterr().err.splitlines()[-1] == "out of memory"


def test_a_missing_model_ends_with_its_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environment = {names.ENV_TERMINATION_LOG: str(tmp_path / "log")}
    code = cli.main(["serve", "--model", str(tmp_path / "none"), "--port", "0"], environment)
    assert code == 64
    sentence = (tmp_path / "log").read_text()
    assert sentence.startswith("spec.model.uri: the folder")
    assert capsys.readouterr().err.splitlines()[-1] == sentence


def test_a_taken_port_is_the_environment_s_fault(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main(["serve", "--model", str(tmp_path), "--port", str(port)], {}) == 71


def test_nothing_that_a_model_s_files_say_moves_a_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It comes into the Reranker's conditions, too."""
    where = tmp_path / "log"
    report(ConfigurationFailure("no tensor a\x1b]0;owned\x07\x9b2J\u202e\nb: copy the file again"), str(where))
    said = where.read_text()
    assert said == "no tensor a ]0;owned  2J  b: copy the file again"
    assert capsys.readouterr().err == said + "\n"


@pytest.mark.parametrize("style", ["json", "text"])
def test_nothing_that_a_client_sends_begins_a_line_or_moves_a_cursor(
    style: logs.LogFormat, capsys: pytest.CaptureFixture[str]
) -> None:
    """A path is a client's own words, decoded."""
    logs.set_up(style)
    path = "/v1/models/\n2026-11-22T00:00:00.000Z INFO forged\x1b[2J\x9b2J\u202e\u2028"
    logging.getLogger("rerank_worker.test").info("request refused", extra={"fields": {"path": path, "status": 404}})
    said = capsys.readouterr().err
    assert said.endswith("\n")
    assert all(letter.isprintable() for letter in said[:-1])
    assert "forged" in said


@pytest.mark.parametrize("style", ["json", "text"])
def test_log_lines_are_one_line_each(style: logs.LogFormat, capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up(style)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("rerank_worker.test").exception("it failed", extra={"fields": {"pairs": 3}})
    (line,) = capsys.readouterr().err.splitlines()
    assert "it failed" in line
    assert "ValueError" in line
    if style == "json":
        assert json.loads(line)["pairs"] == 3
