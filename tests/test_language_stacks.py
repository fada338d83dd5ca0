"""Adapters of language models together: LoRA beside each kind, and four of them in any order."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import inarch
from inarch.stack import AdapterSpec
from inarch.testing import tiny_models

OTHERS = {
    "ia3": inarch.adapter("ia3"),
    "prefix": inarch.adapter("prefix", tokens=4),
    "prompt": inarch.adapter("prompt-tuning", tokens=4),
    "pfeiffer": inarch.adapter("bottleneck", kind="pfeiffer"),
    "houlsby": inarch.adapter("bottleneck", kind="houlsby"),
    "parallel": inarch.adapter("bottleneck", kind="parallel", attention=True),
}
LORA = inarch.adapter("lora", rank=4)


@pytest.fixture(params=[t for t in tiny_models() if t.family == "llama"], ids=str)
def llama(request: pytest.FixtureRequest) -> Any:
    return request.param.build()


@pytest.fixture(scope="module")
def smollm2() -> Any:
    return inarch.load("smollm2", dtype="float32")


def saved(base: Any, specs: list[AdapterSpec], folder: Path) -> list[AdapterSpec]:
    """The same adapters, trained: from files whose numbers are drawn at random."""
    torch.manual_seed(0)  # of what starts at random: a unit that no input reaches learns nothing
    generator = torch.Generator().manual_seed(0)
    loaded = []
    for spec in specs:
        member = base.adapt(spec).adapters[spec.name]
        for parameter in member.parameters().values():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.add_(noise.to(parameter) * 0.02)
        model = base._with([member])
        model.save_adapter(spec.name, folder / spec.name)
        loaded.append(inarch.adapter(spec.use, weights=folder / spec.name, name=spec.name))
    return loaded


def assert_works(base: Any, specs: list[AdapterSpec], ids: Tensor) -> None:
    """Forward, backward and generation, the adapters written down in either order."""
    first, second = (base.adapt(*order) for order in (specs, specs[::-1]))
    assert first.tree.form is second.tree.form
    logits = first(ids)
    assert torch.equal(logits, second(ids))
    for name in first.adapters.names:
        assert not torch.equal(logits, first.without(name)(ids))
        first.adapters[name].trainable = True
    first(ids).square().mean().backward()
    for name in first.adapters.names:
        assert all(bool(p.grad.any()) for p in first.adapter_parameters(name).values())
        first.adapters[name].trainable = False
    prompts = [ids[0].tolist(), ids[1, :3].tolist()]
    steps = list(first.generate_ids(prompts, max_new_tokens=4, stop=frozenset()))
    for row, prompt in enumerate(prompts):
        for step in steps:
            assert step[row] == int(first(torch.tensor([prompt]))[0, -1].argmax())
            prompt.append(step[row])


@pytest.mark.parametrize("other", OTHERS.values(), ids=list(OTHERS))
def test_a_lora_works_beside_each_other_kind(llama: Any, other: Any, tmp_path: Path) -> None:
    ids = torch.tensor([[1, 5, 2, 8, 3, 0], [7, 7, 4, 1, 9, 2]])
    assert_works(llama, saved(llama, [LORA, other], tmp_path), ids)


def test_a_lora_and_the_factors_of_what_it_adds_to_merge_together(
    llama: Any, tmp_path: Path
) -> None:
    ids = torch.tensor([[1, 5, 2, 8, 3, 0], [7, 7, 4, 1, 9, 2]])
    specs = saved(llama, [LORA, OTHERS["ia3"]], tmp_path)
    for order in (specs, specs[::-1]):
        model = llama.adapt(*order)
        for merged in (model.merge(), model.merge("lora")):
            torch.testing.assert_close(merged(ids), model(ids), rtol=1e-5, atol=1e-5)
        with pytest.raises(inarch.InarchError) as caught:
            model.merge("ia3")
        assert caught.value.code == "IA409"
        assert "acts on the add of `lora`" in caught.value.why


@pytest.mark.slow
@pytest.mark.xdist_group("smollm2")
def test_one_of_each_kind_works_on_smollm2(smollm2: Any, tmp_path: Path) -> None:
    ids = torch.tensor([[1, 50, 203, 884, 3, 10], [77, 7000, 41, 1, 9, 2]])
    kinds = [OTHERS[name] for name in ("ia3", "prefix", "prompt", "pfeiffer")]
    assert_works(smollm2, saved(smollm2, [LORA, *kinds], tmp_path), ids)


def in_every_order(base: Any, folder: Path) -> None:
    specs = [
        inarch.adapter("lora", name="a", rank=2),
        inarch.adapter("lora", name="ab", rank=4, targets=["attention.*"]),
        inarch.adapter("ia3", name="terse"),
        inarch.adapter("prefix", name="sea", tokens=3),
    ]
    loaded = saved(base, specs, folder)
    ids = torch.tensor([[1, 5, 2, 8], [7, 7, 4, 1]])
    found = set()
    expected: Tensor | None = None
    for order in itertools.permutations(loaded):
        model = base.adapt(*order)
        found.add((model.digest, model.tree.form))
        with torch.no_grad():
            logits = model(ids)
        expected = logits if expected is None else expected
        assert torch.equal(logits, expected)
    assert len(found) == 1


def test_two_loras_an_ia3_and_a_prefix_are_one_model_in_all_24_orders(
    llama: Any, tmp_path: Path
) -> None:
    in_every_order(llama, tmp_path)


@pytest.mark.slow
@pytest.mark.xdist_group("smollm2")
def test_they_are_on_smollm2_too(smollm2: Any, tmp_path: Path) -> None:
    in_every_order(smollm2, tmp_path)
