"""The forward pass over packed tokens: one for BERT, RoBERTa, XLM-R, jina-reranker-v2 and ModernBERT.

Linear layers come from a factory (linear.Factory), attention from outside: nothing here knows where a pair ends but by
the first tokens' indices and the offsets. A model that is scored by its first token computes in its last layer only
what that token needs: keys and values of all tokens, and one row a pair after attention.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

from rerank_worker.engine.torch_flat.architectures import Described, Layer, Matrix, Norm
from rerank_worker.engine.torch_flat.linear import Dense, Factory
from rerank_worker.engine.torch_flat.packing import Ints, Packed, skipping


class Attention(Protocol):
    """See attention_grouped and attention_varlen."""

    def all(self, qkv: torch.Tensor, window: int | None) -> torch.Tensor: ...

    def first(self, q: torch.Tensor, kv: torch.Tensor, window: int | None) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class Inputs:
    """int32 on the device. ``ids``, ``rows``, ``positions``: (tokens,), which may be more than the pairs have, ``rows``
    those of the table of positions and types; ``first``: index of each pair's first token, which may be more too;
    ``offsets``: (pairs + 1,)."""

    ids: torch.Tensor
    rows: torch.Tensor
    positions: torch.Tensor
    first: torch.Tensor
    offsets: torch.Tensor


class _LayerNorm:
    def __init__(self, norm: Norm, device: torch.device, dtype: torch.dtype) -> None:
        self._weight = norm.weight.to(device, dtype)
        self._bias = None if norm.bias is None else norm.bias.to(device, dtype)
        self._eps = norm.eps
        self._shape = tuple(norm.weight.shape)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self._shape, self._weight, self._bias, self._eps)


@dataclass(frozen=True, slots=True)
class _Block:
    """``qkv``: of all tokens; None in a last layer that needs one query a pair: then ``query`` and ``kv``."""

    qkv: Dense | None
    query: Dense | None
    kv: Dense | None
    out: Dense
    ffn_in: Dense
    gate: Dense | None
    ffn_out: Dense
    attention_norm: _LayerNorm | None
    ffn_norm: _LayerNorm
    window: int | None
    theta: float | None


class Encoder:
    """Scores a packed batch. Keeps the embedding tables of ``described``, on the CPU without a copy."""

    def __init__(
        self,
        described: Described,
        dense: Factory,
        device: torch.device,
        dtype: torch.dtype,
        max_length: int,
        wrap: Callable[[Callable[..., torch.Tensor]], Callable[..., torch.Tensor]] = lambda function: function,
    ) -> None:
        """``dtype``: of what is between the layers. ``max_length``: tokens of the longest pair. ``wrap``: given what
        each layer does after attention, returns what is to be called for it (engine/compiling)."""
        self.device, self.dtype = device, dtype
        self.max_length = max_length
        self.heads = described.heads
        self.size = described.words.shape[1] // described.heads
        self._pre_norm = described.pre_norm
        self._mean = described.pooling == "mean"
        self._first_position, self._skipped = described.first_position, described.skipped
        self._words = described.words.to(device, dtype)
        self._table, self._table_width = _table(described, device)
        self._embedding_norm = _LayerNorm(described.embedding_norm, device, torch.float32)
        last = len(described.layers) - 1
        self._layers = [
            self._block(f"layers.{number}", layer, number == last and not self._mean, dense)
            for number, layer in enumerate(described.layers)
        ]
        thetas = {layer.theta for layer in described.layers if layer.theta is not None}
        self._rotations = {theta: _rotations(theta, self.size, max_length).to(device) for theta in thetas}
        self._final_norm = None if described.final_norm is None else _LayerNorm(described.final_norm, device, dtype)
        self._head = _float(described.head, device)
        self._tanh = described.head_activation == "tanh"
        self._head_norm = (
            None if described.head_norm is None else _LayerNorm(described.head_norm, device, torch.float32)
        )
        self._score = _float(described.score, device)
        # A function and no method: an encoder that leads to itself would outlive its engine until a full collection.
        self._finish = wrap(_after_attention)

    def _block(self, site: str, layer: Layer, last: bool, dense: Factory) -> _Block:
        def build(name: str, *matrices: Matrix) -> Dense:
            weight = torch.cat([matrix.weight.to(self.device, self.dtype) for matrix in matrices])
            biases = [matrix.bias for matrix in matrices if matrix.bias is not None]
            bias = torch.cat([bias.to(self.device, self.dtype) for bias in biases]) if biases else None
            return dense(f"{site}.{name}", weight, bias)

        query, key = _scaled(layer.query, self.size**-0.5), layer.key
        if layer.theta is not None:
            query, key = _interleaved(query, self.size), _interleaved(key, self.size)
        norm = layer.attention_norm
        return _Block(
            qkv=None if last else build("qkv", query, key, layer.value),
            query=build("query", query) if last else None,
            kv=build("kv", key, layer.value) if last else None,
            out=build("out", layer.out),
            ffn_in=build("ffn_in", layer.ffn_in),
            gate=None if layer.gate is None else build("gate", layer.gate),
            ffn_out=build("ffn_out", layer.ffn_out),
            attention_norm=None if norm is None else _LayerNorm(norm, self.device, self.dtype),
            ffn_norm=_LayerNorm(layer.ffn_norm, self.device, self.dtype),
            window=layer.window,
            theta=layer.theta,
        )

    def arrays(self, packed: Packed, takes_types: bool, token_step: int = 1, pair_step: int = 1) -> dict[str, Ints]:
        """The fields of Inputs on the host, with tokens of no pair, and first tokens of no pair, behind the others up
        to a multiple of the steps."""
        positions = packed.positions if self._skipped is None else skipping(packed, self._skipped)
        rows = positions + np.int32(self._first_position)
        if takes_types:
            rows = rows + packed.types * np.int32(self._table_width)
        # A dummy pair without tokens (graphs) begins after the last token.
        first = np.minimum(packed.offsets[:-1], len(packed.ids) - 1)
        behind = (0, -len(packed.ids) % token_step)
        return {
            "ids": np.pad(packed.ids, behind),
            "rows": np.pad(rows, behind),
            "positions": np.pad(packed.positions, behind),
            "first": np.pad(first, (0, -len(first) % pair_step)),
            "offsets": packed.offsets,
        }

    def __call__(self, inputs: Inputs, attention: Attention) -> torch.Tensor:
        """Logits in float32, as many as ``first`` has."""
        x = F.embedding(inputs.ids, self._words)
        if self._table is not None:
            # The table is float32, and so is the sum.
            x = x + F.embedding(inputs.rows, self._table)
        x = self._embedding_norm(x.float()).to(self.dtype)
        rotations = {
            theta: table.index_select(0, inputs.positions)[:, None, None] for theta, table in self._rotations.items()
        }
        for block in self._layers:
            x = self._layer(block, x, inputs, attention, rotations)
        if self._mean:
            x = x if self._final_norm is None else self._final_norm(x)
            x = torch.ops.aten.segment_reduce(x.float(), "mean", offsets=inputs.offsets, axis=0, unsafe=True)
        elif self._final_norm is not None:
            x = self._final_norm(x)
        x = F.linear(x.float(), *self._head)
        x = torch.tanh(x) if self._tanh else F.gelu(x)
        if self._head_norm is not None:
            x = self._head_norm(x)
        return F.linear(x, *self._score)[:, 0]

    def _layer(
        self,
        block: _Block,
        x: torch.Tensor,
        inputs: Inputs,
        attention: Attention,
        rotations: Mapping[float, torch.Tensor],
    ) -> torch.Tensor:
        seen = block.attention_norm(x) if self._pre_norm and block.attention_norm is not None else x
        rotation = None if block.theta is None else rotations[block.theta]
        if block.qkv is not None:
            qkv = block.qkv(seen).view(-1, 3, self.heads, self.size)
            if rotation is not None:
                _rotate(qkv[:, :2], rotation)
            mixed = attention.all(qkv, block.window)
        else:
            assert block.kv is not None
            assert block.query is not None
            kv = block.kv(seen).view(-1, 2, self.heads, self.size)
            if rotation is not None:
                _rotate(kv[:, :1], rotation)
            # The first token is at position 0, where a rotation changes nothing.
            query = block.query(seen.index_select(0, inputs.first)).view(-1, self.heads, self.size)
            mixed = attention.first(query, kv, block.window)
            x = x.index_select(0, inputs.first)
        return self._finish(self._pre_norm, block, mixed, x)


def _after_attention(pre_norm: bool, block: _Block, mixed: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    x = block.out.add(mixed, x)
    if not pre_norm:
        assert block.attention_norm is not None
        x = block.attention_norm(x)
        return block.ffn_norm(block.ffn_in.feed(x, block.ffn_out, x))
    seen = block.ffn_norm(x)
    if block.gate is None:
        return block.ffn_in.feed(seen, block.ffn_out, x)
    return block.ffn_out.add(block.ffn_in.gelu(seen).mul_(block.gate(seen)), x)


def _table(described: Described, device: torch.device) -> tuple[torch.Tensor | None, int]:
    """(types * positions, hidden) sums of both tables in float32, and the number of positions."""
    if described.positions is None:
        return None, 0
    positions = described.positions.float()
    if described.types is not None:
        positions = (described.types.float()[:, None] + positions).flatten(0, 1)
    return positions.to(device), len(described.positions)


def _float(matrix: Matrix, device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    bias = None if matrix.bias is None else matrix.bias.to(device, torch.float32)
    return matrix.weight.to(device, torch.float32), bias


def _scaled(matrix: Matrix, factor: float) -> Matrix:
    """In float32: weights of jina may be in less, whatever is computed in."""
    return Matrix(matrix.weight.float() * factor, None if matrix.bias is None else matrix.bias.float() * factor)


def _interleaved(matrix: Matrix, size: int) -> Matrix:
    """Each head's outputs i and i + size / 2, which a rotation turns together, side by side: as complex numbers they
    are turned in one operation. Queries and keys alike, so that their products stay the same."""

    def order(tensor: torch.Tensor) -> torch.Tensor:
        heads = tensor.unflatten(0, (-1, 2, size // 2))
        return heads.transpose(1, 2).reshape(tensor.shape)

    return Matrix(order(matrix.weight), None if matrix.bias is None else order(matrix.bias))


def _rotations(theta: float, size: int, positions: int) -> torch.Tensor:
    """(positions, size / 2) complex numbers of length one: ModernBertRotaryEmbedding of transformers."""
    frequencies = 1.0 / (theta ** (torch.arange(0, size, 2, dtype=torch.float32) / size))
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * frequencies
    return torch.polar(torch.ones_like(angles), angles)


def _rotate(x: torch.Tensor, rotation: torch.Tensor) -> None:
    """Turn (tokens, k, heads, size) in place."""
    turned = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    if x.dtype == torch.float32:
        turned.mul_(rotation)
    else:
        x.copy_(torch.view_as_real(turned * rotation).flatten(-2))
