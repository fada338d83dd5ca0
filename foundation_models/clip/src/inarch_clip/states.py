"""Hidden states before the last, which image models read: trees that give them, made by edits.

They are made from any tree that holds a tower, with whatever adapters are in it, and leave it as
it is.
"""

from __future__ import annotations

from inarch.errors import InarchError
from inarch.tree import Chain, Edit, Use

_BEFORE = {"text_model": "embeddings", "vision_model": "pre_layrnorm"}


def ending(tree: Chain, early: int, name: str = "clip_skip") -> Chain:
    """A tree whose text tower ends `early` layers early: the final norm follows on that state.

    The layers after it run all the same, for their adapters' sake, and lead nowhere.

    Args:
        tree: whose address `text_model` is the tower.
        early: how many layers are left out; 0 gives the tree as it is.
        name: whose edits these are, in the source.

    Raises:
        InarchError: IA541 where there are not so many layers.
    """
    if early == 0:
        return tree
    state = Edit.tap(_state(tree, early, "text_model"), name, name, export=True)
    return tree.edit([state, Edit.before("text_model.final_layer_norm", Use(name), name)])


def with_hidden(
    tree: Chain, early: int, name: str = "hidden", *, tower: str = "text_model"
) -> Chain:
    """A tree that also gives, last, the hidden state `early` layers before the end, unnormed.

    It is transformers' `hidden_states[-1 - early]`, [batch, time, width].

    Args:
        tree: whose address `tower` is the tower.
        early: counted from the last layer, whose state is 0.
        name: of the value, and whose edit it is, in the source.
        tower: `text_model` or `vision_model`.

    Raises:
        InarchError: IA541 where there are not so many layers.
    """
    return tree.edit([Edit.tap(_state(tree, early, tower), name, name, export=True)])


def _state(tree: Chain, early: int, tower: str) -> str:
    """The address whose output is the state `early` layers before the end."""
    layers = tree.select(f"{tower}.encoder.layers.*").addresses
    if not 0 <= early <= len(layers):
        raise InarchError(
            "IA541",
            f"this tower can't end {early} layers early",
            where=tower,
            why=f"it has {len(layers)} layers",
            remedy=f"a number from 0 to {len(layers)}",
        )
    return (f"{tower}.{_BEFORE[tower]}", *layers)[len(layers) - early]
