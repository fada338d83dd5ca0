"""From specifications to members: read, checked and filled before any model is made of them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from torch import nn

from inarch.adapters.adapter import Adapter, SiteView
from inarch.adapters.edge import Edge, Settled, rescale
from inarch.adapters.foundation import joined
from inarch.adapters.member import Member
from inarch.adapters.memory import materialise, parameters, parts, placement
from inarch.adapters.slot import Content, Slot
from inarch.errors import InarchError
from inarch.naming import check_adapter_name
from inarch.plugins import index, load_object
from inarch.plugins.wanted import located, refuse_base
from inarch.stack import AdapterSpec
from inarch.tree import Chain, Edit
from inarch.tree.edit import addresses
from inarch.weights import WeightsHeader, blank, open_adapter

if TYPE_CHECKING:
    from inarch.adapters.inner import Inner
    from inarch.adapters.model import Model
    from inarch.plugins.index import Index
    from inarch.plugins.manifest import AdapterEntry


@dataclass(eq=False)
class Draft:
    """A member whose edits are known and whose modules are still on the meta device.

    Attributes:
        spec: what was asked for.
        kind: the id of the plugin.
        entry: what its manifest says.
        adapter: made of the plugin's class.
        header: of its file; None for one that is yet to be trained.
        edits: at exact addresses.
        inner: what is to be put into the tree it brings; None for nothing.
    """

    spec: AdapterSpec
    kind: str
    entry: AdapterEntry
    adapter: Adapter
    header: WeightsHeader | None
    edits: tuple[Edit, ...]
    inner: Inner | None = None

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def after(self) -> tuple[str, ...]:
        return self.spec.after

    @property
    def before(self) -> tuple[str, ...]:
        return self.spec.before


def installed() -> Index:
    """What is installed, as this module sees it."""
    return index()


def draft_of(spec: AdapterSpec, model: Model) -> Draft:
    """The adapter a specification asks for, checked against the model; nothing is filled.

    Raises:
        InarchError: 4xx; nothing was changed.
    """
    check_adapter_name(spec.name)
    entry, path = located(spec, index(), model.family)
    plugin: Any = load_object("inarch.adapters", entry.id)
    adapter = plugin(spec.name, _options(plugin, spec, entry.id))
    header = None if path is None else _opened(path, adapter.conversion)
    if header is not None:
        _check_base(spec, header, model)
        _check_options(spec, adapter, header)
    with blank():
        edits = tuple(adapter.edits(model.sites, header))
    edits = tuple(_expanded(edits, model.pristine))
    _check_fills(spec, edits, header)
    _check_scale(spec, edits)
    inner = None
    if spec.adapters:
        from inarch.adapters.inner import inner_of  # which knows what a Model is

        inner = inner_of(spec, adapter, header, model)
    return Draft(spec, entry.id, entry, adapter, header, edits, inner)


def _opened(path: Path, conversion: str) -> WeightsHeader:
    """An adapter's file; a pickle is refused with the conversion its plugin knows."""
    try:
        return open_adapter(path)
    except InarchError as error:
        if error.code != "IA203" or not conversion:
            raise
        raise InarchError(
            error.code, error.what, where=error.where, why=error.why, remedy=conversion
        ) from None


def filled(draft: Draft, model: Model) -> Member:
    """The member a draft becomes, its modules filled, ready to be put into `model`.

    A draft is filled once: its modules are the member's.

    Raises:
        InarchError: 4xx; neither the model nor anything else was changed.
    """
    spec, header = draft.spec, draft.header
    flats = materialise(draft.edits, model.sites, header)
    if header is not None:
        header.close()
    inner = None if draft.inner is None else draft.inner.filled()
    modules = modules_of(draft.edits)
    member = Member(
        spec.name,
        draft.kind,
        spec,
        draft.edits if inner is None else _around(draft, inner.tree),
        modules,
        Slot(Content.of(draft), draft.edits, flats),
        entry=draft.entry,
        inner=inner,
    )
    rescale(member.edges, spec.scale)
    member.trainable = header is None
    return member


def sketched(draft: Draft, sites: SiteView) -> tuple[Edit, ...]:
    """A draft's edits on the meta device, settled at the sites of a tree that is there as well.

    The edits are the draft's own, so a draft that was sketched is not filled any more.
    """
    for edit in draft.edits:
        _, dtype = placement(edit, sites)
        for _, module, own, parameter in list(parameters(edit)):
            value = torch.empty_like(parameter, device="meta", dtype=dtype)
            module._parameters[own] = nn.Parameter(value, requires_grad=False)
        for _, part in parts(edit):
            part.to("meta").eval()
            for module in part.modules():
                if isinstance(module, Settled):
                    module.settle(sites.module_at(edit.address), loaded=draft.header is not None)
    return draft.edits if draft.inner is None else _around(draft, draft.inner.sketched())


def _around(draft: Draft, tree: Chain) -> tuple[Edit, ...]:
    """The edits of an adapter with its own tree adapted."""
    own = draft.adapter.own_tree()
    return tuple(
        dataclasses.replace(edit, step=tree) if own and edit.step is own.chain else edit
        for edit in draft.edits
    )


def _check_scale(spec: AdapterSpec, edits: Iterable[Edit]) -> None:
    brought = (part for edit in edits for _, part in parts(edit))
    if spec.scale != 1.0 and not any(isinstance(m, Edge) for b in brought for m in b.modules()):
        raise InarchError(
            "IA409",
            f"the adapter `{spec.name}` has no scale",
            why=f"adapters of kind {spec.use} act fully or not at all",
            remedy="leave the scale at 1.0",
        )


def _options(plugin: type[Adapter], spec: AdapterSpec, kind: str) -> Any:
    try:
        options = msgspec.convert(dict(spec.options), plugin.Options)
        told = {name: getattr(options, name) for name in plugin.paths}
        beside = {n: str(Path(spec.folder, v)) for n, v in told.items() if isinstance(v, str)}
        found = {name: path for name, path in beside.items() if Path(path).exists()}
        return msgspec.structs.replace(options, **found) if found else options
    except msgspec.ValidationError as error:
        known = [f.name for f in msgspec.structs.fields(plugin.Options)]
        unknown = [o for o in spec.options if o not in known]
        near = [n for o in unknown for n in difflib.get_close_matches(o, known, 1, 0.5)]
        raise InarchError(
            "IA401",
            f"adapter `{kind}` can't take these options",
            where=f"{spec.where or f'adapter `{spec.name}`'}: {', '.join(unknown or spec.options)}",
            why=f"{error}; its options are: {', '.join(known)}",
            remedy=f"did you mean: {', '.join(near)}" if near else f"inarch show {kind}",
        ) from None


def _check_base(spec: AdapterSpec, header: WeightsHeader, model: Model) -> None:
    if "inarch.base_fingerprint" in header.metadata:
        refuse_base(spec.name, str(header.path), header.metadata, model.fingerprint())


def _check_options(spec: AdapterSpec, adapter: Adapter, header: WeightsHeader) -> None:
    """Nothing that says how to train one is told of one that was trained."""
    told = [option for option in spec.options if option in adapter.for_training]
    if told:
        raise InarchError(
            "IA401",
            f"`{told[0]}` is for an adapter that is yet to be trained",
            where=f"{spec.where or f'adapter `{spec.name}`'}: {', '.join(told)}",
            why=f"{header.path} holds what was trained, which it can't change",
            remedy=f"leave {' and '.join(f'`{option}`' for option in told)} out, or the weights",
        )


def _expanded(edits: Iterable[Edit], trees: Mapping[str, Chain]) -> Iterator[Edit]:
    """The edits at exact addresses, each with its tree's name before it."""
    for edit in edits:
        name, inner = split(edit, trees)
        for address in addresses(trees[name], inner):
            full = joined(name, address)
            yield edit if edit.address == full else edit.at(full)


def split(edit: Edit, trees: Mapping[str, Chain]) -> tuple[str, Edit]:
    """The tree an edit is for, and the edit with its address within that tree."""
    if "" in trees:
        return "", edit
    name, _, rest = edit.address.partition(".")
    if name not in trees:
        raise InarchError(
            "IA402",
            f"the address `{edit.address}` begins with no tree of this model",
            where=f"adapter `{edit.adapter}`",
            why=f"its trees are: {', '.join(trees)}",
            remedy=f"begin it with one of them: {next(iter(trees))}.{edit.address}",
        )
    return name, edit.at(rest)


def by_tree(edits: Iterable[Edit], trees: Mapping[str, Chain]) -> dict[str, list[Edit]]:
    """Edits by the tree they are for, each with its address within that tree."""
    found: dict[str, list[Edit]] = {name: [] for name in trees}
    for edit in edits:
        name, own = split(edit, trees)
        found[name].append(own)
    return found


def modules_of(edits: Iterable[Edit]) -> dict[str, nn.Module]:
    """The modules that edits bring, by the address each stands at."""
    modules: dict[str, nn.Module] = {}
    for edit in edits:
        step, provided = edit.step, edit.kind == "provide"
        brought = [("", step)] if isinstance(step, nn.Module) else parts(edit)
        for label, module in brought:
            address = edit.address
            if provided or label:
                names = (address, edit.label if provided else "", label)
                address = ".".join(part for part in names if part)
            if modules.setdefault(address, module) is not module:
                address = f"{address}:{edit.kind}"
                modules[address] = module
    return modules


def _fits(shape: tuple[int, ...], parameter: nn.Parameter, *, padded: bool) -> bool:
    """Whether a tensor of a file fills a parameter, or its beginning where the rest may be zero."""
    smaller = len(shape) == parameter.dim() and all(
        size <= room for size, room in zip(shape, parameter.shape, strict=True)
    )
    return smaller if padded else shape == tuple(parameter.shape)


def _check_fills(spec: AdapterSpec, edits: Iterable[Edit], header: WeightsHeader | None) -> None:
    """Every parameter has a key of the file, of its shape, and every key is used."""
    if header is None:
        return
    keys = set(header.keys())
    wrong: list[str] = []
    for edit in edits:
        for name, _, _, parameter in parameters(edit):
            key = edit.fills.get(name)
            if key is None and (name in edit.copies or name in edit.padded):
                continue
            if key is None or key not in keys:
                wrong.append(f"{edit.address} ({name}) has no tensor {key or ''}".rstrip())
            elif not _fits(header.shape(key), parameter, padded=name in edit.padded):
                shapes = f"{list(header.shape(key))}, the site needs {list(parameter.shape)}"
                wrong.append(f"{key} is {shapes}")
            elif parameter.is_floating_point() and not header.dtype(key).is_floating_point:
                wrong.append(f"{key} is {header.dtype(key)}, the site needs floating point")
    used = {key for edit in edits for key in edit.fills.values()} | set(header.used)
    wrong += [f"{key} finds no site" for key in sorted(keys - used)]
    if wrong:
        more = f"\nand {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise InarchError(
            "IA411",
            f"the file of adapter `{spec.name}` does not fit this model",
            where=str(header.path),
            why="\n".join(wrong[:8]) + more,
            remedy="pass the file that was trained for this base",
        )
