"""What a reference takes, refuses, and does beside others."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_pipelines import saved
from torch import Tensor

import inarch
from inarch import InarchError

PROMPT = "a lighthouse in the storm"
PICTURE = torch.rand(3, 16, 24, generator=torch.Generator().manual_seed(4))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return inarch.load(saved(tmp_path_factory.mktemp("small"), seed=2, scale=0.2))


def latents(model: Any, prompt: Any = PROMPT, **settings: Any) -> Tensor:
    usual = {"height": 16, "width": 24, "steps": 4, "seed": 1, "output": "latents"}
    return model.text_to_image(prompt, **{**usual, **settings})


def refused(call: Any) -> InarchError:
    with pytest.raises(InarchError) as caught:
        call()
    return caught.value


def test_it_asks_for_its_picture_by_name(base: Any) -> None:
    model = base.adapt(inarch.adapter("reference", name="cat"))
    error = refused(lambda: latents(model))
    assert error.code == "IA507"
    assert "`cat_image`: [batch, 3, height, width] in 0..1" in error.what


def test_what_is_no_picture_or_no_latents_is_refused(base: Any) -> None:
    model = base.adapt("reference")
    two = torch.stack([PICTURE, PICTURE])
    for wrong in (torch.zeros(3, 8, 8), PICTURE * 2, two):
        assert refused(lambda given=wrong: latents(model, reference_image=given)).code == "IA505"
    encoded = base.adapt(inarch.adapter("reference", encoded=True))
    assert refused(lambda: latents(encoded, reference_image=PICTURE)).code == "IA507"
    for wrong in (PICTURE, torch.zeros(1, 3, 8, 12), torch.zeros(2, 4, 8, 12), "sea.png"):
        error = refused(lambda given=wrong: latents(encoded, reference_latents=given))
        assert error.code == "IA505"
        assert "[1 or 1, 4, height, width]" in str(error.why)


@pytest.mark.parametrize(
    "wrong",
    [
        {"reference_attn": False},
        {"style_fidelity": 1.5},
        {"attention_weight": 0.0},
        {"gn_weight": 3.0},
        {"start": 0.5, "end": 0.5},
        {"fidelity": 1.0},
    ],
)
def test_options_that_mean_nothing_are_refused(base: Any, wrong: dict[str, Any]) -> None:
    error = refused(lambda: base.adapt(inarch.adapter("reference", **wrong)))
    assert error.code == "IA401"


def test_weights_are_refused(base: Any, tmp_path: Path) -> None:
    save_file({"any": torch.zeros(1)}, tmp_path / "any.safetensors")
    spec = inarch.adapter("reference", weights=tmp_path / "any.safetensors")
    error = refused(lambda: base.adapt(spec))
    assert error.code == "IA495"
    assert "reference_image=..." in error.remedy


def test_it_acts_between_its_shares_of_sampling_alone(base: Any) -> None:
    model = base.adapt(inarch.adapter("reference", start=0.5))
    plain: list[Tensor] = []
    latents(base, callback=lambda step: plain.append(step.latents))
    seen: list[Tensor] = []
    latents(model, reference_image=PICTURE, callback=lambda step: seen.append(step.latents))
    equal = [torch.equal(a, b) for a, b in zip(plain, seen, strict=True)]
    assert equal == [True, True, False, False]


def test_the_model_runs_twice_a_step_and_the_picture_is_encoded_once(base: Any) -> None:
    model = base.adapt(inarch.adapter("reference", end=0.5))
    counts: Counter[str] = Counter()
    modules = {"unet": base.trees["unet"].conv_in, "vae": base.trees["vae"].quant_conv}
    handles = [
        module.register_forward_hook(lambda *_, name=name: counts.update([name]))
        for name, module in modules.items()
    ]
    latents(model, reference_image=PICTURE)
    for handle in handles:
        handle.remove()
    assert counts == {"unet": 2 + 2 + 1 + 1, "vae": 1}


def test_a_scale_goes_from_without_it_to_as_published(base: Any) -> None:
    model = base.adapt(inarch.adapter("reference", reference_adain=True))
    found: dict[float, Tensor] = {}
    for scale in (0.0, 0.01, 1.0):
        model.adapters["reference"].scale = scale
        found[scale] = latents(model, reference_image=PICTURE)
    assert torch.equal(found[0.0], latents(base))
    near, far = (float((found[s] - found[0.0]).abs().max()) for s in (0.01, 1.0))
    assert 0 < near < far


def test_each_picture_may_have_a_reference_of_its_own(base: Any) -> None:
    model = base.adapt("reference")
    others = torch.stack([PICTURE, 1 - PICTURE])
    both = latents(model, [PROMPT, PROMPT], seed=[1, 2], reference_image=others)
    each = [
        latents(model, seed=[seed], reference_image=picture)
        for seed, picture in zip((1, 2), others, strict=True)
    ]
    torch.testing.assert_close(both, torch.cat(each), rtol=1e-3, atol=1e-4)


def test_several_references_add_up_in_any_order(base: Any) -> None:
    specs = [inarch.adapter("reference", name=name, scale=0.5) for name in ("cat", "dog")]
    inputs = {"cat_image": PICTURE, "dog_image": 1 - PICTURE}
    one, two = (base.adapt(*order) for order in (specs, specs[::-1]))
    assert one.digest == two.digest
    assert torch.equal(latents(one, **inputs), latents(two, **inputs))
    alone = latents(base.adapt(specs[0]), cat_image=PICTURE)
    assert not torch.allclose(latents(one, **inputs), alone)


def test_others_that_meet_it_have_their_place_in_any_order(base: Any) -> None:
    specs = [
        inarch.adapter("reference", reference_adain=True, gn_weight=2.0),
        inarch.adapter("t2i-adapter", name="sketch", downscale=2),
        *map(inarch.adapter, ("style-aligned", "sag", "freeu")),
    ]
    inputs = {"reference_image": PICTURE, "sketch_image": torch.ones(3, 16, 24)}
    digests: set[str] = set()
    results: list[Tensor] = []
    for order in list(itertools.permutations(specs))[::17]:
        model = base.adapt(*order)
        generator = torch.Generator().manual_seed(5)
        for parameter in model.adapter_parameters("sketch").values():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 9
        digests.add(model.digest)
        results.append(latents(model, [PROMPT, "a red boat"], scheduler="ddim", **inputs))
    assert len(digests) == 1
    assert all(torch.equal(result, results[0]) for result in results)


def test_windows_are_refused_beside_it(base: Any) -> None:
    error = refused(lambda: base.adapt("reference", "multidiffusion"))
    assert error.code == "IA416"
    assert "reference" in str(error)


def test_image_to_image_looks_at_it_too(base: Any) -> None:
    model = base.adapt("reference")
    usual = {"image": 1 - PICTURE, "steps": 4, "seed": 1, "output": "latents", "strength": 0.5}
    got = model.image_to_image(PROMPT, reference_image=PICTURE, **usual)
    assert not torch.allclose(got, base.image_to_image(PROMPT, **usual))


def test_a_model_for_inpainting_is_shown_the_whole_reference(tmp_path: Path) -> None:
    model = inarch.load(saved(tmp_path, in_channels=9)).adapt(
        inarch.adapter("reference", encoded=True)
    )
    came_in: list[Tensor] = []
    handle = model.trees["unet"].conv_in.register_forward_pre_hook(
        lambda _, inputs: came_in.append(inputs[0])
    )
    clean = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(3))
    mask = torch.ones(1, 16, 24)
    usual = {"image": PICTURE, "mask": mask, "steps": 2, "seed": 1, "output": "latents"}
    model.inpaint(PROMPT, reference_latents=clean, **usual)
    handle.remove()
    looked, made = came_in[:2]
    assert torch.equal(looked[:, 4:], torch.cat([clean * 0, clean], 1)[:, 3:].repeat(2, 1, 1, 1))
    assert bool((made[:, 4] == 1).all())


def test_the_base_is_as_it_was_and_nothing_is_left_without_it(base: Any) -> None:
    before = latents(base)
    model = base.adapt(inarch.adapter("reference", reference_adain=True))
    latents(model, reference_image=PICTURE)
    assert torch.equal(latents(base), before)
    assert torch.equal(latents(model.without("reference")), before)
