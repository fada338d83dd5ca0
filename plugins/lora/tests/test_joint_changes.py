"""What is kept of several LoRAs is never stale, and what has no strength is not there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_joint import SIZE, in_turn, inputs, stacked, write
from test_lora import linear_model
from torch import nn
from torch.func import functional_call


def _assign_data(parameter: Any) -> None:
    parameter.data = torch.randn_like(parameter)


def _data_where_data_was(module: Any, again: Any) -> None:
    """Assign data that lie where those lay that something was made of, if memory is given again."""
    module.lora_A.data = torch.randn_like(module.lora_A)
    again()
    place, others = module.lora_A.data_ptr(), []
    module.lora_A.data = torch.zeros(0)
    while len(others) < 50 and (not others or others[-1].data_ptr() != place):
        others.append(torch.randn(8, SIZE))
    module.lora_A.data = others[-1]


CHANGES: dict[str, Any] = {
    "another scaling": lambda m: setattr(m.tree.fc1__b, "scaling", 3.0),
    "a rescale": lambda m: setattr(m.adapters["ab"], "scale", 0.3),
    "a write in place": lambda m: write(m.tree.fc1__b.lora_B),
    "a write in inference mode": lambda m: torch.inference_mode()(write)(m.tree.fc1__b.lora_A),
    "other data": lambda m: _assign_data(m.tree.fc1__b.lora_A),
    "another parameter": lambda m: setattr(
        m.tree.fc0__lora, "lora_A", nn.Parameter(torch.randn(8, SIZE), requires_grad=False)
    ),
    "a state dict": lambda m: m.tree.load_state_dict(
        {k: v * 1.5 if "__" in k else v for k, v in m.tree.state_dict().items()}
    ),
    "an assigned state dict": lambda m: m.tree.load_state_dict(
        {k: v * 1.5 if "__" in k else v for k, v in m.tree.state_dict().items()}, assign=True
    ),
    "a cast": lambda m: m.tree.double(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_is_seen(change: str) -> None:
    model, x = stacked(), inputs()
    with torch.no_grad():
        before = model.tree(x)
        assert torch.equal(model.tree(x), before)
        CHANGES[change](model)
        x = x.to(model.tree.fc0.weight.dtype)
        got = model.tree(x)
        assert not torch.equal(got.float(), before)
        torch.testing.assert_close(got, in_turn(model, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dora", [False, True])
def test_other_data_at_the_same_place_are_seen(dora: bool) -> None:
    x = inputs()
    model = stacked(use_dora=True) if dora else stacked()
    for _ in range(20):
        with torch.no_grad():
            _data_where_data_was(model.tree.fc0__lora, lambda: model.tree(x))
            got = model.tree(x)
        for trainable in (True, False):
            for member in model.adapters:
                member.trainable = trainable
            if trainable:  # for which nothing is kept
                torch.testing.assert_close(got, model.tree(x).detach(), rtol=1e-5, atol=1e-5)


def test_what_training_moves_is_seen_even_by_an_optimiser_that_leaves_no_trace() -> None:
    model, x = stacked(), inputs()
    with torch.no_grad():
        model.tree(x)
    model.adapters["b"].trainable = True
    model.tree(x).square().sum().backward()
    for parameter in model.adapter_parameters("b").values():
        parameter.data.sub_(parameter.grad, alpha=0.1)
    with torch.no_grad():
        torch.testing.assert_close(model.tree(x), in_turn(model, x), rtol=1e-5, atol=1e-5)


def test_parameters_put_in_for_one_call_are_the_ones_that_act() -> None:
    model, x = stacked(), inputs()
    with torch.no_grad():
        model.tree(x)
        other = {"fc0__a.lora_B": torch.zeros_like(model.tree.fc0__a.lora_B)}
        got = functional_call(model.tree, other, (x,))
        model.tree.fc0__a.lora_B.zero_()
        torch.testing.assert_close(got, model.tree(x))


def test_adapters_made_in_inference_mode_run_together_and_can_be_trained() -> None:
    base = linear_model()
    with torch.inference_mode():
        model = stacked(base=base)
        model.tree(inputs())
        assert model.tree.__dict__["fc0__a__ab__b__lora_"].bank is not None
    model.adapters["a"].trainable = True
    model.tree(inputs()).sum().backward()
    assert all(p.grad is not None for p in model.adapter_parameters("a").values())


def test_parameters_that_are_inference_tensors_are_not_copied() -> None:
    model = stacked()
    with torch.inference_mode():
        x = inputs()
        model.tree.fc0__a.lora_A = nn.Parameter(torch.randn(8, SIZE), requires_grad=False)
        model.tree(x)
        model.tree.fc0__a.lora_A.normal_()
        torch.testing.assert_close(model.tree(x), in_turn(model, x), rtol=1e-5, atol=1e-5)


def test_a_copy_made_in_inference_mode_serves_a_gradient() -> None:
    model = stacked()
    with torch.inference_mode():
        model.tree(inputs())
    x = inputs().requires_grad_()
    model.tree(x).square().sum().backward()
    other = inputs().requires_grad_()
    in_turn(model, other).square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-5, atol=1e-5)


# Nought is not there


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_at_scale_nought_a_broken_adapter_is_not_there(value: float, dtype: torch.dtype) -> None:
    model = stacked("a", "b")
    model.tree.to(dtype)
    with torch.no_grad():
        for parameter in model.adapter_parameters("b").values():
            parameter.fill_(value)
        model.adapters["b"].scale = 0.0
        x = inputs().to(dtype)
        assert torch.equal(model.tree(x), model.without("b").tree(x))
        model.adapters["b"].scale = 1.0
        assert not torch.isfinite(model.tree(x)).all()


def test_all_at_scale_nought_are_the_base_bit_for_bit() -> None:
    base, x = linear_model(), inputs()
    model = stacked(base=base)
    for member in model.adapters:
        member.scale = 0.0
    with torch.no_grad():
        assert torch.equal(model.tree(x), base.tree(x))


DISTRIBUTED = """
import sys, torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
sys.path.insert(0, {tests!r})
from test_joint import in_turn, inputs, stacked
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
model, x = stacked(), inputs()
with torch.no_grad():
    model.tree(x)
    assert model.tree.__dict__["fc0__a__ab__b__lora_"].bank is not None
    fully_shard(model.tree, reshard_after_forward=True)
    model.tree(x)
    for parameter in model.tree.parameters():
        parameter.to_local().mul_(2)
    alike = stacked()
    for parameter in alike.tree.parameters():
        parameter.mul_(2)
    torch.testing.assert_close(model.tree(x), in_turn(alike, x))
dist.destroy_process_group()
print("fine")
"""


def test_only_where_fsdp_gathers_parameters_nothing_is_kept(tmp_path: Path) -> None:
    """It writes gathered parameters without counting their version up."""
    code = DISTRIBUTED.format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-c", code, str(tmp_path / "meeting")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "fine", done.stderr
