"""The memory of an adapter: one allocation for its parameters, of each dtype and device.

Parameters lie in it in the order of their addresses, whatever order a file has them in, so filling
an adapter again from another file is one copy (`Model.swap`), and so is bringing one to a device.
Each parameter is a tensor of its own over its stretch: pickled, saved and counted by autograd as if
it were alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from inarch.adapters.adapter import SiteView
from inarch.adapters.edge import Edge, Settled
from inarch.tree import Edit
from inarch.tree.steps import Labelled, walk
from inarch.weights import WeightsHeader

_ALIGNMENT = 64
"""Bytes between the beginnings of parameters, which a wide load wants divided by 16."""

Key = tuple[str, str, tuple[str, ...], str]
"""A tensor of an adapter: its edit's address, kind and names, and its name in the step."""


@dataclass(frozen=True, slots=True, eq=False)
class Flat:
    """One allocation, and where in it each parameter lies.

    Attributes:
        whole: one-dimensional.
        spans: the first element and the shape of each parameter.
    """

    whole: Tensor
    spans: Mapping[Key, tuple[int, tuple[int, ...]]]

    @classmethod
    def of(
        cls, shapes: Mapping[Key, tuple[int, ...]], dtype: torch.dtype, device: torch.device
    ) -> Flat:
        """Zeros with room for parameters of some shapes."""
        step, end = max(1, _ALIGNMENT // dtype.itemsize), 0
        spans: dict[Key, tuple[int, tuple[int, ...]]] = {}
        for key, shape in sorted(shapes.items()):
            spans[key] = (end, shape)
            end += -(-prod(shape) // step) * step
        return cls(torch.zeros(end, dtype=dtype, device=device), spans)

    def like(self, device: torch.device | None = None) -> Flat:
        """Zeros laid out the same."""
        pinned = device is not None and device.type == "cpu" and self.whole.is_cuda
        place = self.whole.device if device is None else device
        whole = torch.zeros_like(self.whole, device=place, pin_memory=pinned)
        return Flat(whole, self.spans)

    def view(self, key: Key) -> Tensor:
        start, shape = self.spans[key]
        return self.whole[start : start + prod(shape)].view(shape)

    def tensor(self, key: Key) -> Tensor:
        """A tensor over a stretch, of its own: a view would be pickled with all of the rest."""
        start, shape = self.spans[key]
        part = self.whole[start : start + prod(shape)]
        own = part.numel() and part.device.type in ("cpu", "cuda")
        part = torch.from_dlpack(part) if own else part.data  # pyright: ignore[reportPrivateImportUsage]
        return part.view(shape)

    def addresses(self) -> list[int]:
        """Where in memory each tensor lies that wasn't moved, cast or copied."""
        begin, width = self.whole.data_ptr(), self.whole.dtype.itemsize
        return [begin + start * width for start, _ in self.spans.values()]


Store = dict[str, Any]
"""A module's parameters, or its buffers, by their names in it."""


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where a parameter or a buffer is registered: its owner's dict, and its name there."""

    store: Store
    name: str


@dataclass(frozen=True, slots=True, eq=False)
class _Wanted:
    """A parameter that is to get memory, and what goes there."""

    key: Key
    module: nn.Module
    place: Place
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    file: str | None
    copied: Tensor | None


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
    for label, module in _owners(edit):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield f"{label}.{name}" if label else name, module, name, parameter


def key_of(edit: Edit, name: str = "") -> Key:
    return edit.address, edit.kind, edit.names, name


def buffers(edit: Edit) -> Iterator[tuple[str, nn.Module, str]]:
    """Each buffer of an edge beside its scale: its name in the step, its owner, its name there."""
    for label, module in _owners(edit):
        for name, buffer in module._buffers.items() if isinstance(module, Edge) else ():
            if buffer is not None and name != "scale":
                yield f"{label}.{name}" if label else name, module, name


def _owners(edit: Edit) -> Iterator[tuple[str, nn.Module]]:
    """Every module an edit brings, and those in it, each with its name in the step."""
    for label, part in parts(edit):
        if not part._modules:  # as almost all
            yield label, part
            continue
        for path, module in part.named_modules():
            yield ".".join(name for name in (label, path) if name), module


def places(edits: Iterable[Edit], *, of_buffers: bool = False) -> dict[Key, Place]:
    """Every parameter of some edits, or every buffer; one that two edits share is the first's."""
    found: dict[Key, Place] = {}
    seen: set[tuple[int, str]] = set()
    for edit in edits:
        for name, module, own, *_ in buffers(edit) if of_buffers else parameters(edit):
            if (id(module), own) not in seen:
                seen.add((id(module), own))
                store = module._buffers if of_buffers else module._parameters
                found[key_of(edit, name)] = Place(store, own)
    return found


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
    groups: dict[tuple[torch.device, torch.dtype], list[_Wanted]] = {}
    for wanted in _wanted(edits, sites, header):
        groups.setdefault((wanted.device, wanted.dtype), []).append(wanted)
    flats: list[Flat] = []
    for group in groups.values():
        flats.append(_room({w.key: (w.shape, w.dtype, w.device) for w in group}, like))
        _fill(flats[-1], group, header)
    copied = {w.module for group in groups.values() for w in group if w.copied is not None}
    for edit in edits:
        _settle(edit, sites, loaded=header is not None, copied=copied)
    return (*flats, *_gathered(places(edits, of_buffers=True), like))


def _room(
    wanted: Mapping[Key, tuple[tuple[int, ...], torch.dtype, torch.device]], like: Sequence[Flat]
) -> Flat:
    """Memory for tensors of one dtype and device, laid out as it is elsewhere if they are there."""
    _, dtype, device = next(iter(wanted.values()))
    for flat in like:
        if flat.whole.device == device and wanted.keys() <= flat.spans.keys():
            return flat.like()
    return Flat.of({key: shape for key, (shape, _, _) in wanted.items()}, dtype, device)


def _gathered(found: Mapping[Key, Place], like: Sequence[Flat] = ()) -> Iterator[Flat]:
    """Tensors that have values already, brought together."""
    groups: dict[tuple[torch.device, torch.dtype], dict[Key, Tensor]] = {}
    for key, place in found.items():
        tensor: Tensor = place.store[place.name]
        groups.setdefault((tensor.device, tensor.dtype), {})[key] = tensor
    for group in groups.values():
        flat = _room({k: (tuple(t.shape), t.dtype, t.device) for k, t in group.items()}, like)
        for key, value in group.items():
            flat.view(key).copy_(value.detach())
            made = flat.tensor(key)
            is_parameter = isinstance(value, nn.Parameter)
            found[key].store[found[key].name] = (
                nn.Parameter(made, requires_grad=False) if is_parameter else made
            )
        yield flat


@torch.inference_mode(False)
def housed(edits: Sequence[Edit], sites: SiteView) -> tuple[Flat, ...]:
    """Bring parameters that have their values already into one memory, beside their sites."""
    flats = list(_gathered(places(edits)))
    for edit in edits:
        device, _ = placement(edit, sites)
        for _, part in parts(edit):
            for module in part.modules():
                _stand(module, sites.module_at(edit.address), device, loaded=False)
            part.eval()
    return (*flats, *_gathered(places(edits, of_buffers=True)))


def _wanted(
    edits: Iterable[Edit], sites: SiteView, header: WeightsHeader | None
) -> Iterator[_Wanted]:
    own = places(edits)
    for edit in edits:
        near = placement(edit, sites)
        for name, module, _, parameter in parameters(edit):
            key = key_of(edit, name)
            if key not in own:
                continue
            file = None if header is None else edit.fills.get(name)
            copied, (device, dtype) = None, near
            if file is None and name in edit.copies:
                copied = _base_parameter(sites, edit.copies[name]).detach()
                device, dtype = copied.device, copied.dtype
            shape = tuple(parameter.shape)
            yield _Wanted(key, module, own[key], shape, dtype, device, file, copied)


def _fill(flat: Flat, group: Iterable[_Wanted], header: WeightsHeader | None) -> None:
    """The values of one allocation: gathered on the host where it is elsewhere, and brought once.

    A tensor of the file that is smaller than its parameter fills its beginning; see `Edit.padded`.
    """
    group, device = list(group), flat.whole.device
    read = [w for w in group if w.file is not None and device.type != "meta"]
    staged = flat.like(torch.device("cpu")) if read and device.type != "cpu" else flat
    for wanted in read:
        if header is not None and wanted.file is not None:
            tensor = header.load(wanted.file, torch.device("cpu"), None)
            into = staged.view(wanted.key)
            into[tuple(slice(size) for size in tensor.shape)].copy_(tensor)
    if staged is not flat:
        flat.whole.copy_(staged.whole)
    for wanted in group:
        if wanted.copied is not None:
            flat.view(wanted.key).copy_(wanted.copied)
        parameter = nn.Parameter(flat.tensor(wanted.key), requires_grad=False)
        wanted.place.store[wanted.place.name] = parameter


def _settle(edit: Edit, sites: SiteView, *, loaded: bool, copied: set[nn.Module]) -> None:
    """Buffers, first values and what depends on the base, once the parameters have memory."""
    (device, _), site = placement(edit, sites), sites.module_at(edit.address)
    drawn = not loaded and device.type != "meta"  # where there is nothing to draw into
    for _, part in parts(edit):
        for module in part.modules():
            for own, buffer in module._buffers.items():
                if buffer is not None and own != "scale":
                    shape, dtype = buffer.shape, buffer.dtype
                    made = torch.zeros(shape, dtype=dtype, device=device)
                    module._buffers[own] = made if buffer.is_meta else buffer.to(device)
            fresh = getattr(module, "reset_parameters", None)
            if drawn and fresh is not None and module not in copied:
                fresh()
            _stand(module, site, device, loaded=loaded)
        part.eval()


def _stand(
    module: nn.Module, site: nn.Module | None, device: torch.device, *, loaded: bool
) -> None:
    """Tell a module that is filled where it stands."""
    if isinstance(module, Edge):
        module.place(device)
    if isinstance(module, Edge | Settled):
        module.settle(site, loaded=loaded)


def placement(edit: Edit, sites: SiteView) -> tuple[torch.device, torch.dtype]:
    """The device and dtype of the weights at the site, or of the tree around it."""
    site = sites.all.get(edit.address)
    parameter: Tensor | None = None
    if site is not None and site.module is not None:
        own = (p for p in site.module._parameters.values() if p is not None)
        parameter = next(own, None)
        if parameter is None:
            parameter = next(site.module.parameters(), None)
    if parameter is None:
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
