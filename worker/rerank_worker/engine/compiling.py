"""torch.compile beside serving: layers are compiled in a thread of their own and serve from the next batch on.

Until then, and whenever compiled code does not fit an input or fails, the same layers run as they are. The engine's
thread never compiles: a shape that has no compiled code runs eagerly. What is compiled is kept in
TORCHINDUCTOR_CACHE_DIR, where that is set. Nothing here waits for the compiler, and no start-up does.
"""

import importlib.util
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from rerank_api.reranker import Compile

from rerank_worker.engine import EngineLost, EngineOutOfMemory, Pair
from rerank_worker.engine.device import CAPTURING
from rerank_worker.engine.torch_errors import TorchErrors
from rerank_worker.failures import ConfigurationFailure

log = logging.getLogger(__name__)

DELAY = 1.0
"""Seconds after the start before compiling begins: the requests that woke the worker come first."""

CODE_VERSIONS = 64
"""Compiled versions of one layer's code, of all models of the process; torch's own limit is 8."""


class _Wrapped:
    """Calls ``function`` or its compiled code, as ``mode`` says for the thread: none, compile or run."""

    def __init__(self, function: Callable[..., Any], mode: threading.local) -> None:
        self._function = self._compiling = self._compiled = function
        self._mode = mode

    def make(self, backend: Any) -> None:
        self._compiling = torch.compile(self._function, dynamic=True, backend=backend)
        # Uses code that was compiled, and never compiles.
        self._compiled = torch._dynamo.run(self._function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        mode = getattr(self._mode, "value", None)
        if mode is None:
            return self._function(*args, **kwargs)
        return (self._compiled if mode == "run" else self._compiling)(*args, **kwargs)


TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest difference of a compiled score, absolute and relative, by what matrices are multiplied in."""


class Compiler:
    """Turns an engine's layers into ones that switch to compiled code when that is ready.

    ``wrap`` or ``wrap_layers`` once, set ``synthetic``, then ``start``; the engine passes each batch through ``run``.
    ``synthetic`` makes inputs as the engine does and returns functions that compute them through the wrapped layers,
    each a batch, to its scores: one for each kind of shapes that torch compiles apart (``lengths_to_compile``).
    """

    def __init__(self, asked: Compile, device: str, backend: Any = "inductor", delay: float = DELAY) -> None:
        """Raises ConfigurationFailure where ``asked`` is always and nothing can be compiled here."""
        self.synthetic: Callable[[], Sequence[Callable[[], torch.Tensor]]] | None = None
        self.tolerance = TOLERANCE[torch.float32]
        self.failures = 0
        """Compilations and compiled batches that failed; scores came from the eager layers."""
        self.enabled = asked == "always" or (asked == "auto" and device == "cuda")
        self._device = device
        self._backend = backend
        self._delay = delay
        self._state = "pending" if self.enabled else "never"
        self._mode = threading.local()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._wrapped: list[_Wrapped] = []
        if asked == "always" and backend == "inductor":
            check_compiler(device)

    @property
    def status(self) -> str:
        """never, pending, ready, or failed with the reason."""
        return self._state

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, which must be compilable and whose compiled code serves once it is ready."""
        if not self.enabled:
            return function
        wrapped = _Wrapped(function, self._mode)
        self._wrapped.append(wrapped)
        return wrapped

    def wrap_layers(self, layers: Iterable[torch.nn.Module]) -> None:
        """Wrap modules in place: where ``Module.compile`` would put compiled code."""
        if self.enabled:
            for layer in layers:
                layer._compiled_call_impl = self.wrap(layer.forward)

    def start(self) -> None:
        """Begin to compile, in a thread; at most once, and not at all where the spec does not ask for it.

        Called in the thread that computes, or in one with as many threads for torch.
        """
        if self.enabled and self._thread is None and self.synthetic is not None:
            # torch checks the number of threads before it uses compiled code, and each thread has its own.
            arguments = (torch.get_num_threads(),)
            self._thread = threading.Thread(target=self._compile, args=arguments, name="compile", daemon=True)
            self._thread.start()

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """``function(*args)`` for one batch, compiled where that is ready; a batch never mixes the two.

        Raises what the eager layers raise, and memory and device errors of compiled ones.
        """
        if self._state == "ready":
            self._mode.value = "run"
            try:
                with TorchErrors():
                    return function(*args)
            except (EngineOutOfMemory, EngineLost):
                raise
            except Exception as error:
                self._fail("a compiled batch failed", error)
            finally:
                self._mode.value = None
        return function(*args)

    def wait(self, seconds: float) -> str:
        """The status when compiling has ended, or ``seconds`` have passed."""
        if self._thread is not None:
            self._thread.join(seconds)
        return self._state

    def close(self) -> None:
        """Stop after the batch that is being compiled."""
        self._stop.set()

    def _compile(self, threads: int) -> None:
        if self._stop.wait(self._delay):
            return
        torch.set_num_threads(threads)
        started = time.monotonic()
        try:
            # Importing the compiler takes seconds, which is for this thread too.
            for wrapped in self._wrapped:
                wrapped.make(self._backend)
            settings: Any = torch._dynamo.config
            settings.recompile_limit = max(settings.recompile_limit, CODE_VERSIONS)
            with torch.cuda.stream(torch.cuda.Stream()) if self._device == "cuda" else nullcontext():
                self._warm_up()
        except Exception as error:
            # A model that is closed meanwhile has nothing left to compile.
            if not self._stop.is_set():
                self._fail("compiling failed", error)
            return
        if not self._stop.is_set():
            self._state = "ready"
            log.info("compiled", extra={"fields": {"seconds": round(time.monotonic() - started, 1)}})

    def _warm_up(self) -> None:
        assert self.synthetic is not None
        # Inputs made outside of inference mode and computed within it, as the engine thread does: compiled code is
        # checked for both.
        batches = self.synthetic()
        with torch.inference_mode():
            for batch in batches:
                if self._stop.is_set():
                    return
                expected = batch()
                self._mode.value = "compile"
                with CAPTURING:
                    found = batch()
                self._mode.value = None
                if not torch.allclose(found, expected, rtol=self.tolerance, atol=self.tolerance):
                    raise RuntimeError(f"compiled scores differ by {(found - expected).abs().max().item():.3g}")

    def _fail(self, what: str, error: Exception) -> None:
        # The second line of torch's own errors says what it was.
        reason = f"{type(error).__name__}: {' '.join(str(error).strip().splitlines()[:2])}"[:300]
        self.failures += 1
        self._state = f"failed: {reason}"
        log.warning("%s, eager layers serve", what, extra={"fields": {"error": reason}})


def lengths_to_compile(bucket: int, max_length: int) -> list[list[int]]:
    """Lengths of the pairs of made-up batches: a single pair; several of one length; several that are padded.

    torch takes a size that equals another one in the graph for the same one, so lengths and numbers are no usual sizes
    of heads, layers and vectors; lengths that are multiples of 16 and that are not are told apart by some kernels.
    """
    odd, even, long = (min(length, max_length) for length in (37, 7 * bucket, 11 * bucket))
    half = max(1, odd // 2)
    return [[odd], [even], [odd] * 5, [even] * 5, [even, half, half, half, half], [long, *[half] * 6]]


def made_up(lengths: Sequence[int]) -> list[Pair]:
    """Pairs of ``lengths`` tokens, of no meaning."""
    return [Pair([row + 2] * length, [0] * length) for row, length in enumerate(lengths)]


def check_compiler(device: str) -> None:
    """Raise ConfigurationFailure unless torch can compile for ``device`` on this machine, as far as can be told
    without importing the compiler, which takes seconds."""
    if device == "cuda":
        if importlib.util.find_spec("triton") is None:
            raise ConfigurationFailure(
                "spec.runtime.compile is always, but the worker's image has no Triton, which torch needs for a GPU: "
                "set it to auto or never"
            )
        return
    # What torch looks for: torch._inductor.config.cpp.cxx.
    name = os.environ.get("CXX", "g++")
    if shutil.which((name.split() or [""])[0]) is None:
        raise ConfigurationFailure(
            f"spec.runtime.compile is always, but the worker's image has no C++ compiler ({name}), which torch needs "
            "on a CPU: set it to auto or never, or use an image with g++"
        )
