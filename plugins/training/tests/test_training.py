"""One adapter learns and nothing else moves; a run can be stopped, resumed and repeated."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import inarch
from inarch.errors import InarchError
from inarch_training import Example, read_examples, train


def fresh(base: Any, name: str = "mine", **options: Any) -> Any:
    """The base with a new LoRA, of the same start each time."""
    torch.manual_seed(7)
    return base.adapt(inarch.adapter("lora", name=name, rank=2, **options))


def learned(model: Any, name: str = "mine") -> dict[str, torch.Tensor]:
    return {key: p.detach().clone() for key, p in model.adapter_parameters(name).items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[k], other[k]) for k in one)


def test_the_loss_falls_and_the_result_says_so(
    base: Any, examples: list[Example], tmp_path: Path
) -> None:
    settings = {"steps": 60, "learning_rate": 3e-2, "batch_size": 5}
    result = train(fresh(base), examples, adapter="mine", out=tmp_path, **settings)
    assert result.steps == 60
    assert not result.interrupted
    assert result.losses[-1] < 0.8 * result.losses[0]


def test_only_the_named_adapter_moves(base: Any, examples: list[Example], tmp_path: Path) -> None:
    model = fresh(fresh(base, "other"))
    with torch.no_grad():
        for parameter in model.adapters["other"].parameters().values():
            parameter.add_(0.1)
    untouched = {key: t.clone() for key, t in model.state_dict().items() if "mine" not in key}
    before = learned(model)
    train(model, examples, adapter="mine", out=tmp_path, steps=3)
    after = {key: t for key, t in model.state_dict().items() if "mine" not in key}
    assert same(untouched, after)
    assert not same(before, learned(model))
    assert not any(p.requires_grad for p in base.parameters())
    assert all(p.grad is None for p in base.parameters())


def test_who_was_trainable_before_is_so_after(
    base: Any, examples: list[Example], tmp_path: Path
) -> None:
    model = fresh(fresh(base, "other"))
    model.adapters["mine"].trainable = False
    train(model, examples, adapter="mine", out=tmp_path, steps=1)
    assert model.adapters["other"].trainable
    assert not model.adapters["mine"].trainable


def test_the_same_seed_gives_the_same_bits_with_dropout_too(
    base: Any, examples: list[Example], tmp_path: Path
) -> None:
    runs: list[dict[str, torch.Tensor]] = []
    for number, seed in enumerate((3, 3, 4)):
        model = fresh(base, dropout=0.3)
        train(model, examples, adapter="mine", out=tmp_path / str(number), steps=6, seed=seed)
        runs.append(learned(model))
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_a_resumed_run_ends_as_an_uninterrupted_one(
    base: Any, examples: list[Example], tmp_path: Path
) -> None:
    whole = fresh(base, dropout=0.2)
    settings: dict[str, Any] = {"adapter": "mine", "steps": 9, "batch_size": 2, "accumulate": 2}
    expected = train(whole, examples, out=tmp_path / "whole", **settings)

    def press(step: int, loss: float) -> None:
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    first = fresh(base, dropout=0.2)
    stopped = train(first, examples, out=tmp_path / "cut", on_step=press, **settings)
    assert (stopped.interrupted, stopped.steps) == (True, 4)
    torch.manual_seed(99)
    again = base.adapt(inarch.adapter("lora", name="mine", rank=2, dropout=0.2))
    result = train(again, examples, out=tmp_path / "cut", resume=True, **settings)
    assert not result.interrupted
    assert result.losses == expected.losses
    assert same(learned(again), learned(whole))


def test_an_interrupted_run_has_saved_an_adapter_that_loads(
    base: Any, examples: list[Example], tmp_path: Path
) -> None:
    model = fresh(base)
    handler = signal.getsignal(signal.SIGINT)
    ids = torch.tensor([[1, 2, 3]])
    train(
        model,
        examples,
        adapter="mine",
        out=tmp_path,
        steps=50,
        on_step=lambda step, loss: os.kill(os.getpid(), signal.SIGINT),
    )
    assert signal.getsignal(signal.SIGINT) is handler
    loaded = base.adapt(inarch.adapter("lora", weights=tmp_path))
    assert torch.equal(loaded(ids), model(ids))
    assert not torch.equal(loaded(ids), base(ids))


def test_the_folder_holds_the_adapter_the_curve_and_the_base_it_is_for(
    base: Any, examples: list[Example], tmp_path: Path
) -> None:
    result = train(fresh(base), examples, adapter="mine", out=tmp_path, steps=5)
    names = {path.name for path in tmp_path.iterdir()}
    wanted = {"adapter_config.json", "adapter_model.safetensors", "loss.csv", "loss.png", "state"}
    assert names == wanted
    with (tmp_path / "loss.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5]
    assert [float(row["loss"]) for row in rows] == pytest.approx(result.losses, abs=1e-6)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    header = (tmp_path / "adapter_model.safetensors").read_bytes()[:2000]
    assert base.fingerprint().encode() in header
    stranger = base.merge() if not base.adapters else base
    with torch.no_grad():
        for parameter in stranger.parameters():
            parameter.add_(1.0)
    with pytest.raises(InarchError, match="IA410"):
        stranger.adapt(inarch.adapter("lora", weights=tmp_path))


def test_accumulated_forwards_make_the_step_of_one_large_batch(
    base: Any, examples: list[Example], tmp_path: Path
) -> None:
    four, one = fresh(base), fresh(base)
    picked = examples[:4]
    a = train(four, picked, adapter="mine", out=tmp_path / "a", steps=1, batch_size=1, accumulate=4)
    b = train(one, picked, adapter="mine", out=tmp_path / "b", steps=1, batch_size=4)
    assert a.losses == pytest.approx(b.losses, rel=1e-5)
    for key, tensor in learned(four).items():
        torch.testing.assert_close(tensor, learned(one)[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("breakage", "code"),
    [
        ({"steps": 0}, "IA605"),
        ({"batch_size": 0}, "IA605"),
        ({"learning_rate": -1.0}, "IA605"),
        ({"learning_rate": math.nan}, "IA605"),
        ({"adapter": "nobody"}, "IA403"),
        ({"resume": True}, "IA603"),
        ({"data": "lines.jsonl"}, "IA605"),
    ],
)
def test_what_cannot_be_trained_leaves_nothing_behind(
    base: Any, examples: list[Example], tmp_path: Path, breakage: dict[str, Any], code: str
) -> None:
    model = fresh(base)
    before = learned(model)
    settings: dict[str, Any] = {"data": examples, "adapter": "mine", "out": tmp_path / "out"}
    with pytest.raises(InarchError, match=code):
        train(model, **(settings | breakage))
    assert not (tmp_path / "out").exists()
    assert same(before, learned(model))


def test_a_place_that_can_t_be_saved_in_is_refused_before_the_first_step(
    base: Any, examples: list[Example], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    steps: list[int] = []
    for out in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(InarchError, match="IA605"):
            train(
                fresh(base),
                examples,
                adapter="mine",
                out=out,
                on_step=lambda step, _: steps.append(step),
            )
    assert steps == []


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_save(
    base: Any, examples: list[Example], tmp_path: Path
) -> None:
    model = fresh(base)
    model.adapters["mine"].trainable = False

    def poison(step: int, loss: float) -> None:
        if step == 2:
            with torch.no_grad():
                next(iter(model.adapters["mine"].parameters().values())).fill_(float("nan"))

    with pytest.raises(InarchError, match="IA604"):
        train(model, examples, adapter="mine", out=tmp_path, steps=5, save_every=1, on_step=poison)
    assert not model.adapters["mine"].trainable


def cut_off(file: Path) -> None:
    [tensors] = file.parent.glob("tensors-*/*.safetensors")
    os.truncate(tensors, tensors.stat().st_size - 100)


@pytest.mark.parametrize(
    "damage", [lambda file: file.write_text("{"), lambda file: file.write_text("{}"), cut_off]
)
def test_a_broken_state_is_refused(
    base: Any, examples: list[Example], tmp_path: Path, damage: Any
) -> None:
    train(fresh(base), examples, adapter="mine", out=tmp_path, steps=1)
    damage(tmp_path / "state" / "state.json")
    with pytest.raises(InarchError, match="IA603"):
        train(fresh(base), examples, adapter="mine", out=tmp_path, steps=2, resume=True)


def test_a_run_of_other_settings_or_another_adapter_is_not_resumed(
    base: Any, examples: list[Example], tmp_path: Path
) -> None:
    train(fresh(base), examples, adapter="mine", out=tmp_path, steps=1)
    settings: dict[str, Any] = {"adapter": "mine", "out": tmp_path, "steps": 2, "resume": True}
    with pytest.raises(InarchError, match="IA603"):
        train(fresh(base), examples, seed=1, **settings)
    with pytest.raises(InarchError, match="IA603"):
        train(fresh(base, targets=["mlp.up"]), examples, **settings)
    with pytest.raises(InarchError, match=r"IA603(?s:.*)is of \[2, \d+\], .* of \[3, "):
        train(base.adapt(inarch.adapter("lora", name="mine", rank=3)), examples, **settings)


@pytest.mark.parametrize(
    "line",
    ["", "nonsense", "[1]", "{}", '{"prompt": "a"}', '{"messages": []}', '{"text": 3}'],
)
def test_a_line_that_is_no_example_is_named(tmp_path: Path, line: str) -> None:
    class Letters:
        eos_id = None
        add_eos = False

        def encode(self, text: str, special: bool = True) -> list[int]:
            return [ord(c) for c in text]

        def encode_chat(self, messages: list[Any], reply: bool = True) -> list[int]:
            return [ord(c) for m in messages for c in m["content"]]

    file = tmp_path / "data.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(InarchError, match=r"IA60[12]") as caught:
        read_examples(file, Letters(), max_length=8)  # type: ignore[arg-type]
    assert "data.jsonl" in caught.value.where
    file.write_text(json.dumps({"prompt": "ab", "completion": "cde"}) + "\n")
    [example] = read_examples(file, Letters(), max_length=4)  # type: ignore[arg-type]
    assert example.ids == tuple(map(ord, "abcd"))
    assert example.labels == (-100, -100, ord("c"), ord("d"))


def test_the_state_has_the_optimizers_moments(
    base: Any, examples: list[Example], tmp_path: Path
) -> None:
    train(fresh(base), examples, adapter="mine", out=tmp_path, steps=2)
    [file] = (tmp_path / "state").glob("tensors-*/*.safetensors")
    kinds = {key.split(".")[0] for key in load_file(file)}
    assert {"parameter", "exp_avg", "exp_avg_sq", "step", "cpu_generator"} <= kinds
