"""What a model whose rows have adapters of their own makes pictures of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inarch.errors import InarchError

if TYPE_CHECKING:
    from inarch_stable_diffusion.model import StableDiffusion


def refuse_rows(model: StableDiffusion, prompts: int, pictures: int, *, guided: bool) -> None:
    """Refuse where other rows than were told would meet a row's adapters.

    Args:
        model: of rows or not.
        prompts: that text encoders are given.
        pictures: that the UNet makes.
        guided: whether each is run without its prompt too.

    Raises:
        InarchError: IA513.
    """
    if model.row_adapters is None:
        return
    if guided:
        raise InarchError(
            "IA513",
            "a model of rows makes no guided pictures",
            where="guidance",
            why="guidance runs each picture twice, with its prompt and without",
            remedy="guidance=1.0, or each stack by itself, with model.without(...)",
        )
    for name, tree in model.trees.items():
        model.refuse_batch(prompts if name.startswith("text") else pictures, tree)
