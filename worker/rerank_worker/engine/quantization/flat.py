"""The flat engine in int8 or float8: its encoder, with layers made here. Calibrates int8 on the way.

Never compiled: the layers are kernels already.
"""

from typing import Any

import torch

from rerank_worker.engine import EngineUnsupported
from rerank_worker.engine.quantization import float8, int8, sample
from rerank_worker.engine.quantization.observe import Observations, observing
from rerank_worker.engine.quantization.quality import scored
from rerank_worker.engine.torch_flat import linear
from rerank_worker.engine.torch_flat.architectures import describe
from rerank_worker.engine.torch_flat.encoder import Encoder
from rerank_worker.engine.torch_flat.engine import TorchFlatEngine
from rerank_worker.loading.checkpoint import Checkpoint


def build(checkpoint: Checkpoint) -> Any:
    """The engine for ``checkpoint``, whose precision is int8 or float8. Raises EngineUnsupported, or what loading
    raises."""
    return _int8(checkpoint) if checkpoint.precision == "int8" else _float8(checkpoint)


def _int8(checkpoint: Checkpoint) -> TorchFlatEngine:
    if checkpoint.device != "cpu":
        raise EngineUnsupported("int8 is computed on the CPU only: set spec.runtime.precision to float16 or to auto")
    reason = int8.unsupported()
    if reason is not None:
        raise EngineUnsupported(f"int8: {reason}: set spec.runtime.precision to float32 or to auto")
    described = describe(checkpoint, torch.float32)
    device, dtype = torch.device("cpu"), torch.float32
    plain = linear.fastest(device, dtype)
    observations = Observations()
    observed = Encoder(described, observing(observations, linear.plain), device, dtype, checkpoint.max_length)
    scored(TorchFlatEngine(observed, checkpoint.takes_types), sample.calibration(checkpoint))
    del observed
    layers = int8.calibrated(observations, plain)
    return TorchFlatEngine(Encoder(described, layers, device, dtype, checkpoint.max_length), checkpoint.takes_types)


def _float8(checkpoint: Checkpoint) -> TorchFlatEngine:
    found = torch.cuda.get_device_capability() if checkpoint.device == "cuda" else None
    reason = float8.unsupported(checkpoint.device, found)
    if reason is not None:
        raise EngineUnsupported(reason)
    described = describe(checkpoint, torch.bfloat16)
    device, dtype = torch.device("cuda"), torch.bfloat16
    layers = float8.layers(linear.plain)
    return TorchFlatEngine(Encoder(described, layers, device, dtype, checkpoint.max_length), checkpoint.takes_types)
