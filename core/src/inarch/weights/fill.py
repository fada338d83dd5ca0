"""Filling a tree that was built on the meta device from a checkpoint: all of it or nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from inarch.errors import InarchError
from inarch.tree import Chain
from inarch.weights.checkpoint import Checkpoint
from inarch.weights.header import TensorInfo

_SHOWN = 6


def fill(
    tree: Chain,
    checkpoint: Checkpoint,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    *,
    ignored: Iterable[str] = (),
    prefix: str = "",
) -> None:
    """Give every parameter and persistent buffer of a tree its tensor, frozen.

    Tensors are mapped and cast one by one, so that no second copy of the weights exists at any
    time. A tied parameter may be absent from the file.

    Args:
        tree: on the meta device; its modules get new parameters.
        checkpoint: where the tensors are.
        dtype: of floating-point tensors; None keeps the file's.
        device: where they go; "meta" reads headers alone.
        ignored: patterns of tensors that the file may have and the tree need not.
        prefix: of the tree's names in the checkpoint.

    Raises:
        InarchError: IA206 for tensors that are missing, unexpected or of another shape, all of
            them in one error; the tree is as it was.
    """
    modules = _named(tree, prefix.removesuffix("."))
    holders = _holders(modules)
    wanted = {name: held[own] for name, (held, own) in holders.items()}
    found = {
        name: info
        for name, info in checkpoint.tensors.items()
        if name.startswith(prefix) and not any(fnmatchcase(name, p) for p in ignored)
    }
    aliases = dict(_ties(modules))
    _check(wanted, found, aliases, checkpoint)
    place = torch.device(device)
    values: dict[str, torch.Tensor] = {}
    for name, old in wanted.items():
        if name in aliases:
            continue
        target = dtype if old.is_floating_point() else None
        if place.type == "meta":
            info = checkpoint.tensors[name]
            values[name] = torch.empty(info.shape, dtype=target or info.dtype, device=place)
        else:
            values[name] = checkpoint.read(name, target, place)
    for name, value in values.items():
        held, own = holders[name]
        learned = isinstance(held[own], nn.Parameter)
        held[own] = nn.Parameter(value, requires_grad=False) if learned else value
    for chain in (m for m in modules.values() if isinstance(m, Chain)):
        chain.retie()
    _place_rest(modules.values(), place)


def _named(module: nn.Module, at: str = "") -> dict[str, nn.Module]:
    """Every module by its name: torch's own passes each one up through all that are above it."""
    found = {at: module}
    waiting = [(at, module)]
    while waiting:
        at, module = waiting.pop()
        start = f"{at}." if at else ""
        below = [(start + name, m) for name, m in module._modules.items() if m is not None]
        found.update(below)
        waiting += below
    return found


def _holders(modules: Mapping[str, nn.Module]) -> dict[str, tuple[dict[str, Any], str]]:
    """For each parameter and persistent buffer what holds it, and its name there."""
    found: dict[str, tuple[dict[str, Any], str]] = {}
    for at, module in modules.items():
        start = f"{at}." if at else ""
        for own, parameter in module._parameters.items():
            if parameter is not None:
                found[start + own] = module._parameters, own
        for own, buffer in module._buffers.items():
            if buffer is not None and own not in module._non_persistent_buffers_set:
                found[start + own] = module._buffers, own
    return found


def check_names(checkpoint: Checkpoint, trees: Iterable[str], ignored: Iterable[str]) -> None:
    """Refuse a checkpoint of several trees that has tensors of none of them.

    Raises:
        InarchError: IA206.
    """
    starts = tuple(f"{name}." if name else "" for name in trees)
    strange = [
        name
        for name in checkpoint.tensors
        if not name.startswith(starts) and not any(fnmatchcase(name, p) for p in ignored)
    ]
    if strange:
        raise InarchError(
            "IA206",
            f"the checkpoint has tensors of no tree of this model: {len(strange)}",
            where=f"{checkpoint.path}: {strange[0]}",
            why="\n".join([f"names begin with: {', '.join(starts)}", *_shown(strange)]),
            remedy="pass the weights that belong to this config.json",
        )


def all_ties(tree: Chain) -> Iterable[tuple[str, str]]:
    """Every tie of a tree, with full names."""
    return _ties(_named(tree))


def _ties(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, str]]:
    for name, module in modules.items():
        if isinstance(module, Chain):
            at = f"{name}." if name else ""
            yield from ((at + alias, at + source) for alias, source in module.ties)


def _check(
    wanted: dict[str, torch.Tensor],
    found: dict[str, TensorInfo],
    aliases: dict[str, str],
    checkpoint: Checkpoint,
) -> None:
    missing = [n for n in wanted if n not in found and n not in aliases]
    extra = [n for n in found if n not in wanted]
    both = [n for n in wanted if n in found]
    shapes = [n for n in both if tuple(wanted[n].shape) != tuple(found[n].shape)]
    kinds = [n for n in both if wanted[n].is_floating_point() != found[n].dtype.is_floating_point]
    if not (missing or extra or shapes or kinds):
        return
    facts = _shown([f"missing: {n} {list(wanted[n].shape)}" for n in missing])
    facts += _shown([f"unexpected: {n} {list(found[n].shape)}" for n in extra])
    facts += _shown(
        [f"{n} is {list(found[n].shape)}, the tree has {list(wanted[n].shape)}" for n in shapes]
    )
    facts += _shown([f"{n} is {found[n].dtype}, the tree has {wanted[n].dtype}" for n in kinds])
    counts = [
        (len(missing), "missing"),
        (len(extra), "unexpected"),
        (len(shapes), "misshaped"),
        (len(kinds), "of another kind of number"),
    ]
    raise InarchError(
        "IA206",
        "the checkpoint does not fit its configuration: "
        + ", ".join(f"{n} tensor{'s' * (n > 1)} {word}" for n, word in counts if n),
        where=f"{checkpoint.path}: {(missing + extra + shapes + kinds)[0]}",
        why="\n".join(facts),
        remedy="pass the weights that belong to this config.json",
    )


def _shown(facts: list[str]) -> list[str]:
    """The first of many facts, and how many there are besides."""
    more = len(facts) - _SHOWN
    return facts if more <= 1 else [*facts[:_SHOWN], f"and {more} more"]


def _place_rest(modules: Iterable[nn.Module], device: torch.device) -> None:
    """Put buffers that no checkpoint holds, such as rotary frequencies, on the device."""
    for module in modules:
        for name, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_meta:
                module._buffers[name] = buffer.to(device)
