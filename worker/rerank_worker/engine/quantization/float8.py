"""Linear layers in float8 (e4m3) on CUDA: weights with a scale for each output, activations with one for each token.

Scales of a token come from that token alone, so there is nothing to calibrate and a pair does not feel its neighbours.
Needs compute capability 8.9; what is between the layers is bfloat16, the only output of row-wise scaled products.
"""

import torch
import torch.nn.functional as F

from rerank_worker.engine.device import FLOAT8_CAPABILITY
from rerank_worker.engine.torch_flat.linear import Dense, Factory

LARGEST = 448.0
"""Of e4m3."""

SMALLEST = 1e-12
MULTIPLE = 16
"""Both sizes of a weight must be multiples of it (torch._scaled_mm)."""


class Float8Dense(Dense):
    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        values, scales = by_row(weight)
        # The second factor is column-major: the transposed view of (outputs, inputs).
        self._weight, self._scales = values.t(), scales.t().contiguous()
        self._bias = None if bias is None else bias.to(torch.bfloat16)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        values, scales = by_row(x)
        return torch._scaled_mm(
            values, self._weight, scales, self._scales, bias=self._bias, out_dtype=torch.bfloat16, use_fast_accum=True
        )

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(self(x))

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self(x).add_(residual)


def by_row(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``x`` (rows, columns) in e4m3, and the (rows, 1) float32 scales that it is to be multiplied by."""
    scales = x.abs().amax(1, keepdim=True).float().div_(LARGEST).clamp_(min=SMALLEST)
    return (x.float() / scales).clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scales


def fits(outputs: int, inputs: int) -> bool:
    """Whether a weight of this shape can be multiplied in float8."""
    return outputs % MULTIPLE == 0 and inputs % MULTIPLE == 0


def layers(fallback: Factory) -> Factory:
    """The factory; a weight whose sizes do not fit comes from ``fallback``."""

    def dense(site: str, weight: torch.Tensor, bias: torch.Tensor | None) -> Dense:
        return Float8Dense(weight, bias) if fits(*weight.shape) else fallback(site, weight, bias)

    return dense


def unsupported(device: str, capability: tuple[int, int] | None) -> str | None:
    """Why float8 cannot be computed; None: it can. ``capability``: of the GPU, None without one."""
    if device != "cuda" or capability is None:
        return "float8 is computed on CUDA only: set spec.runtime.precision to int8 on the CPU, or to auto"
    if capability < FLOAT8_CAPABILITY:
        return (
            f"float8 needs a GPU of compute capability 8.9 or higher, this one has {capability[0]}.{capability[1]}: "
            "set spec.runtime.precision to auto"
        )
    return None
