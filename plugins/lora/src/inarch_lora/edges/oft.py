"""OFT: the outputs of a layer are rotated in blocks, by matrices orthogonal by construction.

With Q = B - B' of a block B, held to a norm, R = (I + Q) (I - Q)^-1; the weight becomes R' W, and
what is added to `W x` is `u (R' - I) W x`, u the user's scale. `oft_rescale` multiplies the rotated
weight.

Source: Qiu et al. 2023, "Controlling Text-to-Image Diffusion by Orthogonal Finetuning",
arXiv:2306.07280, sections 3 and 4 (COFT); the `lycoris` library's `diag-oft`, kohya-ss' `oft`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from inarch.adapters.placement import Placement, Split, shard
from inarch_lora.edges.whole import WholeEdge


class OFTEdge(WholeEdge):
    """`oft_blocks` [blocks, size, size]; `oft_rescale` [outputs, 1, ...] where there is one.

    `scaling` is the constraint that files keep as alpha: times the outputs, the most that the norm
    of all blocks may be; 0 for no bound.
    """

    oft_blocks: Tensor
    rank = 0
    outputs = 0
    """Of the whole layer, where this one's is a part of it."""

    def check_shapes(self) -> None:
        count, *sizes = self.oft_blocks.shape
        if len(sizes) != 2 or count * sizes[0] != self.layer.outputs:
            raise RuntimeError(f"its blocks do not make {self.layer.outputs} outputs")
        if self.has("oft_rescale"):
            self.get_parameter("oft_rescale").reshape(self.layer.outputs)

    def cut(self, split: Split) -> Mapping[str, Placement]:
        """Outputs are turned block by block; beside rows every process turns its part of a sum."""
        if split.kind == "rows":
            return {}
        rules = {"oft_blocks": shard(0)}
        return {**rules, "oft_rescale": shard(0)} if self.has("oft_rescale") else rules

    def crosses(self, split: Split) -> bool:
        """Where the norm that is bounded is that of blocks which others have."""
        return split.kind == "columns" and self.scaling > 0

    def placed(self, split: Split, site: nn.Module | None) -> None:
        super().placed(split, site)
        self.outputs = self.layer.outputs * (split.parts if split.kind == "columns" else 1)

    def change(self) -> Tensor:
        return self.base_weight() if self.base() is not None else torch.empty(self.layer.shape)

    def whole(self, acting: float | Tensor) -> Tensor:
        weight = self.base_weight()
        turned = self.turn() * acting
        blocks = weight.reshape(turned.shape[0], turned.shape[1], -1)
        change = torch.einsum("knm,kni->kmi", turned, blocks).reshape(weight.shape)
        if not self.has("oft_rescale"):
            return change
        factor = self.get_parameter("oft_rescale").reshape(-1, *(1 for _ in weight.shape[1:]))
        return factor * change + (factor - 1) * weight

    def turn(self) -> Tensor:
        """R - I of each block."""
        skew = self.oft_blocks - self.oft_blocks.transpose(1, 2)
        bound = self.scaling * (self.outputs or self.layer.outputs)
        if bound > 0:
            norm = self.norm_of(skew, (0, 1, 2)) + 1e-8
            skew = skew * (bound / norm).clamp(max=1.0)
        one = torch.eye(skew.shape[-1], device=skew.device, dtype=torch.float32)
        inverse = torch.linalg.inv(one - skew.float())
        return ((one + skew.float()) @ inverse - one).to(skew.dtype)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.oft_blocks)
        if self.has("oft_rescale"):
            nn.init.ones_(self.get_parameter("oft_rescale"))
