"""tune: what is measured, what is recommended from it and why, and that an interrupted run keeps what it has."""

import json
import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rerank_api import names
from rerank_api.reranker import RerankerSpec
from rerank_api.worker_config import ModelSource, WorkerConfig
from rerank_worker import cli, memory
from rerank_worker.commands import advice, trials, tune_report
from rerank_worker.commands.trials import Contender, Measured, Trial, Way
from rerank_worker.engine import EngineOutOfMemory, Pair, capacity, select
from rerank_worker.loading.checkpoint import Checkpoint
from rerank_worker.loading.model import open_checkpoint

from .test_capacity import Machine


def contender(name: str = "torch-flat", precision: Any = "float32", **facts: Any) -> Contender:
    defaults: dict[str, Any] = {"load_seconds": 0.1, "difference": 0.0 if precision == "float32" else 0.001}
    return Contender(name, precision, **{**defaults, **facts})


def trial(of: Contender, size: int, speed: float, unit: Any = "tokens") -> Trial:
    return Trial(of, Way(unit, size), pairs=50, tokens=5_500, batches=3, padding=0.0, seconds=[50 / speed] * 3)


FLAT = contender()
BFLOAT = contender(precision="bfloat16")
WRONG = contender(precision="bfloat16", difference=0.3)
INT8 = contender(precision="int8", quality=0.995)
POOR = contender(precision="int8", quality=0.97, difference=0.001)
ONNX = contender("onnxruntime")


@pytest.mark.parametrize(
    ("measured", "expected", "reason"),
    [
        ([trial(FLAT, 1_024, 70), trial(FLAT, 2_048, 100)], 1, "torch-flat in float32.* is the fastest"),
        # As fast but for noise: the smaller budget.
        ([trial(FLAT, 1_024, 97), trial(FLAT, 2_048, 100)], 0, "is the fastest"),
        ([trial(FLAT, 2_048, 100), trial(BFLOAT, 2_048, 190)], 1, "1.90 times as fast.*at most 0.0010 from float32"),
        ([trial(FLAT, 2_048, 100), trial(BFLOAT, 2_048, 107)], 0, "as fast as torch-flat in bfloat16.*but for 7%"),
        ([trial(FLAT, 2_048, 100), trial(WRONG, 2_048, 190)], 0, "is the fastest"),
        ([trial(FLAT, 2_048, 100), trial(INT8, 2_048, 180)], 1, "nDCG@10 of 0.9950"),
        ([trial(FLAT, 2_048, 100), trial(POOR, 2_048, 180)], 0, "is the fastest"),
        ([trial(FLAT, 2_048, 100), trial(ONNX, 512, 105)], 0, "as fast as onnxruntime.*but for 5%"),
        ([trial(FLAT, 2_048, 100), trial(ONNX, 512, 130)], 1, "1.30 times as fast.*the same scores"),
        ([trial(BFLOAT, 2_048, 107)], 0, "the fastest that was measured"),
        # What is counted in pairs cannot be set in a Reranker.
        ([trial(FLAT, 2_048, 100), trial(FLAT, 32, 300, "pairs")], 0, "is the fastest"),
    ],
)
def test_recommendation(measured: list[Trial], expected: int, reason: str) -> None:
    found = advice.recommend(measured)
    assert found is not None
    assert found[0] is measured[expected]
    assert re.search(reason, found[1])


def test_nothing_measured_recommends_nothing() -> None:
    assert advice.recommend([]) is None
    assert advice.recommend([trial(FLAT, 32, 100, "pairs"), trial(POOR, 2_048, 100)]) is None
    assert advice.best_batch_size([]) is None


def test_the_best_batch_size_is_the_exercise() -> None:
    measured = [trial(FLAT, size, speed, "pairs") for size, speed in ((8, 60), (16, 66), (32, 50), (64, 40))]
    best = advice.best_batch_size([*measured, trial(FLAT, 2_048, 100), trial(WRONG, 64, 200, "pairs")])
    assert best is not None
    assert best.way == Way("pairs", 16)


def test_repeats() -> None:
    one = trial(FLAT, 8, 100)
    one.seconds = [9.0, 1.0, 2.0, 1.5]
    assert (one.median, one.spread, one.pairs_per_second) == (1.5, 1 / 1.5, 50 / 1.5)
    # The first repeat warms up: its batches do not count either.
    one.laps = [[8.0, 1.0], [0.9, 0.1], [1.0] * 2, [0.5] * 17]
    assert one.p95_batch_seconds == 1.0
    one.seconds = [9.0]
    assert (one.median, one.spread) == (9.0, 0.0)


@pytest.fixture(scope="module")
def checkpoint(tiny_bert: Path) -> Checkpoint:
    return open_checkpoint(WorkerConfig(model=ModelSource(path=str(tiny_bert)), device="cpu"), 1)[0]


def test_the_settings_are_a_rerankers_own(checkpoint: Checkpoint) -> None:
    text = advice.settings(
        trial(contender("onnxruntime", "int8"), 1_024, 9),
        WorkerConfig(model=ModelSource(path="/model"), max_length=48),
        checkpoint,
    )
    content = yaml.safe_load(text)["spec"]
    content["model"]["uri"] = "file:///model"
    spec = msgspec.convert(content, RerankerSpec, strict=True)
    assert (spec.runtime.backend, spec.runtime.precision, spec.runtime.device) == ("onnx", "int8", "cpu")
    assert (spec.batching.max_batch_tokens, spec.batching.length_bucket, spec.model.max_length) == (1_024, 16, 48)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_ways_begin_with_both_kinds(device: Any) -> None:
    ways = trials.ways(device)
    assert {way.unit for way in ways[:2]} == {"pairs", "tokens"}
    assert ways[0].size == capacity.DEFAULT_BUDGETS[device, False]
    assert sorted(way.size for way in ways if way.unit == "pairs") == [8, 16, 32, 64]
    assert len(set(ways)) == len(ways)


def test_ways_that_are_asked_for() -> None:
    ways = trials.ways("cpu", [32, 8, 8], [4_096])
    assert set(ways) == {Way("pairs", 8), Way("pairs", 32), Way("tokens", 4_096)}
    assert len(ways) == 3


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.booleans())
def test_laps_are_each_batchs_own_seconds(seconds: list[int], asynchronous: bool) -> None:
    class Device:
        """Takes as many seconds for a batch as it has pairs: in collect where it is asynchronous, else in compute."""

        def __init__(self) -> None:
            self.asynchronous = asynchronous
            self.now = 0.0
            self.collected: list[int] = []

        def prepare(self, batch: Any) -> Any:
            return batch

        def compute(self, batch: Any) -> Any:
            self.now += 0 if self.asynchronous else len(batch)
            return batch

        def collect(self, batch: Any) -> Any:
            self.now += len(batch) if self.asynchronous else 0
            self.collected.append(len(batch))

    device: Any = Device()
    batches = [[Pair([1], [0])] * count for count in seconds]
    assert capacity.laps(device, batches, lambda: device.now) == seconds
    assert device.collected == seconds


@given(st.lists(st.integers(1, 64), min_size=1, max_size=60), st.booleans())
def test_plans_hold_every_pair_once_and_repeat_nothing(lengths: list[int], padded: bool) -> None:
    made = Checkpoint(Path(), {}, "", None, "cpu", "float32", max_length=64, length_bucket=16, threads=1)
    pairs = [Pair([index] * length, [0] * length) for index, length in enumerate(lengths)]
    plans = trials.plans(pairs, trials.ways("cpu"), made, padded)
    for batches in plans.values():
        assert sorted(pair.ids[0] for batch in batches for pair in batch) == list(range(len(pairs)))
        assert trials.padding_of(batches, made) >= 0
    shapes = [(way.unit, tuple(map(len, batches))) for way, batches in plans.items()]
    assert len(set(shapes)) == len(shapes)


def test_padding_is_what_engines_pad_to(checkpoint: Checkpoint) -> None:
    pairs = [Pair([1] * 20, [0] * 20), Pair([1] * 10, [0] * 10)]
    assert trials.padding_of([pairs], checkpoint) == pytest.approx(64 / 30 - 1)
    assert trials.padding_of([[pair] for pair in pairs], checkpoint) == pytest.approx(48 / 30 - 1)


class Scoring(Machine):
    """Also gives scores, and may stop the command (``interrupts`` after so many batches) or not fit (``most``)."""

    interrupts: int | None = None
    most: int | None = None

    def prepare(self, pairs: Sequence[Pair]) -> Any:
        if self.most is not None and len(pairs) > self.most:
            raise EngineOutOfMemory("too many")
        return pairs

    def compute(self, prepared: Any) -> Any:
        if self.interrupts is not None and len(self.batches) >= self.interrupts:
            raise KeyboardInterrupt
        super().compute(sum(map(len, prepared)))
        return prepared

    def collect(self, output: Any) -> list[float]:
        return [float(len(pair)) for pair in output]


def run_trials(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint, engine: Scoring, seconds: float = 1.0
) -> Measured:
    monkeypatch.setattr(select, "build", lambda name, made: engine)
    pairs = [Pair([1] * length, [0] * length) for length in range(10, 60)]
    found = Measured()
    trials.measure(
        checkpoint,
        pairs,
        ["torch-flat"],
        ["float32"],
        [Way("tokens", 512), Way("pairs", 8), Way("pairs", 64)],
        seconds,
        list,
        [pairs[:4], pairs[4:9]],
        lambda text: None,
        found,
        engine.clock,
    )
    return found


def test_everything_is_repeated_while_there_is_time(monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint) -> None:
    found = run_trials(monkeypatch, checkpoint, Scoring())
    assert [len(one.seconds) for one in found.trials] == [trials.ROUNDS] * 3
    assert found.unmeasured == 0


@given(st.floats(300.0, 100_000.0), st.floats(0.05, 20.0))
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_time_is_kept_but_for_the_least_that_says_anything(
    checkpoint: Checkpoint, rate: float, seconds: float
) -> None:
    """It took 75 s where 20 were asked for, and had measured 13 of 30 rows by then."""
    engine = Scoring(rate=rate)
    with pytest.MonkeyPatch.context() as patch:
        found = run_trials(patch, checkpoint, engine, seconds)
    assert found.trials
    rows = sum(len(one.seconds) for one in found.trials)
    # One pair, all pairs and those of the judgement, and one row.
    least = (10 + 2 * 1_725 + 126) / rate + 20 * engine.overhead
    assert engine.now <= max(seconds + 5 * engine.overhead, least)
    assert rows == 3 * trials.ROUNDS or engine.now > min(seconds - (1_725 / rate + 8 * engine.overhead), least) * 0.9
    assert found.unmeasured == 3 - len(found.trials)


def test_engines_that_there_is_no_time_to_load_are_named(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint
) -> None:
    engine = Scoring()

    def build(name: str, made: Checkpoint) -> Scoring:
        engine.now += 10.0
        return engine

    monkeypatch.setattr(select, "build", build)
    pairs = [Pair([1] * length, [0] * length) for length in range(10, 60)]
    found = Measured()
    trials.measure(
        checkpoint,
        pairs,
        ["torch-flat", "torch-padded", "onnxruntime"],
        ["float32"],
        [Way("tokens", 512)],
        15.0,
        list,
        [pairs[:4]],
        lambda text: None,
        found,
        engine.clock,
    )
    assert engine.now < 15.0
    assert [one.contender.name for one in found.trials] == ["torch-flat"]
    assert [one.reason for one in found.contenders] == [None, trials.NO_TIME, trials.NO_TIME]
    said = tune_report.as_text(
        tune_report.Run(found, WorkerConfig(model=ModelSource(path="/m")), checkpoint, pairs, False)
    )
    assert "There was no time for torch-padded in float32, onnxruntime in float32: raise --seconds" in said
    assert "not served here" not in said


def test_nothing_that_a_library_says_moves_a_cursor(checkpoint: Checkpoint) -> None:
    found = Measured(contenders=[contender(reason="no such layer: \x1b[2J\x9b2J\nowned", load_seconds=None)])
    pairs = [Pair([1, 2], [0, 0])]
    said = tune_report.as_text(
        tune_report.Run(found, WorkerConfig(model=ModelSource(path="/m")), checkpoint, pairs, False)
    )
    assert "owned" in said
    assert said.replace("\n", "").isprintable()


def test_a_first_round_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint) -> None:
    found = run_trials(monkeypatch, checkpoint, Scoring(rate=1000.0), seconds=0.5)
    assert [one.way for one in found.trials] == [Way("tokens", 512)]
    assert found.unmeasured == 2


def test_batches_that_do_not_fit_are_left_out(monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint) -> None:
    engine = Scoring()
    engine.most = 45
    found = run_trials(monkeypatch, checkpoint, engine)
    assert Way("pairs", 64) not in [one.way for one in found.trials]
    assert Way("pairs", 8) in [one.way for one in found.trials]


def tuned(capsys: pytest.CaptureFixture[str], model: Path, *more: str) -> tuple[int, str, str]:
    code = cli.main(["tune", "--model", str(model), "--device", "cpu", "--threads", "1", *more], {})
    out, said = capsys.readouterr()
    return code, out, said


def test_the_command_measures_compares_and_recommends(
    tiny_bert: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # All of one round, however busy the machine is.
    monkeypatch.setattr(trials, "ROUNDS", 1)
    engines = ("--engines", "torch-flat", "torch-padded", "torch-decoder", "--precisions", "bfloat16", "float32")
    code, out, said = tuned(capsys, tiny_bert, *engines, "--seconds", "60", "--json")
    assert code == 0
    assert "Traceback" not in said
    found = json.loads(out)
    assert found["pairs"] == 50
    facts = {(one["engine"], one["precision"]): one for one in found["engines"]}
    assert facts["torch-flat", "float32"]["reason"] is None
    assert facts["torch-padded", "float32"]["scoreDifference"] < 1e-4
    assert facts["torch-padded", "float32"]["ndcg10"] > 0.999
    assert 0.9 < facts["torch-padded", "bfloat16"]["ndcg10"] <= 1
    assert 0 < facts["torch-padded", "bfloat16"]["scoreDifference"] < 0.2
    assert "decoder" in facts["torch-decoder", "float32"]["reason"]
    sizes = {(one["engine"], one["precision"], one["unit"], one["size"]) for one in found["trials"]}
    assert {("torch-padded", "float32", "pairs", size) for size in (8, 16, 32, 64)} <= sizes
    assert found["fastestBatchSize"] in (8, 16, 32, 64)
    assert all(one["padding"] == 0 for one in found["trials"] if one["engine"] == "torch-flat")
    assert any(one["padding"] > 0 for one in found["trials"] if one["engine"] == "torch-padded")
    assert yaml.safe_load(found["recommended"]["yaml"])["spec"]["runtime"]["backend"] == "torch"

    code, out, said = tuned(capsys, tiny_bert, *engines, "--seconds", "60")
    assert code == 0
    assert "engine        precision  batches of" in out
    assert "not served here:\n  torch-decoder" in out
    assert "Of batch sizes 8, 16, 32, 64, " in out
    assert "Recommended: " in out
    assert "maxBatchTokens: " in out


def test_reduced_precisions_are_compared_with_float32_though_it_is_not_measured(
    tiny_bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only = ("--engines", "torch-padded", "--precisions", "bfloat16", "--documents", "8", "--seconds", "0.2", "--json")
    code, out, _ = tuned(capsys, tiny_bert, *only)
    found = json.loads(out)
    assert code == 0
    assert {one["precision"] for one in found["engines"]} == {"bfloat16"}
    assert 0 < found["engines"][0]["scoreDifference"] < 0.2


def test_pairs_of_ones_own(tiny_bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"query": "ab", "document": ["cd ef", "gh"], "score": 3}\n{"query": "ab", "document": "secret"}\n')
    one = ("--pairs", str(path), "--engines", "torch-padded", "--precisions", "float32", "--seconds", "0.2", "--json")
    code, out, said = tuned(capsys, tiny_bert, *one)
    assert code == 0
    assert json.loads(out)["pairs"] == 3
    assert json.loads(out)["engines"][0]["ndcg10"] == 1
    assert "secret" not in out + said
    assert json.loads(tuned(capsys, tiny_bert, *one, "--documents", "2")[1])["pairs"] == 2


def in_a_pod(model: Path, **changes: Any) -> dict[str, str]:
    config = WorkerConfig(model=ModelSource(path=str(model)), reranker="products", device="cpu", **changes)
    return {names.ENV_WORKER_CONFIG: msgspec.json.encode(config).decode()}


def test_in_a_pod_it_measures_what_the_pod_serves(
    tiny_bert: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "ROUNDS", 2)
    niceness: list[int] = []
    monkeypatch.setattr(os, "nice", niceness.append)
    asked = ("--batch-sizes", "4", "8", "64", "--token-budgets", "256", "512", "--nice", "10", "--threads", "1")
    environment = in_a_pod(tiny_bert, precision="bfloat16", backend="torch", max_length=48)
    assert cli.main(["tune", *asked, "--json"], environment) == 0
    found = json.loads(capsys.readouterr().out)
    assert niceness == [10]
    assert found["nice"] == 10
    assert {one["precision"] for one in found["engines"]} == {"bfloat16"}
    assert {one["engine"] for one in found["engines"]} == set(select.candidates("torch"))
    assert found["maxLength"] == 48
    # So that a batch of 64 is one of 64.
    assert found["pairs"] == 64
    sizes = {(one["unit"], one["size"]) for one in found["trials"]}
    assert sizes == {("pairs", 4), ("pairs", 8), ("pairs", 64), ("tokens", 256), ("tokens", 512)}
    for one in found["trials"]:
        assert 0 < one["p95BatchSeconds"] <= max(one["seconds"])

    # What the command line says goes before the environment.
    assert cli.main(["tune", *asked, "--max-length", "32", "--precisions", "float32"], environment) == 0
    out = capsys.readouterr().out
    assert "batch size  pairs/s  p95 batch ms" in out
    assert "token budget  pairs/s  p95 batch ms" in out
    assert re.search(r"^ *64 pairs  +[\d.]+  +[\d.]+  #+$", out, re.MULTILINE)
    assert "Measured at niceness 10" in out
    assert "maxLength: 32" in out


def test_a_model_that_does_not_fit_beside_the_server_is_not_begun(
    tiny_bert: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel would end the server with it: both are in one container."""
    monkeypatch.setattr(memory, "unused_host", lambda: 2**28)
    assert cli.main(["tune"], in_a_pod(tiny_bert)) == 71
    assert "measuring takes about 0.5 GiB of memory" in capsys.readouterr().err.splitlines()[-1]


def test_without_a_model_or_an_environment_it_asks_for_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tune"], {}) == 64
    assert "name a model with --model" in capsys.readouterr().err
    assert cli.main(["tune", "--revision", "abc"], in_a_pod(Path("/m"))) == 64
    assert "--revision belongs to --model" in capsys.readouterr().err
    assert cli.main(["tune"], {names.ENV_WORKER_CONFIG: '{"model": {}, "odd": 1}'}) == 64
    assert "unknown field `odd`" in capsys.readouterr().err


def test_ctrl_c_keeps_what_was_measured(
    tiny_bert: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Scoring()
    engine.interrupts = 30
    monkeypatch.setattr(select, "build", lambda name, made: engine)
    code, out, _ = tuned(capsys, tiny_bert, "--engines", "torch-flat", "--precisions", "float32")
    assert code == 130
    assert "Interrupted: this is what was measured until then." in out
    assert "2,048 tokens" in out
    engine.interrupts = 0
    code, out, _ = tuned(capsys, tiny_bert, "--engines", "torch-flat", "--precisions", "float32", "--json")
    assert code == 130
    assert json.loads(out)["interrupted"]


def test_sigterm_keeps_what_was_measured(
    tiny_bert: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time limit around the command (timeout, the kubelet) ended it without a word."""

    class Ended(Scoring):
        def compute(self, prepared: Any) -> Any:
            if len(self.batches) == 30:
                signal.raise_signal(signal.SIGTERM)
            return super().compute(prepared)

    engine = Ended()
    monkeypatch.setattr(select, "build", lambda name, made: engine)
    before = signal.getsignal(signal.SIGTERM)
    code, out, _ = tuned(capsys, tiny_bert, "--engines", "torch-flat", "--precisions", "float32")
    assert code == 143
    assert "Interrupted: this is what was measured until then." in out
    assert "2,048 tokens" in out
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        ("", [], "has no pairs"),
        ('{"query": 1, "document": "x"}', [], "line 1: 'query' is a number"),
        ('{"query": "' + "a " * 80 + '", "document": "x"}', [], "line 1: the query leaves no room"),
        ("{}", ["--documents", "0"], "--documents is less than 1"),
        ("{}", ["--batch-sizes", "8", "0"], "--batch-sizes is less than 1"),
        ("{}", ["--token-budgets", "-1"], "--token-budgets is less than 1"),
        ("{}", ["--nice", "20"], "--nice is 20: it must be from 0 to 19"),
        ("{}", ["--seconds", "0"], "--seconds must be more than 0"),
        ("{}", ["--seconds", "nan"], "--seconds must be more than 0"),
        ("{}", ["--documents", "1000000000"], "--documents is more than 10,000"),
        ("{}", ["--batch-sizes", "8", "1000000000"], "--batch-sizes is more than 10,000"),
        ("{}", ["--max-length", "100000"], "spec.model.maxLength"),
        ("{}", ["--model", "nowhere"], "does not exist"),
        (None, [], "is no file"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_64(
    tiny_bert: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: str | None,
    more: list[str],
    message: str,
) -> None:
    path = tmp_path / "mine.jsonl"
    if content is not None:
        path.write_text(content + "\n")
    code, out, said = tuned(capsys, tiny_bert, "--pairs", str(path), *more)
    assert (code, out) == (64, "")
    assert message in said.splitlines()[-1]
    assert "Traceback" not in said


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["tune", "--help"])
    assert ended.value.code == 0
    assert "rerank-worker tune --model ./model" in capsys.readouterr().out
