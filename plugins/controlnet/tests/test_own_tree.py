"""A ControlNet's own tree, adapted: PEFT's LoRA on diffusers' ControlNetModel is the measure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_controlnets import controlnet
from small_pipelines import saved
from torch import Tensor

import inarch
from inarch.adapters import Model
from inarch.cli.main import main
from inarch.errors import InarchError
from inarch.resolve.plan import Plan, resolve, schema
from inarch_stable_diffusion.beside_diffusers import Pair

Make = Callable[..., Pair]
LAYERS = ["to_q", "to_v", "ff.net.0.proj", "conv1", "conv_in", "linear_1", "proj_out"]
HINT = "controlnet_cond_embedding"


def peft_lora(net: Any, folder: Path, seed: int = 0, **settings: Any) -> Any:
    """PEFT's LoRA put into diffusers' ControlNet, of random factors, saved as PEFT does."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(seed)
    usual = {"r": 3, "lora_alpha": 2, "target_modules": LAYERS, "exclude_modules": f"{HINT}.*"}
    config = peft.LoraConfig(**{**usual, **settings}, init_lora_weights=False)
    made = peft.get_peft_model(net, config)
    made.save_pretrained(folder)
    return made.requires_grad_(False)


def canny(folder: Path, *inner: Any, **settings: Any) -> inarch.AdapterSpec:
    given = {"weights": folder / "canny", "name": "canny", **settings}
    return inarch.adapter("controlnet", adapters=inner, **given)


def lines(folder: Path, name: str = "lines", **settings: Any) -> inarch.AdapterSpec:
    return inarch.adapter("lora", weights=folder / name, name=name, **settings)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


MID = {"transformer_layers_per_block": [1, 1, 1]}  # of XL: other transformers than the model's


@pytest.mark.parametrize(("kind", "settings"), [("sd1", {}), ("xl", {}), ("deep", {}), ("xl", MID)])
def test_a_lora_in_its_tree_is_pefts_in_diffusers(
    make_pair: Make, tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    pair = make_pair(kind)
    net, image = controlnet(pair.unet, tmp_path / "canny", **settings), pair.image()
    plain = pair.theirs(pair.control(net, image, 0.7))
    peft_lora(net, tmp_path / "lines")
    theirs = pair.theirs(pair.control(net, image, 0.7))
    assert not torch.allclose(plain, theirs, atol=1e-2)
    model = pair.model.adapt(canny(tmp_path, lines(tmp_path), scale=0.7))
    close(pair.ours(model, canny_image=image), theirs)
    close(pair.ours(pair.model.adapt(canny(tmp_path, scale=0.7)), canny_image=image), plain)


def test_its_scale_is_its_own_and_that_of_the_controlnet_leaves_it(
    make_pair: Make, tmp_path: Path
) -> None:
    pair = make_pair("sd1")
    net, image = controlnet(pair.unet, tmp_path / "canny"), pair.image()
    put = peft_lora(net, tmp_path / "lines")
    model = pair.model.adapt(canny(tmp_path, lines(tmp_path, scale=0.4)))
    for layer in put.modules():
        if hasattr(layer, "scaling") and "default" in layer.scaling:
            layer.scaling["default"] *= 0.4
    close(pair.ours(model, canny_image=image), pair.theirs(pair.control(net, image)))
    model.adapters["canny"].scale = 0.5
    close(pair.ours(model, canny_image=image), pair.theirs(pair.control(net, image, 0.5)))
    inner = model.adapters["canny"].inner
    assert inner is not None
    assert inner.adapters["lines"].scale == 0.4
    inner.adapters["lines"].scale = 0.0
    plain = pair.model.adapt(canny(tmp_path, scale=0.5))
    assert torch.equal(pair.ours(model, canny_image=image), pair.ours(plain, canny_image=image))


def test_two_in_it_are_one_model_in_either_order_and_dora_reads_its_weights(
    make_pair: Make, tmp_path: Path
) -> None:
    pair = make_pair("sd1")
    net, image = controlnet(pair.unet, tmp_path / "canny"), pair.image()
    put = peft_lora(net, tmp_path / "lines", use_dora=True, target_modules=["to_q", "to_v"])
    close(
        pair.ours(pair.model.adapt(canny(tmp_path, lines(tmp_path))), canny_image=image),
        pair.theirs(pair.control(net, image)),
    )
    peft_lora(put.unload(), tmp_path / "soft", 1)
    pair_of = [lines(tmp_path), lines(tmp_path, "soft", scale=0.3, before=["lines"])]
    one, two = (pair.model.adapt(canny(tmp_path, *s)) for s in (pair_of, pair_of[::-1]))
    assert one.digest == two.digest
    assert torch.equal(pair.ours(one, canny_image=image), pair.ours(two, canny_image=image))
    alone = pair.model.adapt(canny(tmp_path, lines(tmp_path)))
    assert len({one.digest, alone.digest, pair.model.adapt(canny(tmp_path)).digest}) == 3


def test_a_lora_in_it_and_one_beside_it_never_meet(make_pair: Make, tmp_path: Path) -> None:
    pair = make_pair("sd1")
    net, image = controlnet(pair.unet, tmp_path / "canny"), pair.image()
    peft_lora(net, tmp_path / "lines")
    control = pair.control(net, image)
    beside = pair.model.adapt(inarch.adapter("lora", name="drawn", rank=2))
    generator = torch.Generator().manual_seed(2)
    for parameter in beside.adapter_parameters("drawn").values():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    beside.save_adapter("drawn", tmp_path / "drawn")
    specs = [canny(tmp_path, lines(tmp_path, name="lines")), lines(tmp_path, "drawn")]
    one, two = (pair.model.adapt(*s) for s in (specs, specs[::-1]))
    for name, module in pair.unet.named_modules():
        address = f"unet.{name}.drawn"
        for key in [k for k in beside.adapters["drawn"].modules if k.startswith(address)]:
            raise AssertionError(f"{key} stands inside of {module}")
    found = pair.ours(one, canny_image=image)
    assert torch.equal(found, pair.ours(two, canny_image=image))
    merged = beside.merge("drawn")
    residuals = merged.trees["unet"].state_dict()
    pair.unet.load_state_dict({n: t for n, t in residuals.items() if "__" not in n})
    torch.testing.assert_close(
        found, pair.theirs(control), rtol=1e-4, atol=1e-4 * float(found.abs().max())
    )
    assert torch.equal(
        pair.ours(one.without("canny")), pair.ours(pair.model.adapt(lines(tmp_path, "drawn")))
    )


def test_one_to_be_trained_begins_without_effect_and_learns_alone(
    make_pair: Make, tmp_path: Path
) -> None:
    pair = make_pair("sd1")
    net, image = controlnet(pair.unet, tmp_path / "canny"), pair.image()
    model = pair.model.adapt(canny(tmp_path, inarch.adapter("lora", name="lines", rank=2)))
    plain = pair.theirs(pair.control(net, image))
    close(pair.ours(model, canny_image=image), plain)
    inner = model.adapters["canny"].inner
    assert isinstance(inner, Model)
    assert inner.adapters["lines"].trainable
    assert not model.adapters["canny"].trainable
    for step in range(2):  # A takes a gradient once B has left zero
        pair.ours(model, canny_image=image).square().sum().backward()
        moved = inner.adapter_parameters("lines")
        assert sum(p.grad is not None and bool(p.grad.any()) for p in moved.values()) > step
        with torch.no_grad():
            for parameter in moved.values():
                parameter -= 0.05 * parameter.grad.sign()
                parameter.grad = None
    assert all(
        p.grad is None for n, p in model.trees["unet"].named_parameters() if "lines" not in n
    )
    inner.save_adapter("lines", tmp_path / "lines")
    again = pair.model.adapt(canny(tmp_path, lines(tmp_path)))
    with torch.no_grad():
        found = pair.ours(model, canny_image=image)
        assert torch.equal(pair.ours(again, canny_image=image), found)
        assert not torch.allclose(found, plain, atol=1e-3)


def test_saving_the_controlnet_saves_what_it_is_without_them(
    make_pair: Make, tmp_path: Path
) -> None:
    pair = make_pair("sd1")
    peft_lora(controlnet(pair.unet, tmp_path / "canny"), tmp_path / "lines")
    model = pair.model.adapt(canny(tmp_path, lines(tmp_path)))
    model.save_adapter("canny", tmp_path / "again")
    name = "diffusion_pytorch_model.safetensors"
    first, again = (load_file(tmp_path / f / name) for f in ("canny", "again"))
    assert first.keys() == again.keys()
    assert all(torch.equal(tensor, again[key]) for key, tensor in first.items())


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """A stack file beside its base, ControlNet and LoRA."""
    import diffusers

    from inarch_stable_diffusion.beside_diffusers import randomised

    pytest.importorskip("transformers")
    saved(tmp_path / "base")
    unet = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "base", subfolder="unet")
    net = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 6))
    randomised(net, 1).save_pretrained(tmp_path / "canny")
    peft_lora(net, tmp_path / "lines")
    (tmp_path / "stack.toml").write_text(
        'model = "base"\n\n[[adapter]]\nuse = "controlnet"\nname = "canny"\nweights = "canny"\n'
        '\n[[adapter.adapter]]\nuse = "lora"\nname = "lines"\nweights = "lines"\nscale = 0.5\n'
    )
    return tmp_path / "stack.toml"


def test_a_stack_file_says_it_in_a_table_of_its_own(scene: Path) -> None:
    stack = inarch.load_stack(scene)
    folder = scene.parent
    assert stack.specs == (canny(folder, lines(folder, scale=0.5)),)
    base = inarch.load(stack.model or "")
    model = base.adapt(stack)
    assert model.adapters["canny"].inner is not None
    plan = resolve(base, stack)
    assert plan.digest == model.digest
    [member] = plan.members
    assert [(one.name, one.kind, one.scale) for one in member.adapters] == [("lines", "lora", 0.5)]
    assert member.parameters == sum(p.numel() for p in model.adapter_parameters("canny").values())
    inside = model.adapters["canny"].inner.adapter_parameters("lines").values()
    assert member.adapters[0].parameters == sum(p.numel() for p in inside)  # equal ones counted too
    assert plan.proof is not None
    assert not plan.proof.unproved
    again = Plan.from_json(plan.to_json())
    assert again.apply(base).digest == model.digest
    jsonschema.validate(json.loads(plan.to_json()), schema())


def run(*words: Any) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return int(stop.value.code or 0)


def test_checking_and_locking_look_at_its_files(scene: Path, capsys: Any) -> None:
    assert run("check", scene) == 0
    assert run("plan", scene) == 0
    assert "canny / lines" in capsys.readouterr().out
    assert run("lock", scene) == 0
    assert run("lock", "--check", scene) == 0
    file = scene.parent / "lines" / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({n: t + 1.0 for n, t in tensors.items()}, file)
    assert run("lock", "--check", scene) == 4
    assert run("lock", scene) == 0
    scene.write_text(scene.read_text().replace("scale = 0.5", "scale = 0.6"))
    capsys.readouterr()
    assert run("lock", "--check", scene) == 4
    assert "asks for `canny` otherwise" in capsys.readouterr().err
    file.unlink()
    assert run("check", scene) == 1


def test_what_can_not_be_in_it_is_refused_with_the_reason(make_pair: Make, tmp_path: Path) -> None:
    pair = make_pair("sd1")
    net = controlnet(pair.unet, tmp_path / "canny")
    peft_lora(net, tmp_path / "hint", target_modules=[f"{HINT}.conv_in"], exclude_modules=None)
    asks = inarch.adapter("lora", name="fast", rank=2, asks={"steps": 4})
    for inner, why in (
        (inarch.adapter("controlnet", name="another"), "it asks for `another_image`"),
        (asks, "it asks for settings of the model's tasks"),
        (lines(tmp_path, "hint"), HINT),
        (inarch.adapter("lora", weights=tmp_path / "canny"), ""),
    ):
        with pytest.raises(InarchError) as raised:
            pair.model.adapt(canny(tmp_path, inner))
        assert why in str(raised.value)
    with pytest.raises(InarchError) as raised:
        pair.model.adapt(inarch.adapter("lora", rank=2, adapters=["lora"]))
    assert raised.value.code == "IA429"
    assert "adapters of kind lora bring none" in raised.value.why
