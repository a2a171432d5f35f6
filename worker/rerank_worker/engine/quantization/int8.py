"""Linear layers in int8 on the CPU: unsigned activations, signed weights with a scale for each output, exact sums.

Most rows are quantized with one range a site, found by calibration, so that scaling, bias and GELU are fused into the
product. A row that does not fit the range gets a scale of its own and is computed apart. So a row's result depends on
that row only, and nothing is ever clipped. Never used where the processor's sums saturate.
"""

import functools
import warnings
from typing import Any

import torch
import torch.nn.functional as F

from rerank_worker.engine.quantization.observe import Observations
from rerank_worker.engine.torch_flat.linear import PACKED_FOR, Dense, Factory
from rerank_worker.failures import first_line

STEPS = 253
"""Of the 255 between the least and the largest byte: those two say that a value does not fit the range, which is found
out in a quarter of the memory that the values take (measured: a tenth of a wide layer's time)."""

SMALLEST = 1e-9
"""Least scale: a site or a row of zeros has none of its own."""

ROW_STEP = 32
"""Rows that do not fit are computed in multiples of it: oneDNN makes a product up anew for each number of rows."""


class Int8Dense(Dense):
    """``low``, ``high``: the range of inputs that share a scale, with low <= 0 <= high."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, low: float, high: float) -> None:
        scales = (weight.abs().amax(1).float() / 127).clamp_(min=SMALLEST)
        whole = (weight / scales[:, None]).round_().clamp_(-127, 127).to(torch.int8)
        self._operation: Any = torch.ops.onednn.qlinear_pointwise.default
        self._weight = torch.ops.onednn.qlinear_prepack(whole, [PACKED_FOR, weight.shape[1]])
        self._scales, self._zeros = scales, torch.zeros(len(scales), dtype=torch.int32)
        self._bias = bias
        self._scale = max((high - low) / STEPS, SMALLEST)
        self._zero = 1 + min(STEPS, max(0, round(-low / self._scale)))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._apply(x, "none")

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        return self._apply(x, "gelu")

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self._apply(x, "none").add_(residual)

    def feed(self, x: torch.Tensor, outer: Dense, residual: torch.Tensor) -> torch.Tensor:
        """What is between the layers is never in float32: a quarter of the memory, and nothing to quantize."""
        if not isinstance(outer, Int8Dense):
            return super().feed(x, outer, residual)
        whole = quantized(x, self._scale, self._zero)
        inner = self._product(
            whole, self._scale, self._zero, self._bias, "gelu", (outer._scale, outer._zero, torch.uint8)
        )
        y = outer._product(inner, outer._scale, outer._zero, outer._bias, "none")
        outside = _rows(_overflows(whole) | _overflows(inner))
        if len(outside):
            rows = self._by_row(x.index_select(0, outside), "gelu")
            y.index_copy_(0, outside, outer._by_row(rows, "none"))
        return y.add_(residual)

    def _apply(self, x: torch.Tensor, after: str) -> torch.Tensor:
        whole = quantized(x, self._scale, self._zero)
        y = self._product(whole, self._scale, self._zero, self._bias, after)
        outside = _rows(_overflows(whole))
        if len(outside):
            y.index_copy_(0, outside, self._by_row(x.index_select(0, outside), after))
        return y

    def _by_row(self, x: torch.Tensor, after: str) -> torch.Tensor:
        largest = x.abs().amax(1, keepdim=True).clamp_(min=SMALLEST)
        y = self._product(quantized(x / largest, 1 / 127, 128), 1 / 127, 128, None, "none").mul_(largest)
        if self._bias is not None:
            y.add_(self._bias)
        return F.gelu(y) if after == "gelu" else y

    def _product(
        self,
        x: torch.Tensor,
        scale: float,
        zero: int,
        bias: torch.Tensor | None,
        after: str,
        into: tuple[float, int, torch.dtype] = (1.0, 0, torch.float32),
    ) -> torch.Tensor:
        """``into``: the result's scale, zero and dtype."""
        return self._operation(x, scale, zero, self._weight, self._scales, self._zeros, bias, *into, after, [], "none")


def _overflows(whole: torch.Tensor) -> torch.Tensor:
    """For each row, whether a value of it did not fit the range."""
    # 255 wraps to 0, so one look finds both ends.
    return (whole + 1).amin(1) <= 1


def _rows(which: torch.Tensor) -> torch.Tensor:
    """Their indices, some more than once: a multiple of ``ROW_STEP``."""
    found = which.nonzero()[:, 0]
    missing = -len(found) % ROW_STEP
    return torch.cat((found, found[-1:].expand(missing))) if len(found) and missing else found


def quantized(x: torch.Tensor, scale: float, zero: int) -> torch.Tensor:
    """``x`` (float32) as uint8: round(x / scale) + zero, clamped to 0..255."""
    # int_repr() would copy; the bytes of the quantized tensor are the same.
    whole = torch.quantize_per_tensor(x, scale, zero, torch.quint8)
    return torch.empty(0, dtype=torch.uint8).set_(whole.untyped_storage(), 0, whole.shape, whole.stride())


def calibrated(observations: Observations, fallback: Factory) -> Factory:
    """The factory for the sites of ``observations``; those that see few rows come from ``fallback``: they cost little
    and stand next to the score."""

    def dense(site: str, weight: torch.Tensor, bias: torch.Tensor | None) -> Dense:
        if not observations.mostly(site):
            return fallback(site, weight, bias)
        return Int8Dense(weight, bias, *observations.range(site))

    return dense


@functools.cache
def unsupported() -> str | None:
    """Why this machine cannot compute in int8; None: it can. Found by trying the largest sums.

    Processors without VNNI add products in 16 bits and saturate: wrong results, not only slow ones (oneDNN's manual,
    "Nuances of int8 computations").
    """
    capability = torch.backends.cpu.get_cpu_capability()
    if not torch.backends.mkldnn.is_available():
        return f"this build of torch has no oneDNN (CPU capability {capability})"
    weight, x = torch.full((16, 64), 127.0), torch.full((16, 64), 255.0)
    try:
        with warnings.catch_warnings():
            # torch says once a process that quantized tensors will go; the version is pinned.
            warnings.simplefilter("ignore")
            found = Int8Dense(weight, None, 0.0, 255.0)(x)
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        return f"oneDNN has no int8 product here (CPU capability {capability}): {first_line(error)}"
    if not torch.allclose(found, F.linear(x, weight), rtol=1e-5):
        return f"the processor's 8-bit sums saturate: it lacks VNNI (CPU capability {capability})"
    return None
