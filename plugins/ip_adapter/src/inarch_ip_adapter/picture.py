"""Pictures as embeddings, by the vision tower an IP-Adapter was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from inarch.errors import InarchError
from inarch_ip_adapter.projection import Projection


class Encoder:
    """A model of pictures in a folder, opened when a picture comes.

    Args:
        folder: or None, where embeddings are given instead.
    """

    def __init__(self, folder: str | None) -> None:
        self.folder = folder
        self._models: dict[torch.device, Any] = {}

    def model(self, device: torch.device) -> Any:
        """The tower, opened once for each device it is asked for on."""
        import inarch

        if device not in self._models:
            self._models[device] = inarch.load(str(self.folder), device=str(device))
        return self._models[device]

    def embeddings(self, value: Any, c: Projection, device: torch.device) -> tuple[Tensor, Tensor]:
        """What the adapter reads of pictures, and of none, each [1, pictures, ...].

        Args:
            value: a path, an image, a tensor, or several of them.
            c: the sizes of what reads them.
            device: where the tower runs.

        Raises:
            InarchError: IA464 where the tower does not suit the adapter.
        """
        model = self.model(device)
        if not hasattr(model, "embed_image") or c.kind == "faceid":
            raise self._unsuited("the adapter reads faces" if hasattr(model, "embed_image") else "")
        width = c.patches or c.embedding
        several = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
        if isinstance(value, Tensor) and value.dim() == 4:
            value, several = list(value), True
        pixels = model.pixels(list(value) if several else value)
        if c.of_patches or c.patches:
            found, none = (model.image_states(p) for p in (pixels, torch.zeros_like(pixels)))
        else:
            with torch.no_grad():
                found = model.vision_tree(pixels)[1]
            none = torch.zeros_like(found)
        if found.shape[-1] != width:
            raise self._unsuited(f"it gives {found.shape[-1]} numbers, {width} are needed")
        return found[None].clone(), none[None].clone()

    def _unsuited(self, why: str) -> InarchError:
        return InarchError(
            "IA464",
            "the encoder of pictures does not suit the IP-Adapter",
            where=str(self.folder),
            why=why or "it is no model of pictures",
            remedy="name the encoder that was published beside the file",
        )
