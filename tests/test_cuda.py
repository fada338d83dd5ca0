"""The same on a GPU: placed where it is loaded, adapted there, equal to the CPU."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode

import inarch

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

CONFIG = {
    "model_type": "llama",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from inarch_llama.model import Llama

    torch.manual_seed(0)
    tree = Llama.build(Llama.parse_config(CONFIG))[""]
    save_file(tree.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def test_an_adapted_model_is_on_the_gpu_and_equals_the_cpu(folder: Path, tmp_path: Path) -> None:
    base = inarch.load(folder)
    saved = base.adapt(inarch.adapter("lora", rank=2))
    for parameter in saved.adapter_parameters("lora").values():
        parameter.data.normal_(std=0.2)
    adapter = saved.save_adapter("lora", tmp_path / "lora")
    there = inarch.load(folder, device="cuda").adapt(inarch.adapter("lora", weights=adapter))
    assert {p.device.type for p in there.parameters()} == {"cuda"}
    ids = torch.randint(0, 61, (2, 9))
    expected = saved(ids).detach()
    torch.testing.assert_close(there(ids.cuda()).cpu(), expected, rtol=1e-4, atol=1e-4)


def test_generation_on_the_gpu_gives_the_tokens_of_the_cpu(folder: Path) -> None:
    prompts = [[1, 2, 3, 4], [5, 6]]
    here, there = inarch.load(folder), inarch.load(folder, device="cuda")
    options = {"max_new_tokens": 8, "stop": frozenset[int]()}
    assert list(there.generate_ids(prompts, **options)) == list(
        here.generate_ids(prompts, **options)
    )


def test_training_on_the_gpu_moves_the_adapter_alone(folder: Path, tmp_path: Path) -> None:
    from inarch_training import Example, train

    base = inarch.load(folder, device="cuda")
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = base.adapt(inarch.adapter("lora", rank=2))
    examples = [Example((1, 2, 3), (1, 2, 3)), Example((4, 5), (4, 5))]
    train(model, examples, adapter="lora", out=tmp_path / "out", steps=3, batch_size=2)
    assert all(torch.equal(base.state_dict()[name], before[name]) for name in before)


@pytest.mark.parametrize("prompts", [[[1, 2, 3, 4]], [[1, 2, 3, 4], [5, 6]]], ids=len)
def test_a_recorded_step_gives_the_tokens_of_an_eager_one(
    folder: Path, prompts: list[list[int]]
) -> None:
    """Twice, since the second generation replays what the first one recorded."""
    model = inarch.load(folder, device="cuda").adapt(inarch.adapter("lora", rank=2))
    for parameter in model.adapter_parameters("lora").values():
        parameter.data.normal_(std=0.2)
    model.adapters["lora"].trainable = False
    for longer in ([], [7, 8, 9]):
        given = [longer + prompt for prompt in prompts]
        steps = [
            list(model.generate_ids(given, max_new_tokens=20, stop=frozenset(), compile=one))
            for one in (False, True)
        ]
        assert steps[0] == steps[1]


class Copies(TorchDispatchMode):
    """Counts what is copied, by where from and where to."""

    def __init__(self) -> None:
        super().__init__()
        self.made: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in ("copy_", "_to_copy"):
            target = args[0] if func.overloadpacket.__name__ == "copy_" else None
            source = args[1] if target is not None else args[0]
            place = (kwargs or {}).get("device") if target is None else target.device
            self.made[source.device.type, torch.device(place or source.device).type] += 1
        return func(*args, **(kwargs or {}))


def test_an_adapter_is_brought_to_the_gpu_by_one_copy_and_swapped_by_one_there(
    folder: Path, tmp_path: Path
) -> None:
    here, there = inarch.load(folder), inarch.load(folder, device="cuda")
    files = [trained(here, tmp_path / f"{rank}", rank) for rank in (2, 5)]
    with Copies() as copies:
        model = there.adapt(inarch.adapter("lora", weights=files[0], capacity=8))
    assert copies.made["cpu", "cuda"] == 1
    ids = torch.randint(0, 61, (2, 9))
    addresses = [p.data_ptr() for p in model.parameters()]
    ready = [model.prepare("lora", file) for file in files]
    for i in (1, 0, 1):
        with Copies() as copies:
            model.swap("lora", ready[i])
        assert dict(copies.made) == {("cuda", "cuda"): 2}  # of the weights, and of the scalings
        expected = here.adapt(inarch.adapter("lora", weights=files[i]))(ids)
        torch.testing.assert_close(model(ids.cuda()).cpu(), expected, rtol=1e-4, atol=1e-4)
    with Copies() as copies:  # of a header that is known, since it was prepared
        model.swap("lora", files[0])
    assert (copies.made["cpu", "cuda"], copies.made["cuda", "cuda"]) == (1, 2)
    assert addresses == [p.data_ptr() for p in model.parameters()]


def test_a_recorded_step_runs_what_was_swapped_in(folder: Path, tmp_path: Path) -> None:
    base = inarch.load(folder, device="cuda")
    files = [trained(base, tmp_path / f"{rank}", rank) for rank in (2, 5)]
    model = base.adapt(inarch.adapter("lora", weights=files[0], capacity=8))
    for file in (files[0], files[1], files[0]):
        model.swap("lora", file)
        fresh = base.adapt(inarch.adapter("lora", weights=file))
        told = {"max_new_tokens": 12, "stop": frozenset[int]()}
        recorded = list(model.generate_ids([[1, 2, 3, 4]], compile=True, **told))
        assert recorded == list(fresh.generate_ids([[1, 2, 3, 4]], **told))


def trained(base: inarch.Model, folder: Path, rank: int) -> Path:
    model = base.adapt(inarch.adapter("lora", rank=rank, alpha=3))
    for parameter in model.adapter_parameters("lora").values():
        parameter.data.normal_(std=0.2)
    return model.save_adapter("lora", folder)
