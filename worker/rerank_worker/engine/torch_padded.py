"""The plain engine: a transformers model in torch, each batch padded to one length.

Right for every architecture whose forward honours an attention mask. Never called by two threads at once.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rerank_worker.batching import padded_length
from rerank_worker.engine import EngineUnsupported, Pair
from rerank_worker.engine.torch_errors import TorchErrors
from rerank_worker.loading.checkpoint import Checkpoint


def build(checkpoint: Checkpoint) -> "TorchPaddedEngine":
    """The engine for ``checkpoint``. Raises EngineUnsupported, or what loading raises."""
    if checkpoint.precision not in ("float32", "float16", "bfloat16"):
        raise EngineUnsupported(f"padded batches are not computed in {checkpoint.precision}")
    module = checkpoint.module(getattr(torch, checkpoint.precision)).to(checkpoint.device)
    return TorchPaddedEngine(
        module,
        checkpoint.device,
        checkpoint.pad_token_id,
        checkpoint.takes_types,
        checkpoint.length_bucket,
        checkpoint.max_length,
    )


class TorchPaddedEngine:
    name = "torch-padded"
    padded = True

    def __init__(
        self, model: Any, device: str, pad_token_id: int, takes_types: bool, bucket: int, max_length: int
    ) -> None:
        self._model: Any = model
        self._device = torch.device(device)
        self._pad = pad_token_id
        self._takes_types = takes_types
        self._bucket = bucket
        self._max_length = max_length

    def prepare(self, pairs: Sequence[Pair]) -> dict[str, torch.Tensor]:
        width = padded_length(max(len(pair) for pair in pairs), self._bucket, self._max_length)
        ids = np.full((len(pairs), width), self._pad, dtype=np.int64)
        mask = np.zeros_like(ids)
        types = np.zeros_like(ids)
        for row, pair in enumerate(pairs):
            ids[row, : len(pair)] = pair.ids
            types[row, : len(pair)] = pair.types
            mask[row, : len(pair)] = 1
        inputs = {"input_ids": ids, "attention_mask": mask} | ({"token_type_ids": types} if self._takes_types else {})
        with TorchErrors():
            return {name: torch.from_numpy(array).to(self._device) for name, array in inputs.items()}

    def compute(self, prepared: dict[str, torch.Tensor]) -> torch.Tensor:
        with TorchErrors(), torch.inference_mode():
            return self._model(**prepared).logits[:, 0].float()

    def collect(self, output: torch.Tensor) -> list[float]:
        with TorchErrors():
            return output.cpu().tolist()

    def close(self) -> None:
        self._model = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
