"""What calibration needs to know of the inputs of each linear layer: the smallest and largest value of every row.

Recorded in a float32 pass over sample pairs; keeps no activations and no texts.
"""

from dataclasses import dataclass, field

import torch

from rerank_worker.engine.torch_flat.linear import Dense, Factory

OUTLIER = 2.5
"""A sample row that reaches so many times as far from 0 as the median row does is left out of a site's range. Special
tokens reach ten times as far as other tokens; a range that holds them leaves the others a few of the 256 steps."""


@dataclass(slots=True)
class Observations:
    """``rows``: by site, tensors (2, tokens) of each row's minimum and maximum, in the order seen."""

    rows: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    def note(self, site: str, x: torch.Tensor) -> None:
        self.rows.setdefault(site, []).append(torch.stack([x.amin(1), x.amax(1)]).float().cpu())

    def count(self, site: str) -> int:
        """Rows seen at ``site``."""
        return sum(seen.shape[1] for seen in self.rows.get(site, ()))

    def range(self, site: str) -> tuple[float, float]:
        """Least and largest value to quantize at ``site``; holds 0. Raises KeyError for a site that saw nothing."""
        low, high = torch.cat(self.rows[site], dim=1)
        reach = torch.maximum(-low, high)
        usual = reach <= OUTLIER * reach.median()
        return min(float(low[usual].min()), 0.0), max(float(high[usual].max()), 0.0)

    def mostly(self, site: str) -> bool:
        """Whether ``site`` sees every token, not only the first of each pair as the end of the last layer does."""
        return self.count(site) * 4 > max(map(self.count, self.rows), default=0)


class ObservingDense(Dense):
    """Computes as ``inner`` does and notes the inputs."""

    def __init__(self, site: str, inner: Dense, observations: Observations) -> None:
        self._site, self._inner, self._observations = site, inner, observations

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self._observations.note(self._site, x)
        return self._inner(x)

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        self._observations.note(self._site, x)
        return self._inner.gelu(x)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        self._observations.note(self._site, x)
        return self._inner.add(x, residual)


def observing(observations: Observations, inner: Factory) -> Factory:
    """A factory of the layers of ``inner`` that note their inputs in ``observations``."""

    def dense(site: str, weight: torch.Tensor, bias: torch.Tensor | None) -> Dense:
        return ObservingDense(site, inner(site, weight, bias), observations)

    return dense
