"""Decoder rerankers (Qwen3-Reranker): the score is read off the last token of a prompt that ends in the answer's turn.

Batches are padded at their end and without a mask: no token sees a later one, so what a row's padding holds cannot
change its score. Of the language-model head only the rows of the answers are kept: no logits of a vocabulary. Never
called by two threads at once.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from rerank_worker.batching import padded_length
from rerank_worker.engine import EngineUnsupported, Pair
from rerank_worker.engine.compiling import TOLERANCE, Compiler, lengths_to_compile, made_up
from rerank_worker.engine.torch_errors import TorchErrors
from rerank_worker.engine.torch_padded import Pending, collect, host_tensor, pending
from rerank_worker.loading.checkpoint import Checkpoint
from rerank_worker.loading.verify import DECODERS


def build(checkpoint: Checkpoint) -> "TorchDecoderEngine":
    """The engine for ``checkpoint``. Raises EngineUnsupported, or what loading raises."""
    prompt = checkpoint.prompt
    if checkpoint.architecture not in DECODERS or prompt is None:
        raise EngineUnsupported(f"{checkpoint.architecture} is not a decoder with a prompt")
    if checkpoint.precision not in ("float32", "float16", "bfloat16"):
        raise EngineUnsupported(f"decoders are not computed in {checkpoint.precision}")
    compiler = Compiler(checkpoint.compile, checkpoint.device)
    module = checkpoint.module(getattr(torch, checkpoint.precision))
    rows = answer_rows(module, prompt.yes, prompt.no)
    checkpoint.release()
    decoder = module.model.to(checkpoint.device)
    del module
    return TorchDecoderEngine(
        decoder,
        rows.to(checkpoint.device),
        checkpoint.device,
        checkpoint.length_bucket,
        checkpoint.max_length,
        compiler,
    )


def answer_rows(module: Any, yes: int | None, no: int | None) -> torch.Tensor:
    """The rows of the head that make the score, shape (1 or 2, hidden), float32; a second one is subtracted."""
    if yes is None:
        return module.score.weight.detach().float().clone()
    rows = [yes] if no is None else [yes, no]
    return module.lm_head.weight.detach()[rows].float().clone()


class TorchDecoderEngine:
    name = "torch-decoder"
    padded = True

    def __init__(
        self, decoder: Any, rows: torch.Tensor, device: str, bucket: int, max_length: int, compiler: Compiler
    ) -> None:
        self._decoder: Any = decoder
        self._rows = rows
        self._device = torch.device(device)
        self.asynchronous = self._device.type == "cuda"
        self._bucket = bucket
        self._max_length = max_length
        self.compiler = compiler
        compiler.tolerance = TOLERANCE[decoder.dtype]
        compiler.wrap_layers(decoder.layers)
        compiler.synthetic = self._synthetic

    def prepare(self, pairs: Sequence[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids, shape (pairs, length), and the place of each row's last token."""
        lengths = [len(pair) for pair in pairs]
        longest = max(lengths)
        width = longest if min(lengths) == longest else padded_length(longest, self._bucket, self._max_length)
        with TorchErrors():
            host = host_tensor((len(pairs), width + 1), self._device)
            table = host.numpy()
            # Any token will do: nobody sees what follows a row's last one.
            table[:] = 0
            for row, pair in enumerate(pairs):
                table[row, : len(pair)] = pair.ids
                table[row, width] = len(pair) - 1
            moved = host.to(self._device, non_blocking=True)
            return moved[:, :width], moved[:, width]

    def compute(self, prepared: tuple[torch.Tensor, torch.Tensor]) -> Pending:
        with TorchErrors(), torch.inference_mode():
            return pending(self.compiler.run(self._forward, *prepared))

    def collect(self, output: Pending) -> list[float]:
        with TorchErrors():
            return collect(output)

    def close(self) -> None:
        self.compiler.close()
        self._decoder = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _forward(self, ids: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        hidden = self._decoder(input_ids=ids, use_cache=False).last_hidden_state
        answers = hidden[torch.arange(len(ids), device=ids.device), last].float() @ self._rows.T
        return answers[:, 0] if answers.shape[1] == 1 else answers[:, 0] - answers[:, 1]

    def _synthetic(self) -> list[Callable[[], torch.Tensor]]:
        batches = [made_up(lengths) for lengths in lengths_to_compile(self._bucket, self._max_length)]
        return [partial(self._forward, *self.prepare(pairs)) for pairs in batches]
