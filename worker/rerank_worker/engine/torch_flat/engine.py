"""The engine around the encoder: pairs in, logits out. Never called by two threads at once.

On CUDA the host's work and copies overlap the device's: prepare fills a pinned buffer, compute only queues, collect
waits for its own batch alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rerank_worker.engine import Pair
from rerank_worker.engine.compiling import TOLERANCE, Compiler, made_up
from rerank_worker.engine.torch_errors import TorchErrors
from rerank_worker.engine.torch_flat import packing
from rerank_worker.engine.torch_flat.attention_grouped import GroupedAttention
from rerank_worker.engine.torch_flat.attention_varlen import VarlenAttention, supports
from rerank_worker.engine.torch_flat.encoder import Encoder, Inputs
from rerank_worker.engine.torch_flat.graphs import Bucket, Graphs, bucket, filled

TOKEN_STEP, PAIR_STEP = 32, 16
"""On the CPU batches are filled up to a multiple of so many tokens, and what is computed by pair of so many pairs:
oneDNN makes up each product anew for a number of rows that it has not seen (measured: 3 ms for the widest in float32,
10 ms of the 250 of a batch of 2,048 tokens; in int8 a tenth of the time for pairs, another for rows apart)."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """``host``: all of Inputs one after the other; ``sizes``: of each. ``attention``: None where the kernel needs only
    the inputs. ``bucket``: of the graph that may run it."""

    order: npt.NDArray[np.int64]
    host: torch.Tensor
    sizes: tuple[int, ...]
    longest: int
    attention: GroupedAttention | None
    bucket: Bucket | None


@dataclass(frozen=True, slots=True)
class Output:
    """``logits``: on the host, valid once ``done`` has happened (None: already)."""

    order: npt.NDArray[np.int64]
    logits: torch.Tensor
    done: Any


class TorchFlatEngine:
    name = "torch-flat"
    padded = False

    def __init__(self, encoder: Encoder, takes_types: bool, compiler: Compiler | None = None) -> None:
        """``compiler``: the one that has wrapped what ``encoder`` is made of."""
        self._encoder: Any = encoder
        self.compiler = compiler
        if compiler is not None:
            compiler.tolerance = TOLERANCE[encoder.dtype]
            compiler.synthetic = self._synthetic
        self._takes_types = takes_types
        self._device, self._dtype = encoder.device, encoder.dtype
        self.asynchronous = self._cuda = self._device.type == "cuda"
        self._varlen = supports(self._device, self._dtype, encoder.size) is None
        self._graphs = Graphs(self._forward_bucket) if self._varlen else None

    def prepare(self, pairs: Sequence[Pair]) -> Prepared:
        with TorchErrors():
            packed = packing.pack(pairs)
            found = bucket(packed) if self._graphs is not None else None
            longest = int(packed.lengths[-1])
            if found is not None:
                packed, longest = filled(packed, found), found.longest
            attention = None if self._varlen else GroupedAttention(packed, self._device, self._dtype)
            steps = (1, 1) if self._cuda else (TOKEN_STEP, PAIR_STEP)
            arrays = self._encoder.arrays(packed, self._takes_types, *steps)
            host = torch.from_numpy(np.concatenate(list(arrays.values())))
            if self._cuda:
                host = host.pin_memory()
            return Prepared(packed.order, host, tuple(map(len, arrays.values())), longest, attention, found)

    def compute(self, prepared: Prepared) -> Output:
        with TorchErrors(), torch.inference_mode():
            if self._graphs is not None and prepared.bucket is not None:
                logits = self._graphs.run(prepared.host, prepared.bucket)
            else:
                # Graphs keep the eager layers: they have nothing to gain where kernels are short.
                run = self.compiler.run if self.compiler is not None else _call
                logits = run(self._forward, prepared)
            logits = logits[: len(prepared.order)]
            if not self._cuda:
                return Output(prepared.order, logits, None)
            host = torch.empty(logits.shape, dtype=logits.dtype, pin_memory=True)
            host.copy_(logits, non_blocking=True)
            done = torch.cuda.Event()
            done.record()
            return Output(prepared.order, host, done)

    def collect(self, output: Output) -> list[float]:
        with TorchErrors():
            if output.done is not None:
                output.done.synchronize()
            logits = np.empty(len(output.order), dtype=np.float32)
            logits[output.order] = output.logits.numpy()
            return logits.tolist()

    def close(self) -> None:
        if self.compiler is not None:
            self.compiler.close()
        self._encoder = None
        if self._graphs is not None:
            self._graphs.close()
        if self._cuda:
            torch.cuda.empty_cache()

    def _forward(self, prepared: Prepared) -> torch.Tensor:
        buffer = prepared.host.to(self._device, non_blocking=True)
        inputs = Inputs(*buffer.split(prepared.sizes))
        return self._encoder(inputs, prepared.attention or VarlenAttention(inputs.offsets, prepared.longest))

    def _synthetic(self) -> list[Callable[[], torch.Tensor]]:
        # A longest pair alone, and some of many lengths: sizes are tokens, and pairs in the last layer.
        batches = [[37], [37, 21, 11, 9, 5], [101, 97, 53, 29, 17, 7, 3]]
        limit = self._encoder.max_length
        return [
            partial(self._forward, self.prepare(made_up([min(length, limit) for length in lengths])))
            for lengths in batches
        ]

    def _forward_bucket(self, buffer: torch.Tensor, bucket: Bucket) -> torch.Tensor:
        sizes = (bucket.tokens, bucket.tokens, bucket.tokens, bucket.pairs, bucket.pairs + 1)
        inputs = Inputs(*buffer.split(sizes))
        return self._encoder(inputs, VarlenAttention(inputs.offsets, bucket.longest))


def _call(function: Callable[..., torch.Tensor], *arguments: Any) -> torch.Tensor:
    return function(*arguments)
