"""The flat engine: the tokens of all pairs of a batch in one matrix, nothing padded but within attention.

Linear layers, norms and activations do not care where one pair ends and the next begins; only attention does. Built
from a checkpoint's weights, which it repacks: one copy stays when the checkpoint is released.
"""

from typing import Any

from rerank_worker.loading.checkpoint import Checkpoint


def build(checkpoint: Checkpoint) -> Any:
    """The engine for ``checkpoint``. Raises EngineUnsupported, or what loading raises."""
    import torch

    from rerank_worker.engine import EngineUnsupported
    from rerank_worker.engine.compiling import Compiler
    from rerank_worker.engine.torch_flat import linear
    from rerank_worker.engine.torch_flat.architectures import describe
    from rerank_worker.engine.torch_flat.encoder import Encoder
    from rerank_worker.engine.torch_flat.engine import TorchFlatEngine

    if checkpoint.precision in ("int8", "float8"):
        from rerank_worker.engine.quantization import flat

        return flat.build(checkpoint)
    if checkpoint.precision not in ("float32", "float16", "bfloat16"):
        raise EngineUnsupported(f"flat batches are not computed in {checkpoint.precision}")
    device, dtype = torch.device(checkpoint.device), getattr(torch, checkpoint.precision)
    described = describe(checkpoint, dtype)
    compiler = Compiler(checkpoint.compile, checkpoint.device)
    # oneDNN's packed weights are not for compiled code.
    dense = linear.plain if compiler.enabled else linear.fastest(device, dtype)
    encoder = Encoder(described, dense, device, dtype, checkpoint.max_length, compiler.wrap)
    return TorchFlatEngine(encoder, checkpoint.takes_types, compiler)
