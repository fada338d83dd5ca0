"""The text tower against transformers, over what configurations differ in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from inarch.errors import InarchError
from inarch.nn import causal_mask
from inarch.tree import Chain
from inarch.weights import blank
from inarch_clip.config import parse_text
from inarch_clip.states import ending, with_hidden
from inarch_clip.text import text

SETTINGS: dict[str, dict[str, Any]] = {
    "quick_gelu": {},
    "gelu": {"hidden_act": "gelu"},
    "tanh_gelu": {"hidden_act": "gelu_new"},
    "wide_projection": {"projection_dim": 48},
    "legacy_end": {"eos_token_id": 2},
    "one_head": {"num_attention_heads": 1, "hidden_size": 20},
    "coarse_norm": {"layer_norm_eps": 1e-2},
    "one_layer": {"num_hidden_layers": 1},
}
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def ours(theirs: Any, *, projection: bool) -> Chain:
    """The tower with the weights of transformers' model, which must be the very same names."""
    with blank():
        tree = text(parse_text(theirs.config.to_dict(), projection=projection))
    state = theirs.state_dict()
    if not projection:  # transformers 5 has no `text_model` around a model without projection
        state = {f"text_model.{name}": value for name, value in state.items()}
    tree.load_state_dict(state, strict=True, assign=True)
    return tree.eval()


def outputs(theirs: Any, ids: Tensor, mask: Tensor | None = None) -> Any:
    return theirs(ids, attention_mask=mask, output_hidden_states=True)


@pytest.fixture(params=SETTINGS)
def pair(request: pytest.FixtureRequest, theirs: Any) -> tuple[Any, Chain]:
    model = theirs(
        "CLIPTextModelWithProjection", seed=len(request.param), **SETTINGS[request.param]
    )
    return model, ours(model, projection=True)


@pytest.mark.parametrize(("batch", "time"), [(1, 1), (2, 7), (5, 24)])
def test_states_and_projected_ends_equal_transformers(
    pair: tuple[Any, Chain], sentences: Any, batch: int, time: int
) -> None:
    theirs, tree = pair
    ids = sentences(batch, time, seed=batch) if time > 1 else torch.tensor([[98]])
    with torch.no_grad():
        expected = outputs(theirs, ids)
        states, pooled = tree(ids, mask=None)
    torch.testing.assert_close(states, expected.last_hidden_state, **CLOSE)
    torch.testing.assert_close(pooled, expected.text_embeds, **CLOSE)


def test_without_a_projection_the_state_at_the_end_comes_out(theirs: Any, sentences: Any) -> None:
    model = theirs("CLIPTextModel", seed=3)
    ids = sentences(3, 9, seed=3)
    with torch.no_grad():
        expected = outputs(model, ids)
        states, pooled = ours(model, projection=False)(ids, mask=None)
    torch.testing.assert_close(states, expected.last_hidden_state, **CLOSE)
    torch.testing.assert_close(pooled, expected.pooler_output, **CLOSE)


def test_a_text_is_pooled_at_its_first_end_and_at_the_start_where_it_has_none(theirs: Any) -> None:
    model = theirs("CLIPTextModelWithProjection", seed=4)
    ids = torch.tensor([[97, 5, 98, 6, 98], [97, 5, 6, 7, 8]])
    with torch.no_grad():
        states, pooled = ours(model, projection=True)(ids, mask=None)
        ends = model.text_projection(torch.stack([states[0, 2], states[1, 0]]))
        torch.testing.assert_close(pooled, model(ids).text_embeds, **CLOSE)
    torch.testing.assert_close(pooled, ends, **CLOSE)


def test_old_files_pool_at_the_highest_id(theirs: Any) -> None:
    model = theirs("CLIPTextModelWithProjection", seed=4, eos_token_id=2)
    ids = torch.tensor([[1, 5, 98, 2, 2], [97, 5, 6, 2, 8]])
    with torch.no_grad():
        states, pooled = ours(model, projection=True)(ids, mask=None)
        ends = model.text_projection(torch.stack([states[0, 2], states[1, 0]]))
        torch.testing.assert_close(pooled, model(ids).text_embeds, **CLOSE)
    torch.testing.assert_close(pooled, ends, **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_seen_by_nobody(pair: tuple[Any, Chain], sentences: Any, side: str) -> None:
    theirs, tree = pair
    ids = sentences(3, 11, seed=8)
    attention_mask = torch.ones_like(ids)
    attention_mask[1, :4] = 0
    attention_mask[2, :9] = 0
    if side == "right":
        attention_mask = attention_mask.flip(1)
    with torch.no_grad():
        expected = outputs(theirs, ids, attention_mask).last_hidden_state
        states, _ = tree(ids, mask=causal_mask(11, 11, padding=attention_mask.bool()))
    real = attention_mask.bool()
    torch.testing.assert_close(states[real], expected[real], **CLOSE)


def test_gradients_equal_transformers(pair: tuple[Any, Chain], sentences: Any) -> None:
    theirs, tree = pair
    ids = sentences(2, 9, seed=5)
    expected = outputs(theirs, ids)
    (expected.last_hidden_state.square().mean() + expected.text_embeds.sin().mean()).backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    tree.requires_grad_(True)
    for parameter in tree.parameters():
        parameter.grad = None
    states, pooled = tree(ids, mask=None)
    (states.square().mean() + pooled.sin().mean()).backward()
    for name, parameter in tree.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("early", [0, 1, 2, 3])
def test_a_hidden_state_before_the_last_equals_transformers(
    theirs: Any, sentences: Any, early: int
) -> None:
    model = theirs("CLIPTextModelWithProjection", seed=6)
    tree = with_hidden(ours(model, projection=True), early)
    ids = sentences(2, 9, seed=6)
    with torch.no_grad():
        expected = outputs(model, ids)
        states, pooled, hidden = tree(ids, mask=None)
    torch.testing.assert_close(hidden, expected.hidden_states[-1 - early], **CLOSE)
    torch.testing.assert_close(states, expected.last_hidden_state, **CLOSE)
    torch.testing.assert_close(pooled, expected.text_embeds, **CLOSE)


@pytest.mark.parametrize("early", [0, 1, 2, 3])
def test_ending_early_puts_the_final_norm_after_that_state(
    theirs: Any, sentences: Any, early: int
) -> None:
    model = theirs("CLIPTextModel", seed=7)
    tree = ending(ours(model, projection=False), early)
    ids = sentences(2, 9, seed=7)
    with torch.no_grad():
        state = outputs(model, ids).hidden_states[-1 - early]
        states = tree(ids, mask=None)[0]
        torch.testing.assert_close(states, model.final_layer_norm(state), **CLOSE)


def test_ending_before_the_first_layer_is_refused(theirs: Any) -> None:
    tree = ours(theirs("CLIPTextModel"), projection=False)
    for early in (4, -1):
        with pytest.raises(InarchError) as caught:
            ending(tree, early)
        assert caught.value.code == "IA541"
        assert "3 layers" in str(caught.value)


def test_ending_early_leaves_the_tree_it_was_made_from(theirs: Any, sentences: Any) -> None:
    tree = ours(theirs("CLIPTextModel"), projection=False)
    ids = sentences(1, 5, seed=1)
    with torch.no_grad():
        before = tree(ids, mask=None)[0]
        assert not torch.equal(ending(tree, 1)(ids, mask=None)[0], before)
        assert torch.equal(tree(ids, mask=None)[0], before)


def test_the_source_of_the_tower_reads_as_the_paper() -> None:
    with blank():
        tree = text(parse_text({"num_hidden_layers": 2}, projection=True))
    assert tree.text_model.source == (
        "def forward(self, input_ids, *, mask):\n"
        "    eos = first_of(input_ids)\n"
        "    embeddings = self.embeddings(input_ids)\n"
        "    layers = self.encoder.layers(embeddings, mask=mask)\n"
        "    final_layer_norm = self.final_layer_norm(layers)\n"
        "    pooled = state_at(final_layer_norm, eos=eos)\n"
        "    return final_layer_norm, pooled\n"
    )
    assert set(tree.inputs) == {"input_ids", "mask"}
