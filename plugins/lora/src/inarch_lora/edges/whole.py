"""Terms whose change of the weight is made whole, and then run as the layer runs its own.

LyCORIS computes `(W + dW) x`; here the term is `dW x` beside `W x`. With `dora_scale` m the weight
is decomposed as LyCORIS does it: `(W + dW) * (u * (m / (||W + dW|| + eps) - 1) + 1)`, u the user's
scale, and the norm, of each output or of each input by the shape of m, takes gradients.

Source: Yeh et al. 2023, "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model
Evaluation", arXiv:2309.14859, section 3; the `lycoris` library's modules.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from inarch.adapters.placement import SUMMED, Placement, Split, Unplaceable, shard
from inarch_lora.edges.layer import Layer
from inarch_lora.edges.site import SiteEdge, squares


class WholeEdge(SiteEdge):
    """A term with a whole weight.

    Args:
        layer: the form of the layer it stands beside.
        shapes: of its parameters, by name.
        scaling: of the change, beside the user's scale.
        factor: of the block.
        rank_dropout: the share of the change's outputs dropped in training.
        dropout_scaled: whether those that stay grow for it.
        module_dropout: how likely the whole term is dropped in training.
    """

    dora_scale: Tensor | None
    of_inputs: bool
    """Whether `dora_scale` has a number for each input, [1, inputs, ...], and not each output."""
    diff_b: Tensor | None

    def __init__(
        self,
        layer: Layer,
        shapes: Mapping[str, tuple[int, ...]],
        scaling: float,
        *,
        factor: float = 1.0,
        rank_dropout: float = 0.0,
        dropout_scaled: bool = False,
        module_dropout: float = 0.0,
    ) -> None:
        super().__init__(factor=factor)
        self.layer = layer
        self.scaling = scaling
        self.rank_dropout = rank_dropout
        self.dropout_scaled = dropout_scaled
        self.module_dropout = module_dropout
        for name in ("dora_scale", "diff_b"):
            self.register_parameter(name, None)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))
        magnitude = shapes.get("dora_scale", ())
        self.of_inputs = len(magnitude) > 1 and magnitude[0] == 1 and layer.outputs != 1

    @abstractmethod
    def change(self) -> Tensor:
        """The change of the weight, in its layout, before any scaling."""

    def check_shapes(self) -> None:
        """Raise a RuntimeError for tensors that `change` would take and that make no sense."""

    def placements(self, split: Split) -> Mapping[str, Placement]:
        """Its own parameters as `cut` says, all others whole; each process makes its part."""
        if split.kind == "whole":
            return {}
        if split.kind == "inside" or self.layer.kind not in ("linear", "transposed"):
            return super().placements(split)
        rules = dict.fromkeys((name for name, _ in self.named_parameters()), SUMMED)
        if self.dora_scale is not None and not self.crosses(split):
            rules["dora_scale"] = shard(1 if self.of_inputs else 0)
        return {**rules, **self.along_site(split, "diff_b"), **self.cut(split)}

    def crosses(self, split: Split) -> bool:
        """Where the norms that `dora_scale` is of are over parts that others have."""
        along = "columns" if self.of_inputs else "rows"
        return self.dora_scale is not None and split.kind == along

    def cut(self, split: Split) -> Mapping[str, Placement]:
        """The parameters of which each process has a part, and along which dimension.

        Raises:
            Unplaceable: a part of the outputs, or of the inputs, is not made of parts of them.
        """
        raise Unplaceable(f"{type(self).__name__} does not say how it lies over processes")

    def placed(self, split: Split, site: nn.Module | None) -> None:
        super().placed(split, site)
        self.layer = Layer.of(site, "")

    def has(self, name: str) -> bool:
        return self._parameters.get(name) is not None

    def whole(self, acting: float | Tensor) -> Tensor:
        """What the weight changes by."""
        change = self.change()
        if self.training and self.rank_dropout:
            change = self._thinned(change)
        if self.dora_scale is None:
            return change * (self.scaling * acting)
        weight = self.base_weight()
        changed = weight + change * self.scaling
        return changed * (acting * (self._ratio(self.dora_scale, changed) - 1) + 1) - weight

    def _ratio(self, scale: Tensor, weight: Tensor) -> Tensor:
        """Magnitude over norm, of each output or of each input."""
        dims = [d for d in range(weight.dim()) if d != int(self.of_inputs)]
        norm = self.norm_of(weight, dims) + torch.finfo(weight.dtype).eps
        return scale.reshape(norm.shape) / norm

    def norm_of(self, value: Tensor, dims: Sequence[int]) -> Tensor:
        """Over some dimensions, which stay as 1, and over the processes where it crosses them."""
        if self.total is None:
            return torch.linalg.vector_norm(value, dim=list(dims), keepdim=True)
        total = self.total(squares(value).sum(list(dims), keepdim=True))
        # As in `vector_norm` what is nought has no gradient, where a root's would have no end.
        return total.clamp_min(torch.finfo(torch.float32).tiny).sqrt().to(value.dtype)

    def _thinned(self, change: Tensor) -> Tensor:
        kept = (torch.rand(change.shape[0], device=change.device) > self.rank_dropout).to(change)
        if self.dropout_scaled:
            kept = kept / kept.mean()
        return change * kept.view(-1, *(1 for _ in change.shape[1:]))

    def forward(self, x: Tensor, *, plus: Tensor | None = None) -> Tensor:
        acting = self.acting()
        term = self.layer.run(x, self.whole(acting))
        if self.diff_b is not None:
            term = term + self.layer.along_outputs(self.diff_b) * acting
        if self.training and self.module_dropout:
            term = term * (torch.rand((), device=term.device) > self.module_dropout)
        return term if plus is None else plus + term

    def deltas(self) -> dict[str, Tensor]:
        acting = self.strength * self.factor
        deltas = {"weight": self.whole(acting).float()}
        if self.diff_b is not None:
            deltas["bias"] = self.diff_b.float() * acting
        return deltas


class ProductEdge(WholeEdge):
    """B A, where LoRA's own edges can't run it: B M A with a core, decomposed, or of groups.

    `lora_A` [rank, inputs / groups, *kernel] and `lora_B` [outputs, rank]; with `lora_mid` [rank,
    rank, *kernel] A has no kernel.
    """

    lora_A: Tensor
    lora_B: Tensor

    @property
    def rank(self) -> int:
        return self.lora_A.shape[0]

    def change(self) -> Tensor:
        first, second = self.lora_A.flatten(1), self.lora_B.flatten(1)
        if self.has("lora_mid"):
            core = self.get_parameter("lora_mid")
            return torch.einsum("mn...,om,ni->oi...", core, second, first)
        return self.layer.laid_out(second @ first)

    def cut(self, split: Split) -> Mapping[str, Placement]:
        if self.has("lora_mid"):
            return super().cut(split)
        return {"lora_B": shard(0)} if split.kind == "columns" else {"lora_A": shard(1)}

    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B)


class LoHaEdge(WholeEdge):
    """The elementwise product of two products.

    `hada_w1_a` [outputs, rank], `hada_w1_b` [rank, inputs * kernel], the same for 2; with cores
    `hada_t1`, `hada_t2` [rank, rank, *kernel] they are [rank, outputs] and [rank, inputs].

    Source: Hyeon-Woo et al. 2021, "FedPara", arXiv:2108.06098, propositions 1 and 3.
    """

    @property
    def rank(self) -> int:
        return self.get_parameter("hada_w1_b").shape[0]

    def change(self) -> Tensor:
        halves = [self._half(n) for n in (1, 2)]
        return (halves[0] * halves[1]).reshape(self.layer.shape)

    def cut(self, split: Split) -> Mapping[str, Placement]:
        if self.has("hada_t1"):
            return super().cut(split)
        side, dim = ("a", 0) if split.kind == "columns" else ("b", 1)
        return {f"hada_w{n}_{side}": shard(dim) for n in (1, 2)}

    def _half(self, n: int) -> Tensor:
        first, second = (self.get_parameter(f"hada_w{n}_{side}") for side in "ba")
        if self.has(f"hada_t{n}"):
            core = self.get_parameter(f"hada_t{n}")
            return torch.einsum("mn...,ni,mo->oi...", core, first, second)
        return second @ first.flatten(1)

    def reset_parameters(self) -> None:
        """As PEFT: the last factor zero, so that nothing changes yet."""
        for name, parameter in self.named_parameters():
            if name == "hada_w2_b":
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))


class LoKrEdge(WholeEdge):
    """A Kronecker product; either factor is whole or a product, the second may have a core.

    `lokr_w1` [a, b] or `lokr_w1_a` [a, rank] and `lokr_w1_b` [rank, b]; `lokr_w2` [c, d, *kernel],
    or `lokr_w2_a` [c, rank] and `lokr_w2_b` [rank, d * kernel], or with `lokr_t2` [rank, rank,
    *kernel] [rank, c] and [rank, d]; outputs are a * c, inputs b * d.
    """

    flat_kron = False
    """Whether axes are paired from the last, as PEFT pairs a Conv1d's whole factors."""

    @property
    def rank(self) -> int:
        names = ("lokr_w2_b", "lokr_w1_b")
        return next((self.get_parameter(n).shape[0] for n in names if self.has(n)), 1)

    def change(self) -> Tensor:
        pairing = "ab,cdk->cadbk" if self.flat_kron else "ab,cd...->acbd..."
        product = torch.einsum(pairing, self._factor("lokr_w1"), self._right())
        return product.reshape(self.layer.shape)

    def cut(self, split: Split) -> Mapping[str, Placement]:
        """Of the first factor alone: outputs and inputs count through it slowest."""
        if self.has("lokr_w1"):
            return {"lokr_w1": shard(0 if split.kind == "columns" else 1)}
        name, dim = ("lokr_w1_a", 0) if split.kind == "columns" else ("lokr_w1_b", 1)
        return {name: shard(dim)}

    def _factor(self, name: str) -> Tensor:
        if self.has(name):
            return self.get_parameter(name)
        return self.get_parameter(f"{name}_a") @ self.get_parameter(f"{name}_b").flatten(1)

    def _right(self) -> Tensor:
        if not self.has("lokr_t2"):
            return self._factor("lokr_w2")
        names = ("lokr_t2", "lokr_w2_a", "lokr_w2_b")
        core, second, first = (self.get_parameter(name) for name in names)
        return torch.einsum("mn...,mo,ni->oi...", core, second, first)

    def reset_parameters(self) -> None:
        """As PEFT: the first factor zero, so that nothing changes yet."""
        for name, parameter in self.named_parameters():
            if name in ("lokr_w1", "lokr_w1_a"):
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))


class FullEdge(WholeEdge):
    """A whole change of the weight, `diff`, of the bias, `diff_b`, or of both."""

    rank = 0

    def cut(self, split: Split) -> Mapping[str, Placement]:
        outputs = 1 if self.layer.kind == "transposed" else 0
        dim = outputs if split.kind == "columns" else 1 - outputs
        return {"diff": shard(dim)} if self.has("diff") else {}

    def change(self) -> Tensor:
        return self.get_parameter("diff").reshape(self.layer.shape)

    def forward(self, x: Tensor, *, plus: Tensor | None = None) -> Tensor:
        if self.has("diff"):
            return super().forward(x, plus=plus)
        term = self.layer.along_outputs(self.get_parameter("diff_b")) * self.acting()
        return term if plus is None else plus + term

    def deltas(self) -> dict[str, Tensor]:
        if self.has("diff"):
            return super().deltas()
        return {"bias": self.get_parameter("diff_b").float() * (self.strength * self.factor)}

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
