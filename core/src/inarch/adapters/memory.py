"""The memory of an adapter: one allocation for its parameters, of each dtype and device.

Parameters lie in it in the order of their addresses, whatever order a file has them in, so filling
an adapter again from another file is one copy (`Model.swap`), and so is bringing one to a device.
Each parameter is a tensor of its own over its stretch: pickled, saved and counted by autograd as if
it were alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from inarch.adapters.adapter import SiteView
from inarch.adapters.edge import Edge, Settled, scalar
from inarch.adapters.flat import Flat, Key, Shape
from inarch.tree import Edit
from inarch.tree.steps import Labelled, walk
from inarch.weights import WeightsHeader

Store = dict[str, Any]
"""A module's parameters, or its buffers, by their names in it."""


class Place(NamedTuple):
    """Where a parameter or a buffer is registered: its owner's dict, and its name there."""

    store: Store
    name: str


class _Standing(NamedTuple):
    """A module that an edit brings, its name in the step, and where it stands."""

    edit: Edit
    name: str
    module: nn.Module
    site: nn.Module | None
    device: torch.device
    dtype: torch.dtype

    def key(self, own: str) -> Key:
        """Of its tensor of some name."""
        return key_of(self.edit, f"{self.name}.{own}" if self.name else own)


class _Wanted(NamedTuple):
    """A parameter that is to get memory, and what goes there."""

    key: Key
    module: nn.Module
    name: str
    shape: Shape
    file: str | None
    copied: Tensor | None


_Kind = tuple[torch.device, torch.dtype]


def parts(edit: Edit) -> Iterator[tuple[str, nn.Module]]:
    """The modules an edit brings, each with the label it has in the step."""
    if isinstance(edit.step, nn.Module):
        yield "", edit.step
        return
    labelled: set[int] = set()
    for step in walk(edit.step):
        if isinstance(step, Labelled) and isinstance(step.step, nn.Module):
            labelled.add(id(step.step))
            yield step.label, step.step
        elif isinstance(step, nn.Module) and id(step) not in labelled:
            yield "", step


def parameters(edit: Edit) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """Each parameter: its name in the step, its owner, its name there, and itself."""
    for label, module in owners(edit):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield f"{label}.{name}" if label else name, module, name, parameter


def key_of(edit: Edit, name: str = "") -> Key:
    return edit.address, edit.kind, edit.names, name


def owners(edit: Edit) -> list[tuple[str, nn.Module]]:
    """Every module an edit brings, and those in it, each with its name in the step."""
    step = edit.step
    if isinstance(step, nn.Module) and not step._modules:  # as almost all
        return [("", step)]
    return [
        (".".join(name for name in (label, path) if name), module)
        for label, part in parts(edit)
        for path, module in part.named_modules()
    ]


def places(edits: Iterable[Edit]) -> dict[Key, Place]:
    """Every parameter of some edits and every buffer of their edges, beside the scale.

    What two edits share is the first's.
    """
    stores: tuple[dict[Key, Place], dict[Key, Place]] = {}, {}
    seen: set[int] = set()
    for edit in edits:
        for label, module in owners(edit):
            if id(module) in seen:
                continue
            seen.add(id(module))
            held: list[Store] = [module._parameters]
            held += [module._buffers] if isinstance(module, Edge) else []
            for found, store in zip(stores, held, strict=False):
                for name, tensor in store.items():
                    if tensor is not None and (store is held[0] or name != "scale"):
                        key = key_of(edit, f"{label}.{name}" if label else name)
                        found[key] = Place(store, name)
    return stores[0] | stores[1]


@torch.inference_mode(False)  # whose tensors could neither be trained nor tell when they change
def materialise(
    edits: Sequence[Edit],
    sites: SiteView,
    header: WeightsHeader | None,
    like: Sequence[Flat] = (),
) -> tuple[Flat, ...]:
    """Give what some edits bring memory on the device of their sites, and fill it.

    Args:
        edits: at exact addresses, their modules on the meta device.
        sites: of the model they are for.
        header: of the file that the parameters' values are in; without one they start untrained.
        like: how the memory is to be laid out; what these edits don't have there is zero.

    Raises:
        InarchError: IA201 or IA202 for a file that was changed since its header was read.
    """
    standing = _standing(edits, sites)
    flats: list[Flat] = []
    copied: set[nn.Module] = set()
    for (device, dtype), group in _wanted(standing, sites, header).items():
        flats.append(_room({w.key: w.shape for w in group}, dtype, device, like))
        _fill(flats[-1], group, header)
        copied.update([w.module for w in group if w.copied is not None])
    numbered, others = _numbered(standing, like)
    for one in standing:
        _house(one)
        if header is None and one.device.type != "meta" and one.module not in copied:
            fresh = getattr(one.module, "reset_parameters", None)
            if fresh is not None:
                fresh()
        _settle(one, loaded=header is not None)
    return (*flats, *numbered, *_gathered(others, like))


@torch.inference_mode(False)
def housed(edits: Sequence[Edit], sites: SiteView) -> tuple[Flat, ...]:
    """Bring parameters that have their values already into one memory, beside their sites."""
    standing = _standing(edits, sites)
    own = {s.key(n): Place(s.module._parameters, n) for s in standing for n in _held(s.module)}
    flats = list(_gathered(own))
    numbered, others = _numbered(standing)
    for one in standing:
        _settle(one, loaded=False)
    return (*flats, *numbered, *_gathered(others))


def _standing(edits: Iterable[Edit], sites: SiteView) -> list[_Standing]:
    """Each module once, where it first stands."""
    found: dict[int, _Standing] = {}
    for edit in edits:
        device, dtype = placement(edit, sites)
        site = sites.module_at(edit.address)
        for name, module in owners(edit):
            if id(module) not in found:
                found[id(module)] = _Standing(edit, name, module, site, device, dtype)
    return list(found.values())


def _held(module: nn.Module) -> list[str]:
    return [name for name, parameter in module._parameters.items() if parameter is not None]


def _wanted(
    standing: Iterable[_Standing], sites: SiteView, header: WeightsHeader | None
) -> dict[_Kind, list[_Wanted]]:
    """The parameters to fill, by the memory they are for."""
    groups: dict[_Kind, list[_Wanted]] = {}
    for one in standing:
        edit, near = one.edit, groups.setdefault((one.device, one.dtype), [])
        for own, parameter in one.module._parameters.items():
            if parameter is None:
                continue
            key, shape = one.key(own), parameter.shape
            file = None if header is None else edit.fills.get(key[3])
            if file is None and key[3] in edit.copies:
                copied = _base_parameter(sites, edit.copies[key[3]]).detach()
                group = groups.setdefault((copied.device, copied.dtype), [])
                group.append(_Wanted(key, one.module, own, shape, None, copied))
            else:
                near.append(_Wanted(key, one.module, own, shape, file, None))
    return {kind: group for kind, group in groups.items() if group}


def _room(
    shapes: Mapping[Key, Shape], dtype: torch.dtype, device: torch.device, like: Sequence[Flat]
) -> Flat:
    """Memory for tensors of one dtype and device, laid out as it is elsewhere if they are there."""
    for flat in like:
        if flat.whole.device == device and shapes.keys() <= flat.spans.keys():
            return flat.like()
    return Flat.of(shapes, dtype, device)


def _numbered(
    standing: Iterable[_Standing], like: Sequence[Flat] = ()
) -> tuple[list[Flat], dict[Key, Place]]:
    """Give edges their scale, one tensor for all, and their other numbers.

    Returns:
        The memory of the numbers, and where edges have other buffers.
    """
    scales: dict[tuple[torch.device, float], Tensor] = {}
    groups: dict[torch.device, dict[Key, tuple[Store, str, float]]] = {}
    others: dict[Key, Place] = {}
    for one in standing:
        edge = one.module
        if not isinstance(edge, Edge):
            continue
        held, numbers, kind = edge._buffers, edge.numbers(), (one.device, edge.strength)
        if kind not in scales:
            scales[kind] = scalar(edge.strength, one.device)
        held["scale"] = scales[kind]
        group = groups.setdefault(one.device, {}) if numbers else {}
        for name, value in numbers.items():
            group[one.key(name)] = held, name, value
        if len(held) > 1 + len(numbers):
            rest = [name for name in held if name != "scale" and name not in numbers]
            others.update({one.key(name): Place(held, name) for name in rest})
    return [_written(device, group, like) for device, group in groups.items()], others


def _written(
    device: torch.device, group: Mapping[Key, tuple[Store, str, float]], like: Sequence[Flat]
) -> Flat:
    """Numbers brought to a device at once, each a buffer of its own."""
    flat = _room(dict.fromkeys(group, ()), torch.float32, device, like)
    if device.type != "meta":
        starts = torch.tensor([flat.spans[key][0] for key in group], device=device)
        values = torch.tensor([value for _, _, value in group.values()], device=device)
        flat.whole[starts] = values
    for (store, name, _), number in zip(group.values(), flat.tensors(group), strict=True):
        store[name] = number
    return flat


def _gathered(found: Mapping[Key, Place], like: Sequence[Flat] = ()) -> Iterator[Flat]:
    """Tensors that have values already, brought together."""
    groups: dict[_Kind, dict[Key, Tensor]] = {}
    for key, place in found.items():
        tensor: Tensor | None = place.store[place.name]
        if tensor is not None:
            groups.setdefault((tensor.device, tensor.dtype), {})[key] = tensor
    for (device, dtype), group in groups.items():
        flat = _room({k: tuple(t.shape) for k, t in group.items()}, dtype, device, like)
        for (key, value), made in zip(group.items(), flat.tensors(group), strict=True):
            flat.view(key).copy_(value.detach())
            is_parameter = isinstance(value, nn.Parameter)
            found[key].store[found[key].name] = (
                nn.Parameter(made, requires_grad=False) if is_parameter else made
            )
        yield flat


def _fill(flat: Flat, group: Sequence[_Wanted], header: WeightsHeader | None) -> None:
    """The values of one allocation: gathered on the host where it is elsewhere, and brought once.

    A tensor of the file that is smaller than its parameter fills its beginning; see `Edit.padded`.
    """
    device = flat.whole.device
    read = [w for w in group if w.file is not None and device.type != "meta"]
    staged = flat.like(torch.device("cpu")) if read and device.type != "cpu" else flat
    for wanted in read:
        if header is not None and wanted.file is not None:
            tensor = header.load(wanted.file, torch.device("cpu"), None)
            into = staged.view(wanted.key)
            if tensor.shape != wanted.shape:
                into = into[tuple(slice(size) for size in tensor.shape)]
            into.copy_(tensor)
    if staged is not flat:
        flat.whole.copy_(staged.whole)
    for wanted in group:
        if wanted.copied is not None:
            flat.view(wanted.key).copy_(wanted.copied)
    for wanted, made in zip(group, flat.tensors([w.key for w in group]), strict=True):
        wanted.module._parameters[wanted.name] = nn.Parameter(made, requires_grad=False)


def _house(one: _Standing) -> None:
    """Give a module's own buffers memory beside the site; those of edges have theirs mostly."""
    module, edge = one.module, isinstance(one.module, Edge)
    for own, buffer in module._buffers.items():
        if buffer is not None and not (edge and own == "scale") and buffer.device != one.device:
            made = torch.zeros(buffer.shape, dtype=buffer.dtype, device=one.device)
            module._buffers[own] = made if buffer.is_meta else buffer.to(one.device)


def _settle(one: _Standing, *, loaded: bool) -> None:
    """Tell a module that is filled where it stands."""
    module = one.module
    if isinstance(module, (Edge, Settled)):
        module.settle(one.site, loaded=loaded)


def placement(edit: Edit, sites: SiteView) -> _Kind:
    """The device and dtype of the weights at the site, or of the tree around it."""
    site = sites.all.get(edit.address)
    if site is not None and site.module is not None:
        for parameter in site.module._parameters.values():
            if parameter is not None:
                return parameter.device, parameter.dtype
        for parameter in site.module.parameters():
            return parameter.device, parameter.dtype
    named = edit.address.partition(".")[0] if site is None else site.tree
    tree = sites.trees.get(named) or next(iter(sites.trees.values()))
    parameter = next(tree.parameters())
    return parameter.device, parameter.dtype


def _base_parameter(sites: SiteView, address: str) -> nn.Parameter:
    """A parameter of the base, by the address that begins with its tree's name."""
    name, _, rest = address.partition(".")
    if "" in sites.trees:
        return sites.trees[""].get_parameter(address)
    return sites.trees[name].get_parameter(rest)
