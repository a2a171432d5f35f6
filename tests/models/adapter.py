"""The small part of the demo model that is trained: low-rank deltas on the encoder, the pooler and the score head.

`attach` makes a BertForSequenceClassification trainable that way and `extract` takes the trained part out; merge.py
adds it to the backbone.
"""

import torch
from merge import SCALE
from torch import nn
from transformers import BertForSequenceClassification

RANK = 16
WHOLE = ("bert.pooler.dense", "classifier", "bert.embeddings.token_type_embeddings")  # trained and stored in full


class LowRankLinear(nn.Module):
    """A frozen linear layer plus a trainable product of two thin matrices."""

    def __init__(self, frozen: nn.Linear) -> None:
        super().__init__()
        self.frozen = frozen
        self.down = nn.Parameter(torch.randn(RANK, frozen.in_features) / frozen.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(frozen.out_features, RANK))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.frozen(hidden) + SCALE * nn.functional.linear(nn.functional.linear(hidden, self.down), self.up)


def attach(model: BertForSequenceClassification) -> list[nn.Parameter]:
    """Freeze the model but for the adapter's parameters, which are returned."""
    model.requires_grad_(False)
    for parent in list(model.bert.encoder.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, LowRankLinear(child))
    for name in WHOLE:
        model.get_submodule(name).requires_grad_(True)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def extract(model: BertForSequenceClassification) -> dict[str, torch.Tensor]:
    """The trained tensors, in float16."""
    return {
        name: parameter.detach().to(torch.float16).contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
