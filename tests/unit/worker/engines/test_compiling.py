"""Layers that are compiled beside serving: what serves meanwhile, what serves then, and what failure leaves."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rerank_worker.engine import EngineOutOfMemory, Pair, torch_decoder, torch_padded
from rerank_worker.engine.compiling import Compiler, check_compiler
from rerank_worker.engine.device import CAPTURING
from rerank_worker.engine.torch_flat import linear
from rerank_worker.engine.torch_flat.architectures import describe
from rerank_worker.engine.torch_flat.encoder import Encoder
from rerank_worker.engine.torch_flat.engine import TorchFlatEngine
from rerank_worker.failures import ConfigurationFailure
from rerank_worker.loading import prompts
from unit.worker.engines import checkpoints

WAIT = 120.0


class Backend:
    """A compiler for torch.compile that runs what it is given, remembers, and does as the test says."""

    def __init__(self) -> None:
        self.compiled: list[threading.Thread] = []
        self.ran: list[threading.Thread] = []
        self.begun, self.open = threading.Event(), threading.Event()
        self.open.set()
        self.error: Exception | None = None
        self.offset = 0.0
        self.running: Exception | None = None

    def __call__(self, graph: Any, inputs: Sequence[Any]) -> Callable[..., Any]:
        self.compiled.append(threading.current_thread())
        self.begun.set()
        assert self.open.wait(WAIT)
        if self.error is not None:
            raise self.error

        def run(*args: Any) -> Any:
            self.ran.append(threading.current_thread())
            if self.running is not None:
                raise self.running
            return tuple(output + self.offset for output in graph(*args))

        return run


@pytest.fixture
def backend() -> Backend:
    torch._dynamo.reset()
    return Backend()


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(4, 4)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(self.inner(hidden))


class Model:
    """Two layers behind a compiler, as an engine has them."""

    def __init__(self, backend: Any, asked: Any = "always") -> None:
        torch.manual_seed(0)
        self.layers = [Layer().eval(), Layer().eval()]
        self.compiler = Compiler(asked, "cpu", backend, delay=0.0)
        self.compiler.wrap_layers(self.layers)
        self.compiler.synthetic = lambda: [partial(self.forward, torch.randn(rows, 4)) for rows in (1, 3)]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden[:, 0]

    def score(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return self.compiler.run(self.forward, hidden)


def test_eager_serves_while_it_compiles_and_compiled_code_then(backend: Backend) -> None:
    backend.open.clear()
    model = Model(backend)
    rows = torch.randn(5, 4)
    expected = model.score(rows)
    assert model.compiler.status == "pending"
    model.compiler.start()
    assert torch.equal(model.score(rows), expected)
    assert threading.current_thread() not in backend.compiled
    backend.open.set()
    assert model.compiler.wait(WAIT) == "ready"
    assert torch.allclose(model.score(rows), expected)
    # This thread used the compiled code, and has compiled nothing.
    assert backend.ran.count(threading.current_thread()) == 2
    assert threading.current_thread() not in backend.compiled
    assert model.compiler.failures == 0


def test_no_cuda_graph_is_captured_while_it_compiles(backend: Backend) -> None:
    held: list[bool] = []

    def watched(graph: Any, inputs: Sequence[Any]) -> Callable[..., Any]:
        held.append(CAPTURING.locked())
        return backend(graph, inputs)

    model = Model(watched)
    model.compiler.start()
    assert model.compiler.wait(WAIT) == "ready"
    assert set(held) == {True}
    assert not CAPTURING.locked()


def test_a_shape_without_compiled_code_runs_eagerly(backend: Backend) -> None:
    model = Model(backend)
    model.compiler.start()
    assert model.compiler.wait(WAIT) == "ready"
    before = len(backend.ran)
    assert model.score(torch.randn(2, 3, 4)).shape == (2, 4)
    assert len(backend.ran) == before
    assert model.compiler.status == "ready"


def test_one_layer_s_code_serves_all_layers_and_shapes(backend: Backend) -> None:
    model = Model(backend)
    model.compiler.start()
    assert model.compiler.wait(WAIT) == "ready"
    # A single pair is compiled apart; so is the first layer here, whose inputs are made outside of inference mode.
    assert len(backend.compiled) == 4
    for rows in (1, 2, 7, 64):
        before = len(backend.ran)
        model.score(torch.randn(rows, 4))
        assert len(backend.ran) == before + 2


def test_a_compilation_that_fails_leaves_eager(backend: Backend) -> None:
    backend.error = RuntimeError("no such instruction")
    model = Model(backend)
    expected = model.score(torch.ones(2, 4))
    model.compiler.start()
    assert "no such instruction" in model.compiler.wait(WAIT)
    assert model.compiler.status.startswith("failed: ")
    assert model.compiler.failures == 1
    assert torch.equal(model.score(torch.ones(2, 4)), expected)


def test_compiled_code_that_scores_otherwise_does_not_serve(backend: Backend) -> None:
    backend.offset = 0.5
    model = Model(backend)
    model.compiler.start()
    assert "compiled scores differ" in model.compiler.wait(WAIT)


def test_a_compiled_batch_that_fails_is_scored_eagerly_as_are_all_after_it(backend: Backend) -> None:
    model = Model(backend)
    expected = model.score(torch.ones(2, 4))
    model.compiler.start()
    assert model.compiler.wait(WAIT) == "ready"
    backend.running = RuntimeError("illegal")
    assert torch.equal(model.score(torch.ones(2, 4)), expected)
    assert model.compiler.status == "failed: RuntimeError: illegal"
    ran = len(backend.ran)
    assert torch.equal(model.score(torch.ones(2, 4)), expected)
    assert len(backend.ran) == ran


def test_memory_that_runs_out_is_no_failure_of_the_compiler(backend: Backend) -> None:
    model = Model(backend)
    model.compiler.start()
    assert model.compiler.wait(WAIT) == "ready"
    backend.running = torch.OutOfMemoryError("too many pairs")
    with pytest.raises(EngineOutOfMemory):
        model.score(torch.ones(2, 4))
    assert model.compiler.status == "ready"


@pytest.mark.parametrize(("asked", "device"), [("never", "cpu"), ("never", "cuda"), ("auto", "cpu")])
def test_nothing_is_compiled_where_it_is_not_asked_for(asked: Any, device: str, backend: Backend) -> None:
    compiler = Compiler(asked, device, backend)
    function = len
    assert compiler.wrap(function) is function
    compiler.start()
    assert compiler.wait(0) == "never"


def test_a_model_that_is_closed_stops_compiling(backend: Backend) -> None:
    backend.open.clear()
    model = Model(backend)
    model.compiler.start()
    assert backend.begun.wait(WAIT)
    model.compiler.close()
    backend.open.set()
    assert model.compiler.wait(WAIT) == "pending"
    # Both layers of the batch that was being compiled; all batches would make four.
    assert len(backend.compiled) == 2


def test_no_compiler_is_told_with_the_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    told = r"spec\.runtime\.compile is always.*C\+\+ compiler .no-such-compiler"
    with pytest.raises(ConfigurationFailure, match=told):
        check_compiler("cpu")
    with pytest.raises(ConfigurationFailure, match=told):
        Compiler("always", "cpu")
    assert Compiler("auto", "cpu").status == "never"


def test_no_triton_is_told_with_the_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ConfigurationFailure, match=r"spec\.runtime\.compile is always, but .* no Triton"):
        Compiler("always", "cuda")


def test_building_an_engine_does_not_import_the_compiler() -> None:
    code = (
        "import sys, torch; from rerank_worker.engine.compiling import Compiler; "
        "compiler = Compiler('always', 'cpu', object()); compiler.wrap(len); compiler.wrap_layers([torch.nn.ReLU()]); "
        "sys.exit('torch._dynamo' in sys.modules or 'torch._inductor' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=WAIT).returncode == 0


@pytest.mark.parametrize("name", ["minilm", "deberta", "distilbert"])
def test_layers_of_architectures_compile(name: str, tmp_path: Path, backend: Backend) -> None:
    folder = checkpoints.PADDED[name](tmp_path / name)
    engine = torch_padded.build(checkpoints.checkpoint(folder))
    swap(engine, torch_padded.layers_of(engine._model), backend)
    rows = [Pair([2, *[7 + n] * (5 * n + 3), 3], [0] * (5 * n + 5)) for n in range(6)]
    batches = [rows, rows[:1], rows[3:4], [rows[2], rows[2]], rows[1:5]]
    eager = [engine.collect(engine.compute(engine.prepare(batch))) for batch in batches]
    engine.compiler.start()
    assert engine.compiler.wait(WAIT) == "ready"
    for batch, expected in zip(batches, eager, strict=True):
        before = len(backend.ran)
        assert engine.collect(engine.compute(engine.prepare(batch))) == pytest.approx(expected, abs=2e-5)
        assert len(backend.ran) >= before + len(torch_padded.layers_of(engine._model))
    assert {thread.name for thread in backend.compiled} == {"compile"}


@pytest.mark.parametrize("name", list(checkpoints.DECODERS))
def test_a_decoder_s_layers_compile(name: str, tmp_path: Path, backend: Backend) -> None:
    checkpoint = checkpoints.checkpoint(checkpoints.DECODERS[name](tmp_path / name), max_length=300)
    checkpoint.prompt = prompts.read_prompt(checkpoint.folder, checkpoint.architecture, checkpoint.tokenizer)
    engine = torch_decoder.build(checkpoint)
    swap(engine, engine._decoder.layers, backend)
    rows = [Pair([7 + n] * (5 * n + 3), [0] * (5 * n + 3)) for n in range(6)]
    batches = [rows, rows[:1], rows[3:4], [rows[2], rows[2]]]
    eager = [engine.collect(engine.compute(engine.prepare(batch))) for batch in batches]
    engine.compiler.start()
    assert engine.compiler.wait(WAIT) == "ready"
    for batch, expected in zip(batches, eager, strict=True):
        before = len(backend.ran)
        assert engine.collect(engine.compute(engine.prepare(batch))) == pytest.approx(expected, abs=2e-5)
        assert len(backend.ran) == before + 2


@pytest.mark.parametrize("name", ["minilm", "modernbert"])
def test_what_follows_attention_in_a_flat_batch_compiles(name: str, tmp_path: Path, backend: Backend) -> None:
    checkpoint = checkpoints.checkpoint(checkpoints.FLATTENABLE[name](tmp_path / name))
    described = describe(checkpoint, torch.float32)
    compiler = Compiler("always", "cpu", backend, delay=0.0)
    encoder = Encoder(described, linear.plain, torch.device("cpu"), torch.float32, 64, compiler.wrap)
    engine = TorchFlatEngine(encoder, checkpoint.takes_types, compiler)
    rows = [Pair([2, *[7 + n] * (5 * n + 3), 3], [0] * (5 * n + 5)) for n in range(6)]
    batches = [rows, rows[:1], rows[3:4], [rows[2], rows[2]]]
    eager = [engine.collect(engine.compute(engine.prepare(batch))) for batch in batches]
    compiler.start()
    assert compiler.wait(WAIT) == "ready"
    for batch, expected in zip(batches, eager, strict=True):
        before = len(backend.ran)
        assert engine.collect(engine.compute(engine.prepare(batch))) == pytest.approx(expected, abs=2e-5)
        assert len(backend.ran) == before + len(described.layers)


def swap(engine: Any, layers: Any, backend: Backend) -> None:
    """Give ``engine`` a compiler with the test's backend."""
    synthetic = engine.compiler.synthetic
    engine.compiler = Compiler("always", "cpu", backend, delay=0.0)
    engine.compiler.wrap_layers(layers)
    engine.compiler.synthetic = synthetic


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for a CPU with g++, which is not here")
def test_with_torch_s_own_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    # Without the trial programs that find out the vector instructions: most of the time that this takes.
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "vec_isa_ok", False)
    model = Model("inductor")
    rows = torch.randn(5, 4)
    expected = model.score(rows)
    model.compiler.synthetic = lambda: [partial(model.forward, torch.randn(3, 4))]
    model.compiler.start()
    assert model.compiler.wait(WAIT) == "ready"
    assert torch.allclose(model.score(rows), expected, atol=1e-5)
    assert any((tmp_path / "cache").rglob("*.cpp"))
