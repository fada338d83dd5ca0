"""FSDP2 over two gloo processes gives the loss and the gradients of one process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fsdp_worker import batch, loss_of, tree_of

from inarch.testing.workers import side_by_side

WORKER = Path(__file__).with_name("fsdp_worker.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What two processes found, by kind of tree."""
    folder = tmp_path_factory.mktemp("fsdp")
    result = folder / "result.pt"
    arguments = [str(folder / "meeting"), str(result)]
    side_by_side([[str(WORKER), str(rank), *arguments] for rank in range(2)], seconds=90)
    return torch.load(result, weights_only=True)


@pytest.mark.parametrize("kind", ["base", "adapted"])
def test_two_sharded_processes_equal_one(kind, found):
    found = found[kind]
    tree = tree_of(kind)
    ids, positions = batch()
    losses = [loss_of(tree, ids[i * 2 : i * 2 + 2], positions) for i in range(2)]
    (sum(losses) / 2).backward()
    expected = {n: p.grad for n, p in tree.named_parameters() if p.grad is not None}
    for one, other in zip(found["losses"], losses, strict=True):
        assert torch.equal(one, other)
    assert found["gradients"].keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found["gradients"][name], gradient, atol=1e-7, rtol=1e-5), name
    assert found["tied"]
    assert found["refused"] == ["IA108", "IA108"]
