"""The vision tower and the whole against transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import inarch
from inarch.errors import InarchError
from inarch.tree import Edit
from inarch_clip.states import with_hidden

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
SETTINGS: dict[str, dict[str, Any]] = {
    "quick_gelu": {},
    "gelu": {"hidden_act": "gelu"},
    "uneven_patches": {"image_size": 32, "patch_size": 10},
    "one_channel": {"num_channels": 1},
    "coarse_norm": {"layer_norm_eps": 1e-2},
    "wide_projection": {"projection_dim": 48},
}


def pixels(config: Any, batch: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, config.num_channels, config.image_size, config.image_size)
    return torch.randn(shape, generator=generator)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("batch", [1, 3])
def test_states_and_projections_of_images_equal_transformers(
    theirs: Any, saved: Any, settings: str, batch: int
) -> None:
    model = theirs("CLIPVisionModelWithProjection", seed=1, **SETTINGS[settings])
    ours = inarch.load(saved(model))
    images = pixels(model.config, batch)
    with torch.no_grad():
        expected = model(images)
        states, pooled = ours.tree(images)
    torch.testing.assert_close(states, expected.last_hidden_state, **CLOSE)
    torch.testing.assert_close(pooled, expected.image_embeds, **CLOSE)


def test_without_a_projection_the_class_s_state_comes_out(theirs: Any, saved: Any) -> None:
    model = theirs("CLIPVisionModel", seed=2)
    ours = inarch.load(saved(model))
    images = pixels(model.config, 2)
    with torch.no_grad():
        expected = model(images)
        states, pooled = ours.tree(images)
    torch.testing.assert_close(states, expected.last_hidden_state, **CLOSE)
    torch.testing.assert_close(pooled, expected.pooler_output, **CLOSE)


@pytest.mark.parametrize("early", [0, 1, 3])
def test_a_hidden_state_of_patches_equals_transformers(theirs: Any, saved: Any, early: int) -> None:
    model = theirs("CLIPVisionModelWithProjection", seed=3)
    tree = with_hidden(inarch.load(saved(model)).tree, early, tower="vision_model")
    images = pixels(model.config, 2)
    with torch.no_grad():
        expected = model(images, output_hidden_states=True).hidden_states[-1 - early]
        torch.testing.assert_close(tree(images)[2], expected, **CLOSE)


def test_gradients_of_the_vision_tower_equal_transformers(theirs: Any, saved: Any) -> None:
    model = theirs("CLIPVisionModelWithProjection", seed=4)
    ours = inarch.load(saved(model)).tree.requires_grad_(True)
    images = pixels(model.config, 2)
    model(images).image_embeds.sin().mean().backward()
    ours(images)[1].sin().mean().backward()
    wanted = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    found = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    assert set(found) == set(wanted)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-6)


WHOLE: dict[str, dict[str, Any]] = {
    "plain": {},
    "wide": {"projection_dim": 40},
    "gelu": {"text_config": {"hidden_act": "gelu"}, "vision_config": {"hidden_act": "gelu"}},
    "legacy_end": {"text_config": {"eos_token_id": 2}},
}


@pytest.mark.parametrize("settings", WHOLE)
def test_the_logits_of_both_towers_equal_transformers(
    theirs: Any, saved: Any, sentences: Any, settings: str
) -> None:
    model = theirs("CLIPModel", seed=5, **WHOLE[settings])
    ours = inarch.load(saved(model))
    ids, images = sentences(3, 9, seed=5), pixels(model.config.vision_config, 2)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    with torch.no_grad():
        for attention_mask in (None, mask):
            expected = model(ids, images, attention_mask=attention_mask).logits_per_image
            actual = ours(ids, images, attention_mask)
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=2e-5)
        texts, pictures = ours.text_tree(ids, mask=None)[1], ours.vision_tree(images)[1]
        expected = model.get_text_features(ids).pooler_output
        torch.testing.assert_close(texts, expected, **CLOSE)
        expected = model.get_image_features(images).pooler_output
        torch.testing.assert_close(pictures, expected, **CLOSE)
    assert set(ours.state_dict()) == set(model.state_dict())


def test_half_precision_equals_transformers_to_its_rounding(
    theirs: Any, saved: Any, sentences: Any
) -> None:
    model = theirs("CLIPModel", seed=6)
    ours = inarch.load(saved(model), dtype="bfloat16")
    ids, images = sentences(2, 9, seed=6), pixels(model.config.vision_config, 2).bfloat16()
    with torch.no_grad():
        expected, actual = model.bfloat16()(ids, images).logits_per_image, ours(ids, images)
    assert actual.dtype == torch.bfloat16
    scale = expected.float().abs().max()
    assert (actual.float() - expected.float()).abs().max() <= 0.05 * scale


def test_a_tower_runs_with_the_edits_made_to_the_whole(
    theirs: Any, saved: Any, sentences: Any
) -> None:
    ours = inarch.load(saved(theirs("CLIPModel", seed=7)))
    ids = sentences(2, 9, seed=7)
    edited = ours.tree.edit([Edit.after("text_projection", torch.neg, "minus")])
    twin = type(ours)({"": edited}, ours.config)
    with torch.no_grad():
        expected = -ours.text_tree(ids, mask=None)[1]
        assert torch.equal(twin.text_tree(ids, mask=None)[1], expected)


def test_each_layer_of_a_tower_has_one_and_the_same_forward(theirs: Any, saved: Any) -> None:
    tree = inarch.load(saved(theirs("CLIPModel"))).tree
    for tower in (tree.text_model, tree.vision_model):
        assert len({layer.forward.__code__ for layer in tower.encoder.layers}) == 1


def test_the_source_of_the_image_embeddings_names_the_bare_parameter(
    theirs: Any, saved: Any
) -> None:
    tree = inarch.load(saved(theirs("CLIPVisionModel"))).tree
    assert tree.vision_model.embeddings.source == (
        "def forward(self, pixel_values):\n"
        "    patch_embedding = self.patch_embedding(pixel_values)\n"
        "    patches = in_a_row(patch_embedding)\n"
        "    with_class = class_first(patches, class_embedding=self.class_embedding)\n"
        "    count = positions_of_states(with_class)\n"
        "    positions = self.position_embedding(count)\n"
        "    return with_class + positions\n"
    )


def test_images_of_another_size_are_refused(theirs: Any, saved: Any) -> None:
    ours = inarch.load(saved(theirs("CLIPModel")))
    with pytest.raises(InarchError) as caught:
        ours(torch.tensor([[97, 98]]), torch.zeros(1, 3, 20, 20))
    assert caught.value.code == "IA505"
    assert "[1, 3, 20, 20]" in str(caught.value)


def test_each_role_of_the_manifest_names_sites_of_the_tree(theirs: Any, saved: Any) -> None:
    ours = inarch.load(saved(theirs("CLIPModel")))
    for role in ours.roles:
        assert ours.sites.find([role]), role
    assert len(ours.sites.find(["attention.query"])) == 6
