"""The choice between engines: by the spec, by what can serve, then by measurement; what is not chosen is given back."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rerank_api.worker_config import ModelSource, WorkerConfig
from rerank_worker.engine import EngineLost, EngineUnsupported, Pair, capacity, select
from rerank_worker.failures import ConfigurationFailure
from rerank_worker.loading.checkpoint import Checkpoint
from rerank_worker.loading.model import open_checkpoint

from .test_capacity import Machine


@pytest.fixture(scope="module")
def opened(tiny_bert: Path) -> tuple[Checkpoint, capacity.Sample]:
    checkpoint, tokenizer, _ = open_checkpoint(WorkerConfig(model=ModelSource(path=str(tiny_bert)), device="cpu"), 1)
    return checkpoint, capacity.Sample.of(checkpoint, tokenizer)


class Engine(Machine):
    """``cost``: seconds a token, on the clock that all share."""

    def __init__(self, name: str, cost: float, fails: Exception | None = None) -> None:
        super().__init__(name=name)
        self.cost, self.fails = cost, fails
        self.closed = False

    def compute(self, prepared: int) -> int:
        if self.fails is not None:
            raise self.fails
        NOW[0] += prepared * self.cost
        return prepared

    def close(self) -> None:
        assert not self.closed
        self.closed = True


NOW = [0.0]
"""The clock that engines share."""


def choose(checkpoint: Checkpoint, sample: capacity.Sample | None, seconds: float = 0.5) -> select.Selected:
    return select.choose("auto", checkpoint, sample, seconds, lambda: NOW[0])


Offer = Callable[..., dict[str, Engine]]


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Offer:
    """Engines by name: seconds a token, or what building raises, or what computing raises (in a tuple)."""
    NOW[0] = 0.0

    def start(**behaviours: Any) -> dict[str, Engine]:
        built: dict[str, Engine] = {}

        def build(name: str, checkpoint: Checkpoint) -> Engine:
            behaviour = behaviours[name]
            if isinstance(behaviour, Exception):
                raise behaviour
            fails = behaviour[0] if isinstance(behaviour, tuple) else None
            built[name] = Engine(name, 0.0 if fails else behaviour, fails)
            return built[name]

        monkeypatch.setitem(select._BACKENDS, "auto", tuple(behaviours))
        monkeypatch.setattr(select, "build", build)
        return built

    return start


def test_the_faster_engine_serves_and_the_other_is_closed(
    offer: Offer, opened: tuple[Checkpoint, capacity.Sample]
) -> None:
    built = offer(first=1e-4, second=0.5e-4)
    chosen = choose(*opened)
    assert chosen.engine is built["second"]
    assert (built["first"].closed, built["second"].closed) == (True, False)
    assert chosen.speeds["second"] == pytest.approx(20_000, rel=0.01)
    assert chosen.speeds["first"] == pytest.approx(10_000, rel=0.01)


@pytest.mark.parametrize(("other", "expected"), [(0.99e-4, "first"), (0.97e-4, "first"), (0.9e-4, "second")])
def test_the_preferred_engine_stays_unless_another_is_clearly_faster(
    offer: Offer, opened: tuple[Checkpoint, capacity.Sample], other: float, expected: str
) -> None:
    offer(first=1e-4, second=other)
    assert choose(*opened).engine.name == expected


def test_nothing_is_measured_where_one_can_serve(offer: Offer, opened: tuple[Checkpoint, capacity.Sample]) -> None:
    offer(first=EngineUnsupported("no such shape"), second=1e-4)
    chosen = choose(*opened)
    assert (chosen.engine.name, chosen.speeds, chosen.reasons) == ("second", {}, {"first": "no such shape"})


@pytest.mark.parametrize("how", ["no sample", "no time", "a large model"])
def test_the_preferred_engine_is_taken_unmeasured(
    offer: Offer, opened: tuple[Checkpoint, capacity.Sample], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    checkpoint, sample = opened
    built = offer(first=1e-4, second=0.1e-4)
    if how == "a large model":
        monkeypatch.setattr(select, "COMPARED_BYTES", 100)
    chosen = choose(checkpoint, None if how == "no sample" else sample, 0 if how == "no time" else 0.5)
    assert (chosen.engine.name, chosen.speeds, list(built)) == ("first", {}, ["first"])


def test_an_engine_that_does_not_start_leaves_the_one_that_does(
    offer: Offer, opened: tuple[Checkpoint, capacity.Sample]
) -> None:
    offer(first=1e-4, second=RuntimeError("no room for two"))
    chosen = choose(*opened)
    assert chosen.engine.name == "first"
    assert chosen.reasons == {"second": "RuntimeError: no room for two"}
    offer(first=RuntimeError("broken weights"), second=1e-4)
    with pytest.raises(RuntimeError, match="broken weights"):
        choose(*opened)


def test_an_engine_that_cannot_score_is_not_chosen(offer: Offer, opened: tuple[Checkpoint, capacity.Sample]) -> None:
    built = offer(first=(ValueError("no"),), second=1e-4)
    chosen = choose(*opened)
    assert chosen.engine.name == "second"
    assert chosen.speeds["first"] == 0
    assert built["first"].closed
    offer(first=1e-4, second=(EngineLost("the device is gone"),))
    with pytest.raises(EngineLost):
        choose(*opened)


def test_none_is_an_error_that_names_the_field(offer: Offer, opened: tuple[Checkpoint, capacity.Sample]) -> None:
    offer(first=EngineUnsupported("no such shape"), second=EngineUnsupported("not on Tuesdays"))
    message = r"spec\.runtime\.backend auto with precision float32.*first: no such shape; second: not on Tuesdays"
    with pytest.raises(ConfigurationFailure, match=message):
        choose(*opened)


@pytest.mark.parametrize("cost", [1e-6, 1e-4, 1e-2])
def test_comparing_keeps_its_time(offer: Offer, opened: tuple[Checkpoint, capacity.Sample], cost: float) -> None:
    offer(first=cost, second=cost)
    choose(*opened)
    # Four pairs alone are always scored: on a very slow machine that is what it costs.
    assert NOW[0] < max(0.75, 5 * 64 * cost)


def test_the_real_engines_compare_and_agree(opened: tuple[Checkpoint, capacity.Sample]) -> None:
    checkpoint, sample = opened
    chosen = select.choose("auto", checkpoint, sample, 0.1)
    assert set(chosen.speeds) == {"torch-flat", "torch-padded"}
    assert all(speed > 0 for speed in chosen.speeds.values())
    other = select.build(next(name for name in chosen.speeds if name != chosen.engine.name), checkpoint)
    pairs = sample.documents(12)
    first, second = (engine.collect(engine.compute(engine.prepare(pairs))) for engine in (chosen.engine, other))
    assert first == pytest.approx(second, abs=1e-4)


def test_every_engine_that_a_backend_names_is_there() -> None:
    assert {name for names in select._BACKENDS.values() for name in names} <= set(select.ENGINES)


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_a_compiler_for_a_backend_without_one_is_refused(
    backend: Any, opened: tuple[Checkpoint, capacity.Sample]
) -> None:
    message = rf"spec\.runtime\.compile is always.*spec\.runtime\.backend is {backend}.*to auto"
    with pytest.raises(ConfigurationFailure, match=message):
        select.choose(backend, replace(opened[0], compile="always"))
    for allowed in ("auto", "torch"):
        select.check_compile(allowed, "always")
    select.check_compile(backend, "auto")


def test_int8_below_the_floor_is_refused(opened: tuple[Checkpoint, capacity.Sample]) -> None:
    checkpoint = opened[0]
    exact = select.build("torch-padded", checkpoint)
    assert select.judge(exact, checkpoint, 2.0) is None
    assert select.judge(exact, checkpoint.at("int8"), 0.99) == pytest.approx(1, abs=1e-4)
    message = r"spec\.runtime\.precision int8.*nDCG@10.*below spec\.runtime\.qualityFloor 0\.99"
    with pytest.raises(ConfigurationFailure, match=message):
        select.judge(_Reversed(exact), checkpoint.at("int8"), 0.99)


class _Reversed:
    """Ranks the other way round."""

    name = "reversed"
    padded = True

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def prepare(self, pairs: Sequence[Pair]) -> Any:
        return self._engine.prepare(pairs)

    def compute(self, prepared: Any) -> Any:
        return self._engine.compute(prepared)

    def collect(self, output: Any) -> list[float]:
        return [-score for score in self._engine.collect(output)]

    def close(self) -> None:
        self._engine.close()
