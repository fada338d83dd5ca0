"""Linear layers that are not torch's."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TransposedLinear(nn.Module):
    """A linear layer whose weight is [inputs, outputs], as GPT-2's checkpoints have it.

    Source: `Conv1D` of transformers' GPT-2.
    """

    gives_new = True

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], self.weight.shape[1])
