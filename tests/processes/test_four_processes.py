"""Four processes in a mesh of two by two: examples over one dimension, layers over the other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scenes import adapted, content, ids, loss_of, named
from starting import asked_of

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("two processes")]
RAN = [
    ("ran", "tied, biased, long", "stack", "fsdp by tensor"),
    ("ran", "grouped queries", "prefix", "fsdp by tensor"),
    ("ran", "grouped queries", "stack", "replicate by tensor"),
]


def test_a_mesh_of_two_dimensions_gives_the_gradients_and_files_of_one(tmp_path: Path) -> None:
    found = asked_of(4, RAN, tmp_path)
    for scene in RAN:
        model = adapted(*scene[1:3])
        for tree in model.trees.values():
            tree.requires_grad_(True)
        loss_of(model(ids()), ids()).backward()
        for one in found:
            for name, parameter in named(model):
                expected = parameter.grad
                expected = torch.zeros_like(parameter) if expected is None else expected
                far = (one["-".join(scene)]["gradients"][name] - expected).abs().max()
                assert far <= 1e-5 * max(1.0, float(expected.abs().max())), (scene, name)
        for member in model.adapters:
            model.save_adapter(member.name, tmp_path / "one" / member.name)
            for file in (tmp_path / "one" / member.name).iterdir():
                other = tmp_path / "-".join(scene) / member.name / file.name
                assert content(other) == content(file), (scene, member.name)
