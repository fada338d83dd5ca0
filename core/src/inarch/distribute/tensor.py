"""Tensor parallelism: layers by columns and by rows, adapters split with the sites they stand at.

What comes out is a model like any other, of smaller layers: the collectives stand in its trees as
steps, two for a block, after all that adapters add. Everything is checked before anything is made.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from inarch.adapters import SiteView
from inarch.adapters.member import Member, Members
from inarch.adapters.memory import parts as modules_of
from inarch.adapters.merge import merged
from inarch.adapters.model import adapted
from inarch.adapters.packing import packed_trees
from inarch.adapters.placement import Placed, Split, Unplaceable
from inarch.adapters.slot import Slot
from inarch.distribute.collectives import FromParts, ToParts, shared, total
from inarch.distribute.parts import (
    Placements,
    by_module,
    in_pieces,
    layer_placements,
    part_of_module,
    with_modules,
    without_values,
)
from inarch.distribute.regions import Region, regions_of
from inarch.errors import InarchError
from inarch.nn.pieces import is_by_heads
from inarch.tree import Chain, Edit
from inarch.tree.begin import begun as begun_with
from inarch.tree.substitute import substitute
from inarch.tree.twin import twin_of

if TYPE_CHECKING:
    from inarch.adapters import Model
    from inarch.distribute.layout import Grafted
    from inarch.nn.tokenizer import Tokenizer

SomeModel = TypeVar("SomeModel", bound="Model")

OWNER = "processes"
"""Whose the collectives are, in the source."""


def split_over(
    model: SomeModel, mesh: DeviceMesh
) -> tuple[SomeModel, dict[nn.Module, Placements], Grafted]:
    """The model of which this process has its part, and how the tensors of its modules lie.

    Last comes what makes its trees again of fewer adapters.

    Args:
        model: as it is in one process; it is not changed.
        mesh: of one dimension, the processes that share each layer.

    Raises:
        InarchError: IA880 for a model that can't be split, IA881 for an adapter that can't.
    """
    group = mesh.get_group()
    own = Split(
        part=mesh.get_local_rank(),
        parts=mesh.size(),
        total=partial(total, group=group),
        shared=partial(shared, group=group),
    )
    regions = regions_of(model, own.parts)
    splits = _splits(model, regions, own)
    members = [model.adapters[name] for name in model.order.names]
    active = [member for member in members if not member.merged]
    rules = {member.name: _rules(member, splits, own) for member in active}
    before = model._merged  # pyright: ignore[reportPrivateUsage]
    whole = merged(model.pristine, members, before).trees
    pristine, placed = _layers(whole, regions, own)
    merged_into = {edit.address for member in members if member.merged for edit in member.edits}
    beside = merged_into & {edit.address for member in active for edit in member.edits}
    read = _as_they_were(pristine, beside, model.sites, splits, placed)
    sites = SiteView(read, model.roles, model.sites.settings, model.sites.tokenizers)
    twins = [_twin(m, rules[m.name], splits, sites, own, placed) for m in active]
    begun = _begun(pristine, regions, mesh)

    def grafted(members: Sequence[Member]) -> tuple[dict[str, Chain], dict[str, Tokenizer]]:
        trees, grown = adapted(begun, sites, [m for m in members if not m.merged])
        for name, tree in trees.items():
            own = [e for r in regions if r.tree == name for e in _collectives(r, mesh)]
            trees[name] = tree.edit(own)
        return trees, grown

    trees, _ = grafted(twins)
    if model._packed:  # pyright: ignore[reportPrivateUsage]
        trees = packed_trees(trees, sites)
    twins += [_let_go(member, model.sites) for member in members if member.merged]
    by_name = {twin.name: twin for twin in twins}
    result = copy.copy(model)
    result.trees, result.pristine = trees, pristine
    result._made, result._sites = {}, sites  # pyright: ignore[reportPrivateUsage]
    result._merged = None  # pyright: ignore[reportPrivateUsage]
    result.adapters = Members([by_name[member.name] for member in model.adapters])
    return result, placed, grafted


def _splits(model: Model, regions: list[Region], own: Split) -> dict[str, Split]:
    """How each site of a region lies, by its address in the model."""
    found: dict[str, Split] = {}
    for region in regions:
        chain = model.pristine[region.tree].get_submodule(region.chain)
        before = ".".join(p for p in (region.tree, region.chain) if p)
        if not isinstance(chain, Chain):
            raise TypeError(f"{before} is no Chain")
        for name in chain.form.sites:
            found[f"{before}.{name}"] = _split(region, name, own)
    return found


def _split(region: Region, name: str, own: Split) -> Split:
    """How one site of a region lies."""
    if name == region.rows:
        return replace(own, kind="rows")
    if name in region.columns:
        return replace(own, kind="columns", pieces=region.pieces)
    return replace(own, kind="inside")


def _rules(member: Member, splits: Mapping[str, Split], own: Split) -> dict[nn.Module, Placements]:
    """How the tensors of an adapter's modules lie, checked to be possible."""
    rules: dict[nn.Module, Placements] = {}
    for edit in member.edits:
        split = splits.get(edit.address) or own
        modules = [module for _, module in modules_of(edit)]
        placed = all(isinstance(m, Placed) for m in modules) if modules else _fits(edit, split)
        if split.kind != "whole" and not placed:
            kinds = ", ".join(type(m).__name__ for m in modules) or f"its {edit.kind}"
            why = f"{kinds} there does not say how it lies over processes"
            raise _unplaceable(member, edit, split, why)
        for module in modules:
            if isinstance(module, Placed):
                rules[module] = _asked(member, edit, module, split)
    return rules


def _fits(edit: Edit, split: Split) -> bool:
    """Whether functions may stand there as they are: what they are given is whole, or heads."""
    if split.kind == "columns":
        return edit.kind == "before"
    return split.kind == "inside" and is_by_heads(edit.step)


def _asked(member: Member, edit: Edit, module: nn.Module, split: Split) -> Placements:
    if not isinstance(module, Placed):
        raise TypeError(f"{type(module).__name__} says nothing of placements")
    try:
        rule = in_pieces(module.placements(split), split)
    except Unplaceable as reason:
        raise _unplaceable(member, edit, split, str(reason)) from None
    for name, placement in rule.items():
        path, _, own = name.rpartition(".")
        holder = module.get_submodule(path)
        tensor = holder._parameters.get(own, holder._buffers.get(own))
        size = 0 if tensor is None else tensor.shape[placement.dim]
        parts = split.parts * placement.pieces
        if placement.kind == "shard" and size % parts:
            why = f"the {size} rows or columns of its {name} can't be divided by {parts}"
            raise _unplaceable(member, edit, split, why)
    return rule


def _unplaceable(member: Member, edit: Edit, split: Split, why: str) -> InarchError:
    modules = member.modules.values()
    mergeable = modules and all(getattr(module, "mergeable", False) for module in modules)
    first = f'merge it first: model.merge("{member.name}"), or ' if mergeable else ""
    how = {"rows": "by rows", "columns": "by columns"}.get(split.kind, "into parts around it")
    return InarchError(
        "IA881",
        f"the adapter `{member.name}` can't be split with the model",
        where=edit.address or f"its {edit.kind}",
        why=f"the layer is split {how}; {why}",
        remedy=f"{first}shard with fsdp or replicate",
    )


def _layers(
    trees: Mapping[str, Chain], regions: list[Region], own: Split
) -> tuple[dict[str, Chain], dict[nn.Module, Placements]]:
    """The base's trees with this process's part of each layer, and how those lie."""
    twins: dict[str, dict[str, nn.Module]] = {name: {} for name in trees}
    placed: dict[nn.Module, Placements] = {}
    for region in regions:
        for name in (*region.columns, region.rows):
            address = f"{region.chain}.{name}"
            layer = trees[region.tree].get_submodule(address)
            split = _split(region, name, own)
            rule = layer_placements(layer, split)
            twin = twins[region.tree][address] = part_of_module(layer, rule, split)
            placed[twin] = rule
    return {n: substitute(t, twins[n]) if twins[n] else t for n, t in trees.items()}, placed


def _as_they_were(
    trees: Mapping[str, Chain],
    addresses: set[str],
    whole: SiteView,
    splits: Mapping[str, Split],
    placed: dict[nn.Module, Placements],
) -> dict[str, Chain]:
    """The trees with some layers as nothing was merged into them: adapters read the base's."""
    twins: dict[str, dict[str, nn.Module]] = {name: {} for name in trees}
    for address in addresses:
        layer, split = whole.module_at(address), splits.get(address)
        if layer is None:
            continue
        if split is not None and split.kind in ("columns", "rows"):
            rule = layer_placements(layer, split)
            layer = part_of_module(layer, rule, split)
            placed[layer] = rule
        tree = whole.all[address].tree
        twins[tree][address.removeprefix(tree).removeprefix(".")] = layer
    return {n: substitute(t, twins[n]) if twins[n] else t for n, t in trees.items()}


def _twin(
    member: Member,
    rules: Mapping[nn.Module, Placements],
    splits: Mapping[str, Split],
    sites: SiteView,
    own: Split,
    placed: dict[nn.Module, Placements],
) -> Member:
    """The member whose modules are this process's parts, noted in `placed`."""
    twins: dict[nn.Module, nn.Module] = {}
    for edit in member.edits:
        split = splits.get(edit.address) or own
        beside = sites.module_at(edit.address)
        for _, module in modules_of(edit):
            if module in rules and (rules[module] or split.kind != "whole"):
                twin = part_of_module(module, rules[module], split, beside)
                twins[module] = twin
                placed |= by_module(twin, rules[module])
    edits = tuple(with_modules(edit, twins) for edit in member.edits)
    modules = {address: twins.get(m, m) for address, m in member.modules.items()}
    slot = Slot(member.content, edits)
    return replace(member, edits=edits, modules=modules, slot=slot)


def _let_go(member: Member, sites: SiteView) -> Member:
    """A merged member that holds no layer of the base: the model's weights contain it."""
    twins: dict[nn.Module, nn.Module] = {}
    for edit in member.edits:
        layer = sites.module_at(edit.address)
        for _, module in modules_of(edit):
            if isinstance(module, Placed):
                twin = twins[module] = twin_of(module)
                twin.placed(Split(), None if layer is None else without_values(layer))
    edits = tuple(with_modules(edit, twins) for edit in member.edits)
    modules = {address: twins.get(m, m) for address, m in member.modules.items()}
    slot = Slot(member.content, edits)
    return replace(member, edits=edits, modules=modules, slot=slot)


def _begun(trees: Mapping[str, Chain], regions: list[Region], mesh: DeviceMesh) -> dict[str, Chain]:
    """The trees whose regions begin with the first collective, where all their input is for it."""
    group = mesh.get_group()
    begins: dict[str, dict[str, nn.Module]] = {name: {} for name in trees}
    for region in regions:
        chain = trees[region.tree].get_submodule(region.chain)
        if region.at_start and isinstance(chain, Chain):
            begins[region.tree][region.chain] = begun_with(chain, ToParts(group), OWNER)
    return {n: substitute(t, begins[n]) if begins[n] else t for n, t in trees.items()}


def _collectives(region: Region, mesh: DeviceMesh) -> list[Edit]:
    group = mesh.get_group()
    edits = [Edit.after(f"{region.chain}.{region.rows}", FromParts(group), OWNER)]
    if not region.at_start:
        at = [f"{region.chain}.{name}" for name in region.columns]
        edits += [Edit.before(address, ToParts(group), OWNER) for address in at]
    return edits
