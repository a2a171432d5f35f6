"""The engine for what cannot be flattened (DeBERTa-v2, Albert, Electra, MPNet...): each batch padded to one length.

A transformers module in torch. On CUDA nothing waits before ``collect``: inputs are built in pinned memory and copied
while the device computes the batch before. Never called by two threads at once.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from rerank_worker.batching import padded_length
from rerank_worker.engine import EngineUnsupported, Pair
from rerank_worker.engine.compiling import TOLERANCE, Compiler, lengths_to_compile, made_up
from rerank_worker.engine.torch_errors import TorchErrors
from rerank_worker.loading.checkpoint import Checkpoint
from rerank_worker.loading.verify import DECODERS

Pending = tuple[torch.Tensor, Any]
"""Scores on the host, and the CUDA event after which they are there (None: they are)."""


def build(checkpoint: Checkpoint) -> "TorchPaddedEngine":
    """The engine for ``checkpoint``. Raises EngineUnsupported, or what loading raises."""
    if checkpoint.architecture in DECODERS:
        raise EngineUnsupported(f"{checkpoint.architecture} is asked with a prompt, which torch-decoder does")
    if checkpoint.config.get("auto_map"):
        raise EngineUnsupported("transformers has its weights only with the model's own code, which is never run")
    if checkpoint.precision not in ("float32", "float16", "bfloat16"):
        raise EngineUnsupported(f"padded batches are not computed in {checkpoint.precision}")
    compiler = Compiler(checkpoint.compile, checkpoint.device)
    module = checkpoint.module(getattr(torch, checkpoint.precision))
    if checkpoint.device != "cpu":
        # Moved in place: nobody else may find it.
        checkpoint.release()
        module = module.to(checkpoint.device)
    return TorchPaddedEngine(
        module,
        checkpoint.device,
        checkpoint.pad_token_id,
        checkpoint.takes_types,
        checkpoint.length_bucket,
        checkpoint.max_length,
        compiler,
    )


class TorchPaddedEngine:
    name = "torch-padded"
    padded = True

    def __init__(
        self,
        model: Any,
        device: str,
        pad_token_id: int,
        takes_types: bool,
        bucket: int,
        max_length: int,
        compiler: Compiler,
    ) -> None:
        self._model: Any = model
        self._device = torch.device(device)
        self.asynchronous = self._device.type == "cuda"
        self._pad = pad_token_id
        self._takes_types = takes_types
        self._bucket = bucket
        self._max_length = max_length
        self.compiler = compiler
        compiler.tolerance = TOLERANCE[model.dtype]
        compiler.wrap_layers(layers_of(model))
        compiler.synthetic = self._synthetic

    def prepare(self, pairs: Sequence[Pair]) -> dict[str, torch.Tensor]:
        """The module's inputs, each of shape (pairs, length); no mask where no row is padded."""
        lengths = [len(pair) for pair in pairs]
        longest = max(lengths)
        padded = min(lengths) < longest
        width = padded_length(longest, self._bucket, self._max_length) if padded else longest
        names = self._names(padded)
        with TorchErrors():
            host = host_tensor((len(names), len(pairs), width), self._device)
            tables = dict(zip(names, host.numpy(), strict=True))
            host.zero_()
            tables["input_ids"][:] = self._pad
            for row, pair in enumerate(pairs):
                tables["input_ids"][row, : len(pair)] = pair.ids
                if padded:
                    tables["attention_mask"][row, : len(pair)] = 1
                if self._takes_types:
                    tables["token_type_ids"][row, : len(pair)] = pair.types
            return dict(zip(names, host.to(self._device, non_blocking=True).unbind(), strict=True))

    def compute(self, prepared: dict[str, torch.Tensor]) -> Pending:
        with TorchErrors(), torch.inference_mode():
            return pending(self.compiler.run(self._forward, prepared))

    def collect(self, output: Pending) -> list[float]:
        with TorchErrors():
            return collect(output)

    def close(self) -> None:
        self.compiler.close()
        self._model = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _names(self, padded: bool) -> list[str]:
        others = ["attention_mask"] * padded + ["token_type_ids"] * self._takes_types
        return ["input_ids", *others]

    def _forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        return self._model(**inputs).logits[:, 0].float()

    def _synthetic(self) -> list[Callable[[], torch.Tensor]]:
        batches = [made_up(lengths) for lengths in lengths_to_compile(self._bucket, self._max_length)]
        return [partial(self._forward, self.prepare(pairs)) for pairs in batches]


def layers_of(model: Any) -> list[torch.nn.Module]:
    """The model's layers, which are compiled one by one; the module itself where its layers are not found."""
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) > 0]
    if not lists:
        return [model]
    return list(max(lists, key=lambda found: sum(parameter.numel() for parameter in found.parameters())))


def host_tensor(shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """An uninitialized int64 tensor on the host, pinned where ``device`` copies from it by itself.

    torch keeps pinned memory for later tensors, and does not reuse it before the copies from it have ended.
    """
    return torch.empty(shape, dtype=torch.int64, pin_memory=device.type == "cuda")


def pending(scores: torch.Tensor) -> Pending:
    """Start to bring ``scores`` to the host, as the last of this batch's work on the device's stream."""
    if scores.device.type != "cuda":
        return scores, None
    host = torch.empty(scores.shape, dtype=scores.dtype, pin_memory=True)
    host.copy_(scores, non_blocking=True)
    done = torch.cuda.Event()
    done.record()
    return host, done


def collect(output: Pending) -> list[float]:
    """Wait for this batch only: work of a later batch may be on the same stream already."""
    scores, done = output
    if done is not None:
        done.synchronize()
    return scores.tolist()
