"""Attention over packed tokens by torch's varlen kernel: CUDA in float16 and bfloat16.

One kernel for all pairs, bounded by cumulative lengths: a token attends to its own pair and to nothing else. Split-KV
is off, so that a pair's result does not depend on the longest pair beside it (torch.nn.attention.varlen, num_splits).
"""

from typing import Any

import torch


def supports(device: torch.device, dtype: torch.dtype, size: int) -> str | None:
    """Why heads of ``size`` cannot be computed by it; None when they can. As pytorch's sdp_utils.cpp has it."""
    if device.type != "cuda":
        return "varlen attention is for CUDA"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"varlen attention is not for {dtype}"
    if size % 8 or size > 256:
        return f"varlen attention is not for heads of {size}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "varlen attention needs compute capability 8.0"
    return None


class VarlenAttention:
    """Attention for one packed batch. Queries come scaled.

    ``offsets``: (pairs + 1,), int32, on the device; ``longest``: tokens of the longest pair, or more.
    """

    def __init__(self, offsets: torch.Tensor, longest: int) -> None:
        self._offsets = offsets
        self._longest = longest

    def all(self, qkv: torch.Tensor, window: int | None) -> torch.Tensor:
        """(tokens, 3, heads, size) -> (tokens, heads * size). ``window``: tokens that are seen to each side."""
        from torch.nn.attention.varlen import varlen_attn

        q, k, v = qkv.unbind(1)
        sides = (-1, -1) if window is None else (window, window)
        out: Any = varlen_attn(
            q,
            k,
            v,
            self._offsets,
            self._offsets,
            self._longest,
            self._longest,
            scale=1.0,
            window_size=sides,
            num_splits=1,
        )
        return out.flatten(1)

    def first(self, q: torch.Tensor, kv: torch.Tensor, window: int | None) -> torch.Tensor:
        """What the first token of each pair attends to: (pairs, heads, size) and (tokens, 2, heads, size) ->
        (pairs, heads * size).

        A window is given as the number of keys used: with one query the kernel would align a window to the last key.
        """
        from torch.nn.attention.varlen import varlen_attn

        k, v = kv.unbind(1)
        singles = torch.arange(len(q) + 1, dtype=torch.int32, device=q.device)
        used = None if window is None else self._offsets.diff().clamp_(max=window + 1)
        out: Any = varlen_attn(
            q, k, v, singles, self._offsets, 1, self._longest, scale=1.0, seqused_k=used, num_splits=1
        )
        return out.flatten(1)
