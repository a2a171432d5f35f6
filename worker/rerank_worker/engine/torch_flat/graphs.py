"""CUDA graphs over buckets of tokens and pairs: a small batch's hundreds of kernels start as one.

Which bucket a batch has and what fills it up are functions of its lengths. A dummy pair fills up tokens that no real
pair has; its score is never read. Large batches keep the device busy without and run as they are.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rerank_worker.engine.device import CAPTURING
from rerank_worker.engine.torch_flat.packing import Packed

log = logging.getLogger(__name__)

MAX_TOKENS = 8_192
"""Larger batches compute for longer than their kernels take to start."""

TOKEN_STEP = 256
PAIRS = (8, 16, 32, 64, 128, 256)
"""With dummies."""

LONGEST = (64, 128, 256, 512, 1_024, 2_048, 4_096, 8_192)

GRAPHS = 64
"""Captured at most; each keeps some MiB for its kernels' arguments."""

SEEN = 2
"""Batches of a bucket that run without a graph before it is captured, which takes tens of milliseconds."""

FAILURES = 3
"""Failed captures after which an engine tries no more. One may fail for what another thread did meanwhile."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """``tokens`` and ``pairs`` are exact after filling up; ``longest`` is an upper bound."""

    tokens: int
    pairs: int
    longest: int


def bucket(packed: Packed) -> Bucket | None:
    """The smallest bucket that ``packed`` fits in; None: it is too large for a graph."""
    real, longest = len(packed.ids), int(packed.lengths.max())
    bound = next((bound for bound in LONGEST if bound >= longest), None)
    tokens = -(-real // TOKEN_STEP) * TOKEN_STEP
    if bound is None or tokens > MAX_TOKENS:
        return None
    dummies = -(-(tokens - real) // bound)
    pairs = next((pairs for pairs in PAIRS if pairs >= len(packed.order) + dummies), None)
    return None if pairs is None else Bucket(tokens, pairs, bound)


def filled(packed: Packed, bucket: Bucket) -> Packed:
    """``packed`` with dummy pairs behind the real ones, none longer than ``bucket.longest``; ``order`` has the real
    ones only. Pairs beyond those that the tokens need are without tokens. Dummy tokens are all at position 0, which
    every table has."""
    real, count = len(packed.ids), len(packed.order)
    missing = bucket.tokens - real
    offsets = np.full(bucket.pairs + 1, bucket.tokens, dtype=np.int32)
    offsets[: count + 1] = packed.offsets
    ends = np.arange(real + bucket.longest, bucket.tokens, bucket.longest, dtype=np.int32)
    offsets[count + 1 : count + 1 + len(ends)] = ends
    zeros = np.zeros(missing, dtype=np.int32)
    return Packed(
        packed.order,
        offsets,
        np.concatenate([packed.ids, zeros]),
        np.concatenate([packed.types, zeros]),
        np.concatenate([packed.positions, zeros]),
    )


class Graphs:
    """Runs ``forward(buffer, bucket)`` on the current CUDA device, from a graph once a bucket has been seen often.

    ``forward`` reads its inputs from ``buffer`` (int32 on the device), neither allocates on the host nor waits.
    """

    def __init__(self, forward: Callable[[torch.Tensor, Bucket], torch.Tensor]) -> None:
        self._forward = forward
        self._seen: dict[Bucket, int] = {}
        self._captured: dict[Bucket, tuple[Any, torch.Tensor, torch.Tensor]] = {}
        self._pool: Any = None
        self._stream: Any = None
        self._failures = 0

    def run(self, host: torch.Tensor, bucket: Bucket) -> torch.Tensor:
        """``forward`` of what is in ``host``, which is pinned; the result is valid until the next call.

        What cannot be captured runs without a graph, after ``FAILURES`` failed captures everything that has none.
        """
        if bucket not in self._captured and not self._try_to_capture(host, bucket):
            return self._forward(host.to("cuda", non_blocking=True), bucket)
        graph, buffer, result = self._captured[bucket]
        buffer.copy_(host, non_blocking=True)
        graph.replay()
        return result

    def _try_to_capture(self, host: torch.Tensor, bucket: Bucket) -> bool:
        """Whether there is a graph for ``bucket`` now."""
        self._seen[bucket] = self._seen.get(bucket, 0) + 1
        if self._failures >= FAILURES or self._seen[bucket] <= SEEN or len(self._captured) >= GRAPHS:
            return False
        if not CAPTURING.acquire(blocking=False):
            # With the next batch, perhaps.
            return False
        try:
            self._captured[bucket] = self._capture(host, bucket)
        except RuntimeError as error:
            # For want of memory too, since a graph needs its own; a device that is lost fails in the next line again.
            self._failures += 1
            log.warning("a CUDA graph could not be captured", extra={"fields": {"error": str(error)[:200]}})
            return False
        finally:
            CAPTURING.release()
        return True

    def _capture(self, host: torch.Tensor, bucket: Bucket) -> tuple[Any, torch.Tensor, torch.Tensor]:
        buffer = host.to("cuda")
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        # One for all captures: the allocator keeps what it has freed for the stream that it was allocated on.
        self._stream = self._stream or torch.cuda.Stream()
        # As torch's documentation asks: once on a side stream before capturing, for what libraries allocate lazily.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._forward(buffer, bucket)
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads of the process (other models, the compiler) may use the device meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            result = self._forward(buffer, bucket)
        return graph, buffer, result

    def close(self) -> None:
        self._captured.clear()
        self._pool = self._stream = None
