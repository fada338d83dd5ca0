"""What an edge is beside what its kind computes."""

from __future__ import annotations

import torch
from torch import nn

from inarch.adapters import Edge


class Halved(Edge):
    def __init__(self) -> None:
        super().__init__()
        self.share = 0.5
        self.weight = nn.Parameter(torch.zeros(3))


def test_a_twin_is_filled_and_changed_by_itself() -> None:
    first = Halved()
    second = first.twin()
    second._parameters["weight"] = nn.Parameter(torch.ones(3))
    second.rescale(2.0)
    second.train(False)
    second.register_forward_hook(lambda *_: None)
    assert first.weight.sum() == 0
    assert first.strength == 1.0
    assert first.training
    assert not first._forward_hooks
    assert (second.share, float(second.scale)) == (0.5, 2.0)
    assert list(second.state_dict()) == list(first.state_dict())
