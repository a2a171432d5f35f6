"""A transformers module as a graph for other runtimes: its inputs, its export from torch, the check of what came out.

Weights come from the verified checkpoint only. A graph that lies in the model's folder (.onnx, .xml) is in no lock file
and is never read; no code of the model runs.
"""

import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from rerank_worker.batching import padded_length
from rerank_worker.engine import EngineOutOfMemory, EngineUnsupported, Pair
from rerank_worker.engine.torch_errors import is_out_of_memory
from rerank_worker.failures import first_line
from rerank_worker.loading.checkpoint import Checkpoint
from rerank_worker.loading.verify import DECODERS, jina_flash_config

OUTPUT = "logits"

Inputs = dict[str, np.ndarray]
"""int64 arrays of shape (pairs, length), by the name of the graph's input."""

_OUT_OF_MEMORY = ("bad_alloc", "bad allocation", "failed to allocate", "could not allocate", "out of memory")
"""What the C++ runtimes say, in lower case; they have no class of their own for it."""

_TOLERANCE = 1e-3
"""Largest difference of a logit between a graph and torch, absolute and relative; 1e-6 is usual."""

_CHECKED_LENGTH = 256
"""Longer than the windows of local attention, so that rows of nothing but padding occur in the check."""


def check_supported(checkpoint: Checkpoint, backend: str) -> None:
    """Raises EngineUnsupported for what no graph engine serves."""
    if checkpoint.device != "cpu":
        raise EngineUnsupported(
            f"spec.runtime.backend {backend} computes on the CPU only, and spec.runtime.device makes it "
            f"{checkpoint.device}: set spec.runtime.device to cpu, or spec.runtime.backend to torch"
        )
    if checkpoint.architecture in DECODERS:
        raise EngineUnsupported(
            f"{checkpoint.architecture} is asked with a prompt: set spec.runtime.backend to auto or torch"
        )
    if jina_flash_config(checkpoint.config):
        raise EngineUnsupported(
            "transformers has no module for jina-reranker-v2 without its remote code: set spec.runtime.backend to auto "
            "or torch"
        )


def input_names(takes_types: bool) -> list[str]:
    return ["input_ids", "attention_mask", *(["token_type_ids"] if takes_types else [])]


class Padding:
    """Builds a graph's inputs: pairs side by side, each padded at its end to the longest."""

    def __init__(self, checkpoint: Checkpoint, bucket: int = 1) -> None:
        """``bucket``: lengths are rounded up to multiples of it."""
        self._pad = checkpoint.pad_token_id
        self._takes_types = checkpoint.takes_types
        self._bucket = bucket
        self._max_length = checkpoint.max_length

    def inputs(self, pairs: Sequence[Pair]) -> Inputs:
        width = padded_length(max(len(pair) for pair in pairs), self._bucket, self._max_length)
        tables = {name: np.zeros((len(pairs), width), dtype=np.int64) for name in input_names(self._takes_types)}
        tables["input_ids"][:] = self._pad
        for row, pair in enumerate(pairs):
            tables["input_ids"][row, : len(pair)] = pair.ids
            tables["attention_mask"][row, : len(pair)] = 1
            if self._takes_types:
                tables["token_type_ids"][row, : len(pair)] = pair.types
        return tables


class GraphEngine:
    """An engine around a runtime's session. ``infer``: inputs to logits (pairs,) of its own memory."""

    padded = True

    def __init__(self, name: str, infer: Callable[[Inputs], np.ndarray], padding: Padding) -> None:
        self.name = name
        self._infer: Any = infer
        self._padding = padding

    def prepare(self, pairs: Sequence[Pair]) -> Inputs:
        with runtime_errors():
            return self._padding.inputs(pairs)

    def compute(self, prepared: Inputs) -> np.ndarray:
        with runtime_errors():
            return self._infer(prepared)

    def collect(self, output: np.ndarray) -> list[float]:
        return output.tolist()

    def close(self) -> None:
        self._infer = None


@contextmanager
def runtime_errors() -> Generator[None]:
    """A context in which a runtime's errors for want of memory become EngineOutOfMemory."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error) or any(sign in str(error).lower() for sign in _OUT_OF_MEMORY):
            raise EngineOutOfMemory(first_line(error)) from error
        raise


def export(checkpoint: Checkpoint, finite_mask: bool = False) -> torch.export.ExportedProgram:
    """The module in float32, from ``input_names`` of any (pairs, length) to logits of shape (pairs,).

    ``finite_mask``: for a runtime whose attention is not a number where all keys are masked, which local attention
    meets in padding: attention is written out with a large negative number instead of minus infinity. Raises
    EngineUnsupported when torch cannot trace the module for all shapes.
    """
    module = checkpoint.module(torch.float32)
    names = input_names(checkpoint.takes_types)
    length = max(2, min(24, checkpoint.max_length))
    example = {name: torch.zeros((3, length), dtype=torch.int64) for name in names}
    example["input_ids"] += checkpoint.pad_token_id
    for row, real in enumerate((length, length - 1, length // 2)):
        example["input_ids"][row, :real] = torch.arange(real) % checkpoint.config["vocab_size"]
        example["attention_mask"][row, :real] = 1
    shape = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    own = module.config._attn_implementation
    rewritten = finite_mask and "local_attention" in checkpoint.config
    try:
        if rewritten:
            module.set_attn_implementation("eager")
        with torch.no_grad():
            return torch.export.export(
                _Logit(module, module.config.model_type == "modernbert").eval(),
                tuple(example.values()),
                dynamic_shapes={"inputs": (shape,) * len(names)},
                strict=False,
            )
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise EngineUnsupported(
            f"torch.export cannot trace {checkpoint.architecture}: {first_line(error)}; set "
            "spec.runtime.backend to auto or torch"
        ) from error
    finally:
        if rewritten:
            module.set_attn_implementation(own)


class _Logit(torch.nn.Module):
    """The first logit of a sequence classifier, its inputs in the order of ``input_names``."""

    def __init__(self, module: Any, rotary: bool) -> None:
        super().__init__()
        self.module = module
        self._rotary = rotary

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        more = dict(zip(("token_type_ids",), inputs[2:], strict=False))
        if self._rotary:
            # ONNX's RotaryEmbedding, which the exporter makes of such code, wants one row of angles for each pair.
            rows, length = inputs[0].shape
            more["position_ids"] = torch.arange(length)[None].expand(rows, -1)
        return self.module(input_ids=inputs[0], attention_mask=inputs[1], **more).logits[:, 0]


def check(checkpoint: Checkpoint, runtime: str, score: Callable[[Mapping[str, np.ndarray]], Sequence[float]]) -> None:
    """Compare ``score`` of a padded batch, and of a pair alone, with the module on each pair unpadded.

    Raises EngineUnsupported where they differ: an exporter may drop what it does not understand.
    """
    module = checkpoint.module(torch.float32)
    longest = min(_CHECKED_LENGTH, checkpoint.max_length)
    generator = np.random.default_rng(0)
    pairs = []
    for length in (longest, longest // 2, max(2, longest // 16), longest):
        ids = generator.integers(0, checkpoint.config["vocab_size"], length)
        ids[ids == checkpoint.pad_token_id] = (checkpoint.pad_token_id + 1) % checkpoint.config["vocab_size"]
        types = (np.arange(length) >= length // 2).astype(int) if checkpoint.takes_types else np.zeros(length, int)
        pairs.append(Pair(ids.tolist(), types.tolist()))
    padding = Padding(checkpoint)
    wanted = []
    with torch.inference_mode():
        for pair in pairs:
            tensors = {name: torch.from_numpy(array) for name, array in padding.inputs([pair]).items()}
            wanted.append(float(module(**tensors).logits[0, 0]))
    found = [*score(padding.inputs(pairs)), *score(padding.inputs(pairs[1:2]))]
    if not np.allclose(found, [*wanted, wanted[1]], rtol=_TOLERANCE, atol=_TOLERANCE):
        worst = float(np.max(np.abs(np.subtract(found, [*wanted, wanted[1]]))))
        raise EngineUnsupported(
            f"{checkpoint.architecture} scores differently in {runtime} than in torch (logits differ by {worst:.2g}): "
            "set spec.runtime.backend to auto or torch"
        )


def quieten() -> None:
    """Exporters warn of operators that no model here has (torchvision's) and of what they did not fold."""
    for name in ("torch.onnx", "onnxscript", "onnx_ir", "onnxruntime.quantization"):
        logging.getLogger(name).setLevel(logging.ERROR)
