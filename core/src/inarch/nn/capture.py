"""Capture: what flows at any site, given beside what the model gives."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from inarch.tree import Chain, Edit

if TYPE_CHECKING:
    from inarch.adapters.model import Model

_NAME = "captured"


def captured_addresses(model: Model, targets: Sequence[str]) -> tuple[str, ...]:
    """The addresses of roles (`attention.*`) and address patterns, adapters' modules included.

    Raises:
        InarchError: IA402 for a target that matches nothing.
    """
    found: dict[str, None] = {}
    for target in targets:
        role = any(fnmatchcase(name, target) for name in model.roles)
        chosen = () if role else model.select(target).addresses
        found |= dict.fromkeys(chosen or (s.address for s in model.sites.find([target])))
    return tuple(found)


def capturing(tree: Chain, addresses: Sequence[str]) -> tuple[Chain, tuple[str, ...]]:
    """A tree that also gives what flows at some addresses, and the order in which it gives them."""
    names = {f"captured_{i}": address for i, address in enumerate(addresses)}
    taps = [Edit.tap(address, name, _NAME, export=True) for name, address in names.items()]
    tapped = tree.edit(taps)
    return tapped, tuple(names[name] for name in tapped.form.exports if name in names)
