"""Attention over packed tokens in groups of neighbouring pairs of like length: the CPU's way, and CUDA's in float32.

Pads within a group only, and masks what it padded: a token attends to its own pair and to nothing else. Never used
where varlen attention runs (attention_varlen).

Torch's flash attention for CPUs is slow on short sequences (measured: 3 times the arithmetic); three plain operations
over a group whose scores stay in the cache are faster up to about ``LONGEST`` tokens.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from rerank_worker.engine.torch_flat import packing

LONGEST = 200
"""Tokens of the longest pair that is grouped; longer ones go one by one through torch's flash attention."""

CELLS = 60_000
"""Scores of one head that a group computes at a time, at most: more fall out of the caches. This and ``LONGEST`` are
measured on the MiniLM shape, in CPU time: 256 tokens and 200,000 scores cost 6 % of the whole pass in float32."""

WASTE = 0.08
"""Padding in a group, at most, as a share of its tokens: more costs more than a further group."""

BLOCK = 128
"""Queries that see the same stretch of keys, in local attention over long pairs."""


@dataclass(frozen=True, slots=True)
class _Part:
    """``into``, ``back``: see packing.slots; ``padding``: (count, width), 0 or the lowest number; None where the group
    is even."""

    group: packing.Group
    into: torch.Tensor | None
    back: torch.Tensor | None
    padding: torch.Tensor | None


class GroupedAttention:
    """Attention for one packed batch. Queries come scaled."""

    def __init__(self, packed: packing.Packed, device: torch.device, dtype: torch.dtype) -> None:
        self._lowest = torch.finfo(dtype).min
        self._parts = [
            self._part(group, device, dtype) for group in packing.groups(packed.offsets, CELLS, WASTE, LONGEST)
        ]
        self._bands: dict[tuple[int, int, int, int], torch.Tensor] = {}

    def _part(self, group: packing.Group, device: torch.device, dtype: torch.dtype) -> _Part:
        if group.even:
            return _Part(group, None, None, None)
        into, back, filled = packing.slots(group)
        padding = torch.zeros(filled.shape, dtype=dtype).masked_fill_(torch.from_numpy(~filled), self._lowest)
        return _Part(group, torch.from_numpy(into).to(device), torch.from_numpy(back).to(device), padding.to(device))

    def all(self, qkv: torch.Tensor, window: int | None) -> torch.Tensor:
        """(tokens, 3, heads, size) -> (tokens, heads * size). ``window``: tokens that are seen to each side."""
        tokens, _, heads, size = qkv.shape
        out = qkv.new_empty(tokens, heads * size)
        # Of no pair; whatever memory held there could be no number.
        out[self._parts[-1].group.end :].zero_()
        for part in self._parts:
            group = part.group
            x = qkv[group.begin : group.end]
            target = out[group.begin : group.end]
            if group.width > LONGEST:
                target.view(-1, heads, size).copy_(self._long(x, window).transpose(0, 1))
                continue
            if part.into is not None:
                x = x.index_select(0, part.into)
            count, width = group.count, group.width
            q, k, v = x.view(count, width, 3, heads, size).permute(2, 0, 3, 1, 4).reshape(3, count * heads, width, size)
            scores = torch.bmm(q, k.transpose(1, 2))
            if part.padding is not None:
                scores.view(count, heads, width, width).add_(part.padding[:, None, None, :])
            if window is not None and width > window + 1:
                scores.add_(self._band(0, width, width, window, scores))
            mixed = torch.bmm(torch.softmax(scores, -1), v).view(count, heads, width, size).transpose(1, 2)
            if part.back is None:
                target.view(count, width, heads, size).copy_(mixed)
            else:
                torch.index_select(mixed.reshape(count * width, heads * size), 0, part.back, out=target)
        return out

    def first(self, q: torch.Tensor, kv: torch.Tensor, window: int | None) -> torch.Tensor:
        """What the first token of each pair attends to: (pairs, heads, size) and (tokens, 2, heads, size) ->
        (pairs, heads * size)."""
        pairs, heads, size = q.shape
        out = q.new_empty(pairs, heads * size)
        last = self._parts[-1].group
        out[last.first + last.count :].zero_()
        for part in self._parts:
            group = part.group
            x, padding = kv[group.begin : group.end], part.padding
            if part.into is not None:
                x = x.index_select(0, part.into)
            count = group.count
            x = x.view(count, group.width, 2, heads, size)
            if window is not None:
                x = x[:, : window + 1]
                padding = padding[:, : window + 1] if padding is not None else None
            seen = x.shape[1]
            k = x[:, :, 0].permute(0, 2, 3, 1).reshape(count * heads, size, seen)
            v = x[:, :, 1].transpose(1, 2).reshape(count * heads, seen, size)
            own = q[group.first : group.first + count].reshape(count * heads, 1, size)
            scores = torch.bmm(own, k)
            if padding is not None:
                scores.view(count, heads, seen).add_(padding[:, None, :])
            out[group.first : group.first + count] = torch.bmm(torch.softmax(scores, -1), v).view(count, heads * size)
        return out

    def _long(self, qkv: torch.Tensor, window: int | None) -> torch.Tensor:
        """One pair: (tokens, 3, heads, size) -> (heads, tokens, size)."""
        q, k, v = qkv.permute(1, 2, 0, 3).unsqueeze(1)
        tokens = q.shape[2]
        if window is None or tokens <= window + 1:
            return F.scaled_dot_product_attention(q, k, v, scale=1.0)[0]
        blocks = []
        for begin in range(0, tokens, BLOCK):
            end = min(begin + BLOCK, tokens)
            low, high = max(0, begin - window), min(tokens, end + window)
            band = self._band(begin - low, end - begin, high - low, window, q)
            keys, values = k[:, :, low:high], v[:, :, low:high]
            blocks.append(F.scaled_dot_product_attention(q[:, :, begin:end], keys, values, band, scale=1.0)[0])
        return torch.cat(blocks, 1)

    def _band(self, shift: int, queries: int, keys: int, window: int, like: torch.Tensor) -> torch.Tensor:
        """(queries, keys): 0 where query ``i + shift`` and key j are at most ``window`` apart, else the lowest."""
        key = (shift, queries, keys, window)
        if key not in self._bands:
            rows = torch.arange(shift, shift + queries, device=like.device)
            columns = torch.arange(keys, device=like.device)
            apart = (rows[:, None] - columns).abs() > window
            self._bands[key] = like.new_zeros(queries, keys).masked_fill_(apart, self._lowest)
        return self._bands[key]
