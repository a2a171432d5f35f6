"""Add a trained adapter to the backbone's weights.

Must give the same bits on every machine: only elementwise float32 operations in a fixed order, no matrix product,
whose rounding depends on the processor.
"""

from collections.abc import Mapping

import numpy as np

SCALE = 2.0  # of each low-rank product


def merge(backbone: Mapping[str, np.ndarray], adapter: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The state of a BertForSequenceClassification in float32: the backbone's weights with the adapter added."""
    merged = {f"bert.{name}": tensor for name, tensor in backbone.items() if name != "embeddings.position_ids"}
    for name, tensor in adapter.items():
        if name.endswith(".up"):
            layer = name.removesuffix(".up")
            up, down = tensor.astype(np.float32), adapter[f"{layer}.down"].astype(np.float32)
            delta = np.zeros((up.shape[0], down.shape[1]), np.float32)
            for column, row in zip(up.T, down, strict=True):
                delta += column[:, None] * row[None, :]
            merged[f"{layer}.weight"] = merged[f"{layer}.weight"] + np.float32(SCALE) * delta
        elif not name.endswith(".down"):
            merged[name] = tensor.astype(np.float32)
    return merged
