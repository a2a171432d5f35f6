"""torch's memory and device errors as the seam's: what a batch may be split for, and what only a new process mends."""

from typing import Any

import torch

from rerank_worker.engine import EngineLost, EngineOutOfMemory
from rerank_worker.failures import first_line

_NO_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
"""What the CPU's allocator says, CUDA's runtime (kernels, pinned memory) and its libraries (cuBLAS, cuDNN): they have
no class of their own for it, and leave a CUDA context as it was."""


class TorchErrors:
    """A context in which torch's errors become EngineOutOfMemory and EngineLost."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            return
        if is_out_of_memory(error):
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            raise EngineOutOfMemory(first_line(error)) from error
        # A CUDA error other than memory leaves the context unusable: every later call fails the same way.
        if isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error):
            raise EngineLost(first_line(error)) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the device or of the host: a smaller batch may do."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _NO_MEMORY)
    )
