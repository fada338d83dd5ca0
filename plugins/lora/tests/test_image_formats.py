"""The files of image models: every format gives diffusers' outputs, by names made from the tree."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_images import (
    LOST_BY_DIFFUSERS,
    Factors,
    Pipeline,
    attention,
    by_sums,
    dotted,
    kohya,
    kohya_name,
    old_diffusers,
    random_lora,
    same,
    write,
)
from torch import Tensor

import inarch
from inarch.adapters import Model
from inarch_lora.sgm import sgm_names


@pytest.fixture(params=[False, True], ids=["sd1", "xl"])
def pipeline(request: pytest.FixtureRequest) -> Pipeline:
    return Pipeline(request.param)


@pytest.fixture(scope="module")
def small() -> Pipeline:
    """One whose part in diffusers takes no adapter, so that tests may share it."""
    return Pipeline(xl=False)


def test_the_parts_are_equal_before(pipeline: Pipeline) -> None:
    same(pipeline.outputs(pipeline.ours), pipeline.outputs())


@pytest.mark.parametrize("form", ["kohya", "sgm", "peft", "lora.down", "lora_linear", "old"])
def test_a_format_gives_diffusers_outputs(pipeline: Pipeline, form: str, tmp_path: Path) -> None:
    layers = pipeline.layers()
    if form in ("lora_linear", "old", "lora.down"):
        layers = attention(layers)
    for name in LOST_BY_DIFFUSERS.get(form, ()):
        layers = {a: layer for a, layer in layers.items() if name not in a}
    # Of several alphas diffusers loses all but one; they are tried below.
    factors = random_lora(layers, 3, (4.0,) if form in ("kohya", "sgm") else (None,))
    if form == "kohya":
        state = kohya(factors, pipeline.xl)
    elif form == "sgm":
        paths = [a.removeprefix("unet.") for a in layers if a.startswith("unet.")]
        every = [a.removeprefix("unet.") for a in pipeline.ours.sites.all if a.startswith("unet.")]
        state = kohya(factors, True, {p: sgm_names(every)[p] for p in paths})
    elif form == "old":
        state = old_diffusers(factors)
    elif form == "peft":
        state = dotted(factors, "lora_A.weight", "lora_B.weight")
    else:
        own = {a: f for a, f in factors.items() if a.startswith("unet.")}
        others = {a: f for a, f in factors.items() if a not in own}
        state = dotted(own, "lora.down.weight", "lora.up.weight")
        state |= dotted(others, "lora_linear_layer.down.weight", "lora_linear_layer.up.weight")
    file = write(state, tmp_path / "file.safetensors")
    adapted = pipeline.ours.adapt(inarch.adapter("lora", weights=file, scale=0.8))
    same(pipeline.outputs(adapted), by_sums(pipeline, (factors, 0.8)))
    same(pipeline.outputs(adapted.merge()), pipeline.outputs(adapted))
    if form == "sgm" and not pipeline.xl:
        return  # diffusers reads these names for XL only
    pipeline.theirs.load_lora_weights(str(file), adapter_name="a")
    pipeline.theirs.set_adapters(["a"], [0.8])
    same(pipeline.outputs(adapted), pipeline.outputs())


@pytest.mark.parametrize("alphas", [(1.0, 2.0, 3.0), (None, 5.0), (None,), (0.0,)])
def test_alpha_is_each_layers_own_and_missing_is_its_rank(
    small: Pipeline, alphas: tuple[float | None, ...], tmp_path: Path
) -> None:
    factors = random_lora(small.layers(), 5, alphas)
    file = write(kohya(factors, small.xl), tmp_path / "file.safetensors")
    adapted = small.ours.adapt(inarch.adapter("lora", weights=file))
    plain = {a: (first, second, alpha or None) for a, (first, second, alpha) in factors.items()}
    same(small.outputs(adapted), by_sums(small, (plain, 1.0)))


def test_several_at_once_with_weights_equal_diffusers(tmp_path: Path) -> None:
    pipeline = Pipeline(xl=False)
    layers = pipeline.layers()
    some = {a: layer for a, layer in layers.items() if a.startswith("unet.up") or "text" in a}
    loras = {
        "a": (random_lora(layers, 3, (None,)), 0.7),
        "b": (random_lora(some, 4, (None,)), -0.4),
        "c": (random_lora(attention(layers), 5, (None,)), 1.5),
    }
    specs = []
    for name, (factors, scale) in loras.items():
        state = dotted(factors, "lora_A.weight", "lora_B.weight")
        file = write(state, tmp_path / f"{name}.safetensors")
        pipeline.theirs.load_lora_weights(str(file), adapter_name=name)
        specs.append(inarch.adapter("lora", weights=file, scale=scale, name=name))
    pipeline.theirs.set_adapters(list(loras), [scale for _, scale in loras.values()])
    adapted = pipeline.ours.adapt(*specs)
    found = pipeline.outputs(adapted)
    same(found, pipeline.outputs())
    again = pipeline.outputs(pipeline.ours.adapt(*reversed(specs)))
    assert all(torch.equal(again[name], value) for name, value in found.items())
    dropped = pipeline.outputs(adapted.without("a", "b", "c"))
    base = pipeline.outputs(pipeline.ours)
    assert all(torch.equal(dropped[name], value) for name, value in base.items())


COMFY = {
    "unet": "diffusion_model.",
    "text_encoder": "text_encoders.clip_l.transformer.",
    "text_encoder_2": "text_encoders.clip_g.transformer.",
}


@pytest.mark.parametrize("form", ["diffusers names", "original names", "clip_l", "lycoris"])
def test_other_prefixes_are_read(form: str, tmp_path: Path) -> None:
    pipeline = Pipeline(xl=True)
    factors = random_lora(pipeline.layers(), 6, (None,))
    every = [a.removeprefix("unet.") for a in pipeline.ours.sites.all if a.startswith("unet.")]
    original = sgm_names(every)
    state: dict[str, Tensor] = {}
    for address, (first, second, _) in factors.items():
        tree, _, path = address.partition(".")
        if form == "original names" and tree == "unet":
            path = original[path]
        prefix = COMFY[tree]
        if form == "clip_l":
            prefix = {"text_encoder": "clip_l.", "text_encoder_2": "clip_g."}.get(tree, prefix)
        name = prefix + path
        if form == "lycoris":
            name = f"lycoris_{address.replace('.', '_')}"
        state |= {f"{name}.lora_down.weight": first, f"{name}.lora_up.weight": second}
    file = write(state, tmp_path / "file.safetensors")
    adapted = pipeline.ours.adapt(inarch.adapter("lora", weights=file))
    same(pipeline.outputs(adapted), by_sums(pipeline, (factors, 1.0)))


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_a_fresh_one_is_saved_for_diffusers(form: str, tmp_path: Path) -> None:
    pipeline = Pipeline(xl=True)
    targets = ["unet.*.*.attentions.*.transformer_blocks.*.{attn1,attn2}.{to_q,to_k}"]
    targets += [
        f"{name}.text_model.encoder.layers.*.self_attn.q_proj" for name in pipeline.encoders()
    ]
    spec = inarch.adapter(
        "lora", targets=targets, rank=3, alpha=6, format=form, alpha_pattern={"to_k": 2}
    )
    adapted = pipeline.ours.adapt(spec)
    for parameter in adapted.adapter_parameters("lora").values():
        parameter.data.normal_(std=0.3)
    adapted.adapters["lora"].trainable = False
    adapted.save_adapter("lora", tmp_path)
    [file] = tmp_path.glob("*.safetensors")
    again = pipeline.ours.adapt(inarch.adapter("lora", weights=tmp_path))
    found = pipeline.outputs(adapted)
    same(pipeline.outputs(again), found)
    if form == "diffusers":  # of several alphas in a kohya file diffusers loses all but one
        pipeline.theirs.load_lora_weights(str(file), adapter_name="a")
        same(pipeline.outputs(), found)


def test_one_format_is_saved_as_another(small: Pipeline, tmp_path: Path) -> None:
    factors = random_lora(small.layers(), 7)
    file = write(kohya(factors, small.xl), tmp_path / "file.safetensors")
    adapted = small.ours.adapt(inarch.adapter("lora", weights=file, format="diffusers"))
    adapted.save_adapter("lora", tmp_path / "out")
    again = small.ours.adapt(inarch.adapter("lora", weights=tmp_path / "out", format="kohya"))
    same(small.outputs(again), small.outputs(adapted))
    again.save_adapter("lora", tmp_path / "back")
    state = load_file(tmp_path / "back" / "adapter.safetensors")
    assert state.keys() == kohya(factors, small.xl).keys()


def test_a_file_is_saved_under_the_names_it_came_with(tmp_path: Path) -> None:
    pipeline = Pipeline(xl=True)
    every = [a.removeprefix("unet.") for a in pipeline.ours.sites.all if a.startswith("unet.")]
    state = kohya(random_lora(pipeline.layers(), 7), True, sgm_names(every))
    file = write(state, tmp_path / "file.safetensors")
    pipeline.ours.adapt(inarch.adapter("lora", weights=file)).save_adapter("lora", tmp_path / "out")
    found = load_file(tmp_path / "out" / "adapter.safetensors")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)


def test_blocks_have_scales_of_their_own(small: Pipeline, tmp_path: Path) -> None:
    factors = random_lora(small.layers(), 8)
    file = write(kohya(factors, small.xl), tmp_path / "file.safetensors")
    scales = {"unet.down_blocks": 0.5, "unet.down_blocks.*.attentions": 0.0, "text_encoder": -2.0}
    spec = inarch.adapter("lora", weights=file, scale=0.7, block_scales=scales)
    adapted = small.ours.adapt(spec)
    parts: dict[float, Factors] = {0.5: {}, 0.0: {}, -2.0: {}, 1.0: {}}
    for address, value in factors.items():
        inside = address.startswith("unet.down_blocks.")
        scale = 0.0 if inside and ".attentions." in address else 0.5 if inside else 1.0
        parts[-2.0 if address.startswith("text_encoder.") else scale][address] = value
    expected = by_sums(small, *((part, 0.7 * scale) for scale, part in parts.items()))
    same(small.outputs(adapted), expected)
    same(small.outputs(adapted.merge()), expected)
    adapted.save_adapter("lora", tmp_path / "out")  # a block's scale is the user's, not the file's
    first, second = load_file(file), load_file(tmp_path / "out" / "adapter.safetensors")
    assert all(torch.equal(first[key], second[key]) for key in first)


def refusal(model: Model, state: Mapping[str, Tensor], folder: Path, **options: Any) -> Any:
    file = write(state, folder / "file.safetensors")
    with pytest.raises(inarch.InarchError) as caught:
        model.adapt(inarch.adapter("lora", weights=file, **options))
    return caught.value


def test_a_key_without_a_layer_is_named(small: Pipeline, tmp_path: Path) -> None:
    state = kohya(random_lora(small.layers(), 8), small.xl)
    key = "lora_unet_down_blocks_7_attentions_0_proj_in.lora_down.weight"
    error = refusal(small.ours, {**state, key: torch.ones(2, 8)}, tmp_path)
    assert (error.code, key in error.where) == ("IA425", True)
    assert "lora_unet_down_blocks_0_attentions_0_proj_in" in error.remedy


def test_a_text_encoder_the_model_does_not_have_is_named(tmp_path: Path) -> None:
    pipeline = Pipeline(xl=True)
    state = kohya(random_lora(pipeline.layers(), 8), True)
    error = refusal(Pipeline(xl=False).ours, state, tmp_path)
    assert error.code in ("IA425", "IA411")
    assert "lora_" in str(error)


def test_a_name_that_two_encoders_have_is_refused(tmp_path: Path) -> None:
    pipeline = Pipeline(xl=True)
    name = "text_model.encoder.layers.0.self_attn.q_proj"
    state = {f"{name}.lora_A.weight": torch.ones(2, 12), f"{name}.lora_B.weight": torch.ones(12, 2)}
    error = refusal(pipeline.ours, state, tmp_path)
    assert (error.code, f"text_encoder_2.{name}" in error.why) == ("IA428", True)


def test_a_block_that_holds_nothing_is_refused(small: Pipeline, tmp_path: Path) -> None:
    state = kohya(random_lora(attention(small.layers()), 8), small.xl)
    scales = {"unet.up_blocks": 0.5, "unet.conv_in": 0.2}
    error = refusal(small.ours, state, tmp_path, block_scales=scales)
    assert (error.code, "unet.conv_in" in error.what) == ("IA402", True)


def test_a_wrong_shape_among_many_changes_nothing(small: Pipeline, tmp_path: Path) -> None:
    state = kohya(random_lora(small.layers(), 8), small.xl)
    key = next(key for key in state if key.endswith("mid_block_resnets_0_conv1.lora_up.weight"))
    state[key] = torch.ones(9, *state[key].shape[1:])
    before = small.outputs(small.ours)
    error = refusal(small.ours, state, tmp_path)
    assert (error.code, key in str(error)) == ("IA411", True)
    after = small.outputs(small.ours)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_linear_factors_of_a_pointwise_convolution_fit_either_way(tmp_path: Path) -> None:
    for xl, shape in ((False, (2, 8)), (True, (2, 8, 1, 1))):
        pipeline = Pipeline(xl)
        address = "unet.down_blocks.0.attentions.0.proj_in"
        first, second = torch.randn(shape), torch.randn(8, 2, *shape[2:])
        factors: Factors = {address: (first, second, 1.0)}
        file = write(kohya(factors, xl), tmp_path / f"{xl}.safetensors")
        adapted = pipeline.ours.adapt(inarch.adapter("lora", weights=file))
        same(pipeline.outputs(adapted), by_sums(pipeline, (factors, 1.0)))


def test_lycoris_files_of_a_unet_land_on_its_layers(small: Pipeline, tmp_path: Path) -> None:
    address = "unet.down_blocks.0.resnets.0.conv1"
    name = kohya_name(address, small.xl)
    shape = small.layers()[address].weight.shape
    wide = shape[1:].numel()
    parts = [torch.randn(s) * 0.5 for s in ((8, 2), (2, wide), (8, 2), (2, wide))]
    keys = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    state = {f"{name}.{key}": part for key, part in zip(keys, parts, strict=True)}
    state |= {f"{name}.alpha": torch.tensor(1.0)}
    adapted = small.ours.adapt(
        inarch.adapter("lora", weights=write(state, tmp_path / "file.safetensors"))
    )
    change = ((parts[0] @ parts[1]) * (parts[2] @ parts[3])).view(shape) / 2
    layer = small.layers()[address]
    layer.weight.add_(change)
    expected = small.outputs(small.ours)
    layer.weight.sub_(change)
    same(small.outputs(adapted), expected)


def test_only_the_trees_of_the_file_are_edited(small: Pipeline, tmp_path: Path) -> None:
    layers = {a: v for a, v in small.layers().items() if a.startswith("unet.mid_block")}
    file = write(kohya(random_lora(layers, 1), small.xl), tmp_path / "file.safetensors")
    adapted = small.ours.adapt(inarch.adapter("lora", weights=file))
    assert {edit.address for edit in adapted.adapters["lora"].edits} == set(layers)
    for name in small.encoders():
        assert adapted.trees[name] is small.ours.trees[name]


@pytest.mark.parametrize("algorithm", ["lora", "loha", "lokr", "full"])
def test_a_network_of_lycoris_lands_on_the_unet(algorithm: str, tmp_path: Path) -> None:
    lycoris = pytest.importorskip("lycoris")
    pipeline = Pipeline(xl=False)
    preset = {"target_module": ["Transformer2DModel", "ResnetBlock2D"], "target_name": []}
    lycoris.LycorisNetwork.apply_preset(preset)
    network = lycoris.create_lycoris(
        pipeline.theirs.unet, 1.0, linear_dim=2, linear_alpha=1.0, algo=algorithm, train_norm=True
    )
    network.apply_to()
    for parameter in network.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    file = write(network.state_dict(), tmp_path / "file.safetensors")
    keys = load_file(file)
    assert any(key.endswith("w_norm") for key in keys)
    adapted = pipeline.ours.adapt(inarch.adapter("lora", weights=file))
    assert len(adapted.adapters["lora"].edits) == len({key.partition(".")[0] for key in keys})
    same({"unet": pipeline.outputs(adapted)["unet"]}, {"unet": pipeline.outputs()["unet"].detach()})


def test_settings_in_the_header_are_each_parts_own(tmp_path: Path) -> None:
    pipeline = Pipeline(xl=False)
    peft = pytest.importorskip("peft")
    from diffusers.utils import convert_state_dict_to_diffusers

    kinds = {"unet": ["to_q", "ff.net.2", "conv1"], "text_encoder": ["q_proj", "fc1"]}
    parts: dict[str, Any] = {}
    for name, targets in kinds.items():
        config = peft.LoraConfig(
            r=3, lora_alpha=5, target_modules=targets, alpha_pattern={targets[0]: 2}
        )
        module = getattr(pipeline.theirs, name)
        peft.inject_adapter_in_model(config, module)
        for key, parameter in module.named_parameters():
            if "lora_" in key:
                parameter.data.normal_(std=0.3)
        state = peft.get_peft_model_state_dict(module, adapter_name="default")
        config.target_modules = sorted(config.target_modules)
        parts[f"{name}_lora_layers"] = convert_state_dict_to_diffusers(state)
        parts[f"{name}_lora_adapter_metadata"] = {
            key: sorted(value) if isinstance(value, set) else value
            for key, value in config.to_dict().items()
        }
    type(pipeline.theirs).save_lora_weights(tmp_path, **parts)
    adapted = pipeline.ours.adapt(inarch.adapter("lora", weights=tmp_path))
    same(pipeline.outputs(adapted), pipeline.outputs())


def test_a_unets_own_file_is_read(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    pipeline = Pipeline(xl=False)
    unet = pipeline.theirs.unet
    unet.add_adapter(peft.LoraConfig(r=3, lora_alpha=7, target_modules=["to_v", "proj_out"]))
    for key, parameter in unet.named_parameters():
        if "lora_" in key:
            parameter.data.normal_(std=0.3)
    unet.save_lora_adapter(tmp_path, adapter_name="default")
    adapted = pipeline.ours.adapt(inarch.adapter("lora", weights=tmp_path))
    same(pipeline.outputs(adapted), pipeline.outputs())
