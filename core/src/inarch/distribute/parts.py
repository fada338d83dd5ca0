"""This process's part of layers and of adapters' modules, and how each tensor of them lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from inarch.adapters.placement import FIRST, Placed, Placement, Split, shard
from inarch.nn import TransposedLinear
from inarch.tree import Edit
from inarch.tree.steps import Combinator, Labelled, Step
from inarch.tree.twin import twin_of

Placements = Mapping[str, Placement]
"""How tensors lie, by name; what is not named is whole."""


def layer_placements(layer: nn.Module, split: Split) -> Placements:
    """How the weight and the bias of a linear layer lie."""
    outputs = 1 if isinstance(layer, TransposedLinear) else 0
    if split.kind == "columns":
        return in_pieces({"weight": shard(outputs), "bias": shard(0)}, split)
    return {"weight": shard(1 - outputs), "bias": FIRST}


def in_pieces(rule: Placements, split: Split) -> Placements:
    """The same, where what is cut with a layer's outputs is of as many pieces as those are."""
    if split.kind != "columns" or split.pieces == 1:
        return rule
    return {
        name: replace(placement, pieces=split.pieces) if placement.kind == "shard" else placement
        for name, placement in rule.items()
    }


def part_of(tensor: Tensor, placement: Placement, split: Split) -> Tensor:
    """This process's part of a tensor, in storage of its own; the tensor itself where it is whole.

    Raises:
        ValueError: the dimension isn't divided by the processes.
    """
    if placement.kind == "first" and split.part:
        return torch.zeros_like(tensor)
    if placement.kind != "shard":
        return tensor
    size, rest = divmod(tensor.shape[placement.dim], split.parts * placement.pieces)
    if rest:
        raise ValueError(f"{list(tensor.shape)} along {placement.dim}")
    pieces = tensor.detach().chunk(placement.pieces, placement.dim)
    own = [piece.narrow(placement.dim, split.part * size, size) for piece in pieces]
    if len(own) > 1:
        return torch.cat(own, placement.dim)
    return own[0].clone(memory_format=torch.contiguous_format)


def together(parts: list[Tensor], placement: Placement) -> Tensor:
    """The tensor of which every process gave its part, in their order."""
    dim = placement.dim
    if placement.pieces == 1:
        return torch.cat(parts, dim)
    cut = [part.chunk(placement.pieces, dim) for part in parts]
    return torch.cat([one[piece] for piece in range(placement.pieces) for one in cut], dim)


def part_of_module(
    module: nn.Module, placements: Placements, split: Split, site: nn.Module | None = None
) -> nn.Module:
    """A twin that holds this process's parts; it shares what is whole."""
    twin: Any = twin_of(module)
    for name, child in module._modules.items():
        own = of_child(placements, name)
        if child is not None and own:
            twin._modules[name] = part_of_module(child, own, split)
    for name, parameter in module._parameters.items():
        if parameter is not None and name in placements:
            part = part_of(parameter, placements[name], split)
            if part is not parameter:
                part = nn.Parameter(part.detach(), requires_grad=parameter.requires_grad)
            twin._parameters[name] = part
    for name, buffer in module._buffers.items():
        if buffer is not None and name in placements:
            twin._buffers[name] = part_of(buffer, placements[name], split)
    if isinstance(module, nn.Linear):
        twin.out_features, twin.in_features = twin.weight.shape
    if isinstance(module, Placed):
        twin.placed(split, site)
    return twin


def of_child(placements: Placements, name: str) -> Placements:
    """How a child's tensors lie, by their names in it."""
    before = f"{name}."
    return {n.removeprefix(before): p for n, p in placements.items() if n.startswith(before)}


def by_module(module: nn.Module, placements: Placements) -> dict[nn.Module, Placements]:
    """The rules of a module and its children, each by the module whose tensors they are of."""
    found: dict[nn.Module, Placements] = {}
    found[module] = {name: rule for name, rule in placements.items() if "." not in name}
    for name, child in module._modules.items():
        own = of_child(placements, name)
        if child is not None and own:
            found |= by_module(child, own)
    return found


def without_values(module: nn.Module) -> nn.Module:
    """A twin whose own parameters have shapes and no values."""
    twin: Any = twin_of(module)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            twin._parameters[name] = nn.Parameter(parameter.detach().to("meta"), False)
    return twin


def with_modules(edit: Edit, twins: Mapping[nn.Module, nn.Module]) -> Edit:
    """The edit with other modules in the place of some."""
    step = _mapped(edit.step, twins)
    return edit if step is edit.step else replace(edit, step=step)


def _mapped(step: Step, twins: Mapping[nn.Module, nn.Module]) -> Step:
    if isinstance(step, nn.Module):
        return twins.get(step, step)
    if isinstance(step, Labelled):
        return replace(step, step=_mapped(step.step, twins))
    if isinstance(step, Combinator) and step.children:
        return step.with_children(tuple(_mapped(child, twins) for child in step.children))
    return step
