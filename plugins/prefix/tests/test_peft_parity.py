"""PEFT's folders give PEFT's outputs, gradients and texts here, and ours give ours in PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import inarch
from inarch.nn.attention import positions_of

peft = pytest.importorskip("peft")

TOKENS = 4
METHODS = {
    "prefix": (
        "prefix",
        lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=TOKENS),
    ),
    "projected": (
        "prefix",
        lambda: peft.PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=TOKENS,
            prefix_projection=True,
            encoder_hidden_size=5,
        ),
    ),
    "prompt": (
        "prompt-tuning",
        lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=TOKENS),
    ),
    "p_tuning": (
        "prompt-tuning",
        lambda: peft.PromptEncoderConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=TOKENS, encoder_hidden_size=5
        ),
    ),
}


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> tuple[str, Any]:
    use, config = METHODS[request.param]
    return use, config()


def saved(theirs: Any, config: Any, folder: Path) -> tuple[Any, Path]:
    """PEFT's model with a trained adapter, and the folder it saved it in."""
    torch.manual_seed(3)
    model = peft.get_peft_model(theirs, config).eval()
    model.save_pretrained(folder / "theirs")
    return model, folder / "theirs"


def close(actual: Tensor, expected: Tensor) -> None:
    largest = float(expected.detach().abs().max())
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6 * largest)


def test_a_folder_of_peft_gives_its_logits_of_the_text(
    pair: tuple[Any, Any], method: tuple[str, Any], ids: Tensor, tmp_path: Path
) -> None:
    theirs, ours = pair
    use, config = method
    model, folder = saved(theirs, config, tmp_path)
    adapted = ours.adapt(inarch.adapter(use, weights=folder, name="mine"))
    close(adapted(ids), model(ids).logits[:, -ids.shape[1] :])
    close(adapted(ids[:1, :1]), model(ids[:1, :1]).logits[:, -1:])


@pytest.mark.parametrize("name", ["prefix", "prompt"])
def test_gradients_are_peft_s(
    pair: tuple[Any, Any], name: str, ids: Tensor, tmp_path: Path
) -> None:
    theirs, ours = pair
    use, config = METHODS[name]
    model, folder = saved(theirs, config(), tmp_path)
    adapted = ours.adapt(inarch.adapter(use, weights=folder))
    adapted.adapters[adapted.adapters.names[0]].trainable = True
    model(ids).logits[:, -ids.shape[1] :].square().mean().backward()
    adapted(ids).square().mean().backward()
    [parameter] = [p for p in model.parameters() if p.requires_grad]
    [own] = adapted.adapter_parameters(adapted.adapters.names[0]).values()
    torch.testing.assert_close(own.grad, parameter.grad, rtol=1e-5, atol=1e-6)


def test_a_prefix_of_a_batch_filled_up_on_the_left_gives_peft_s_logits(
    llamas: tuple[Any, Any], ids: Tensor, tmp_path: Path
) -> None:
    theirs, ours = llamas
    use, config = METHODS["prefix"]
    model, folder = saved(theirs, config(), tmp_path)
    adapted = ours.adapt(inarch.adapter(use, weights=folder))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    mask[2, :1] = 0
    expected = model(ids, attention_mask=mask, position_ids=positions_of(mask)).logits
    kept = mask.bool()
    close(adapted(ids, mask)[kept], expected[kept])


def test_a_row_filled_up_on_either_side_gives_what_peft_gives_for_it_alone(
    pair: tuple[Any, Any], method: tuple[str, Any], ids: Tensor, tmp_path: Path
) -> None:
    theirs, ours = pair
    use, config = method
    model, folder = saved(theirs, config, tmp_path)
    adapted = ours.adapt(inarch.adapter(use, weights=folder, name="mine"))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    mask[2, 7:] = 0
    together = adapted(ids, mask)
    for row in range(len(ids)):
        kept = mask[row].bool()
        alone = model(ids[row : row + 1, kept]).logits[0, -int(kept.sum()) :]
        close(together[row, kept], alone)


def test_generation_of_unequal_prompts_is_what_peft_generates_for_each(
    pair: tuple[Any, Any], method: tuple[str, Any], ids: Tensor, tmp_path: Path
) -> None:
    theirs, ours = pair
    use, config = method
    model, folder = saved(theirs, config, tmp_path)
    adapted = ours.adapt(inarch.adapter(use, weights=folder, name="mine"))
    prompts = [ids[0].tolist(), ids[1, :4].tolist(), ids[2, :1].tolist()]
    expected = []
    for prompt in prompts:
        given = torch.tensor([prompt])
        text = model.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=8,
            do_sample=False,
            pad_token_id=0,
        )
        expected.append(text[0, len(prompt) :].tolist())
    steps = list(adapted.generate_ids(prompts, max_new_tokens=8, stop=frozenset()))
    assert torch.tensor(steps).T.tolist() == expected
    for prompt, text in zip(prompts, expected, strict=True):
        steps = list(adapted.generate_ids([prompt], max_new_tokens=8, stop=frozenset()))
        assert torch.tensor(steps).T.tolist() == [text]


def test_generation_of_a_batch_with_a_prefix_is_peft_s_of_the_batch(
    llamas: tuple[Any, Any], ids: Tensor, tmp_path: Path
) -> None:
    theirs, ours = llamas
    use, config = METHODS["prefix"]
    model, folder = saved(theirs, config(), tmp_path)
    adapted = ours.adapt(inarch.adapter(use, weights=folder))
    prompts = [ids[0].tolist(), ids[1, :4].tolist(), ids[2, :7].tolist()]
    padded = torch.tensor([[0] * (9 - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (9 - len(p)) + [1] * len(p) for p in prompts])
    expected = model.generate(
        input_ids=padded, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0
    )[:, 9:]
    steps = list(adapted.generate_ids(prompts, max_new_tokens=8, stop=frozenset()))
    assert torch.tensor(steps).T.tolist() == expected.tolist()


def test_a_folder_of_ours_is_peft_s_to_the_bit(
    pair: tuple[Any, Any], method: tuple[str, Any], ids: Tensor, tmp_path: Path
) -> None:
    theirs, ours = pair
    use, config = method
    model, folder = saved(theirs, config, tmp_path)
    expected = model(ids).logits[:, -ids.shape[1] :]
    adapted = ours.adapt(inarch.adapter(use, weights=folder, name="mine"))
    adapted.save_adapter("mine", tmp_path / "ours")
    files = [load_file(tmp_path / n / "adapter_model.safetensors") for n in ("theirs", "ours")]
    assert set(files[0]) == set(files[1]) == {"prompt_embeddings"}
    assert torch.equal(files[0]["prompt_embeddings"], files[1]["prompt_embeddings"])
    again = peft.PeftModel.from_pretrained(theirs, tmp_path / "ours").eval()
    close(again(ids).logits[:, -ids.shape[1] :], expected)
    reloaded = ours.adapt(inarch.adapter(use, weights=tmp_path / "ours", name="other"))
    assert torch.equal(reloaded(ids), adapted(ids))


@pytest.mark.parametrize(
    ("use", "options"),
    [
        ("prefix", {"tokens": 3}),
        ("prefix", {"tokens": 3, "projection": True}),
        ("prefix", {"tokens": 1, "projection": True, "hidden": 7, "start": "zero"}),
        ("prompt-tuning", {"tokens": 3}),
        ("prompt-tuning", {"tokens": 5, "start": "vocabulary"}),
    ],
)
def test_a_fresh_one_of_ours_loads_into_peft(
    pair: tuple[Any, Any], ids: Tensor, tmp_path: Path, use: str, options: dict[str, Any]
) -> None:
    theirs, ours = pair
    adapted = ours.adapt(inarch.adapter(use, name="mine", **options))
    with torch.no_grad():
        for parameter in adapted.adapter_parameters("mine").values():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    adapted.save_adapter("mine", tmp_path / "ours")
    model = peft.PeftModel.from_pretrained(theirs, tmp_path / "ours").eval()
    close(adapted(ids).detach(), model(ids).logits[:, -ids.shape[1] :].detach())
    reloaded = ours.adapt(inarch.adapter(use, weights=tmp_path / "ours", name="again"))
    assert torch.equal(reloaded(ids), adapted(ids))


def test_the_gradients_of_a_projection_are_peft_s(llamas: tuple[Any, Any], ids: Tensor) -> None:
    theirs, ours = llamas
    _, config = METHODS["projected"]
    torch.manual_seed(3)
    model = peft.get_peft_model(theirs, config()).eval()
    spec = inarch.adapter("prefix", name="mine", tokens=TOKENS, projection=True, hidden=5)
    adapted = ours.adapt(spec)
    encoder = model.prompt_encoder["default"]
    first, second = encoder.transform[0], encoder.transform[2]
    names = {
        "embedding": encoder.embedding.weight,
        "first": first.weight,
        "first_bias": first.bias,
        "second": second.weight,
        "second_bias": second.bias,
    }
    own = {n.rpartition(".")[2]: p for n, p in adapted.adapter_parameters("mine").items()}
    assert set(own) == set(names)
    for name, parameter in own.items():
        parameter.data.copy_(names[name])
    expected, actual = model(ids).logits, adapted(ids)
    close(actual, expected)
    expected.square().mean().backward()
    actual.square().mean().backward()
    for name, parameter in own.items():
        torch.testing.assert_close(parameter.grad, names[name].grad, rtol=1e-5, atol=1e-6)
