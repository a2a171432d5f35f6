"""The plain engine: a transformers model in torch, each batch padded to one length.

Right for every architecture whose forward honours an attention mask. Never called by two threads at once.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rerank_worker.batching import Policy
from rerank_worker.engine import EngineLost, EngineOutOfMemory, Pair


class TorchPaddedEngine:
    def __init__(self, model: Any, device: str, pad_token_id: int, takes_types: bool, policy: Policy) -> None:
        self._model = model
        self._device = torch.device(device)
        self._pad = pad_token_id
        self._takes_types = takes_types
        self._policy = policy

    def prepare(self, pairs: Sequence[Pair]) -> dict[str, torch.Tensor]:
        width = self._policy.padded(max(len(pair) for pair in pairs))
        ids = np.full((len(pairs), width), self._pad, dtype=np.int64)
        mask = np.zeros_like(ids)
        types = np.zeros_like(ids)
        for row, pair in enumerate(pairs):
            ids[row, : len(pair)] = pair.ids
            types[row, : len(pair)] = pair.types
            mask[row, : len(pair)] = 1
        inputs = {"input_ids": ids, "attention_mask": mask} | ({"token_type_ids": types} if self._takes_types else {})
        with _TorchErrors():
            return {name: torch.from_numpy(array).to(self._device) for name, array in inputs.items()}

    def compute(self, prepared: dict[str, torch.Tensor]) -> torch.Tensor:
        with _TorchErrors(), torch.inference_mode():
            return self._model(**prepared).logits[:, 0].float()

    def collect(self, output: torch.Tensor) -> list[float]:
        with _TorchErrors():
            return output.cpu().tolist()


class _TorchErrors:
    """Translates torch's memory and device errors into the seam's."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            return
        if is_out_of_memory(error):
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            raise EngineOutOfMemory(str(error).splitlines()[0]) from error
        # A CUDA error other than memory leaves the context unusable: every later call fails the same way.
        if isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error):
            raise EngineLost(str(error).splitlines()[0]) from error


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA raises its own class; the CPU allocator raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
