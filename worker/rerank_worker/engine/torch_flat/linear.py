"""Linear layers: the seam at which a precision is chosen, and what computes them in float32, bfloat16 and float16.

The forward pass calls these operations and no other matrix product outside attention. A layer never looks at
where one pair ends: row i of the result depends on row i of the input only.
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F


class Dense(Protocol):
    """x of shape (tokens, inputs) times the transposed weight (outputs, inputs), plus bias. No operation changes x or
    the residual."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x W^T + b."""
        ...

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        """gelu(x W^T + b), the exact one (erf)."""
        ...

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """x W^T + b + residual."""
        ...

    def feed(self, x: torch.Tensor, outer: "Dense", residual: torch.Tensor) -> torch.Tensor:
        """outer(gelu(x W^T + b)) + residual: a feed-forward block, of which this is the first layer."""
        return outer.add(self.gelu(x), residual)


Factory = Callable[[str, torch.Tensor, torch.Tensor | None], Dense]
"""``dense(site, weight, bias)``: site names the place, such as ``layers.3.ffn_in``; the weight is (outputs, inputs) on
the device and in the dtype of the model. A layer may keep what it is given; it must not change it."""


class PlainDense(Dense):
    """F.linear, wherever torch runs."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self._weight, self._bias)

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        return F.gelu(F.linear(x, self._weight, self._bias))

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self._weight, self._bias).add_(residual)


PACKED_FOR = 1024
"""Tokens that oneDNN's layout of a weight is chosen for; any other number works too."""


class PackedDense(Dense):
    """oneDNN with the weight in its own layout and what follows the product fused: a tenth faster than F.linear in
    float32 and GELU nearly free (measured on AVX-512). The operations are those that torch.compile emits on a CPU
    (torch/_inductor/mkldnn_ir.py)."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        ops: Any = torch.ops.mkldnn
        self._linear, self._binary = ops._linear_pointwise.default, ops._linear_pointwise.binary
        self._weight = ops._reorder_linear_weight(weight.contiguous(), PACKED_FOR)
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._linear(x, self._weight, self._bias, "none", [], "")

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        return self._linear(x, self._weight, self._bias, "gelu", [], "none")

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self._binary(x, residual, self._weight, self._bias, "add")


def plain(site: str, weight: torch.Tensor, bias: torch.Tensor | None) -> Dense:
    return PlainDense(weight, bias)


def packed(site: str, weight: torch.Tensor, bias: torch.Tensor | None) -> Dense:
    return PackedDense(weight, bias)


def fastest(device: torch.device, dtype: torch.dtype) -> Factory:
    """The factory for layers in ``dtype`` on ``device``."""
    return packed if device.type == "cpu" and can_pack(dtype) else plain


@functools.cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this build of torch and this CPU have oneDNN's packed layers for ``dtype``, by trying one."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    weight, x = torch.eye(16, dtype=dtype), torch.arange(32, dtype=dtype).view(2, 16)
    try:
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        dense = PackedDense(weight, None)
        return bool(torch.equal(dense(x), x) and torch.equal(dense.add(x, x), x + x))
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
