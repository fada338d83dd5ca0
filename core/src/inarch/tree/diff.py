"""What differs between two trees, as source: one difference for all Chains that share it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

from inarch.tree.chain import Chain


def chains(tree: Chain) -> Iterator[tuple[str, Chain]]:
    """Every Chain of a tree with its address, the root first."""
    return ((n, m) for n, m in tree.named_modules(remove_duplicate=False) if isinstance(m, Chain))


def diff(before: Chain, after: Chain) -> str:
    """The differences from one tree to another; empty where the sources are equal."""
    old, new = dict(chains(before)), dict(chains(after))
    groups: dict[str, list[str]] = {}
    for address in dict.fromkeys((*old, *new)):
        first = old[address].source if address in old else ""
        second = new[address].source if address in new else ""
        if first != second:
            groups.setdefault(_unified(first, second), []).append(address)
    return "\n".join(
        f"--- {folded(addresses)}\n+++ {folded(addresses)}\n{text}"
        for text, addresses in groups.items()
    )


def _unified(first: str, second: str) -> str:
    lines = difflib.unified_diff(first.splitlines(), second.splitlines(), lineterm="", n=2)
    return "\n".join(list(lines)[2:]) + "\n"


def folded(addresses: list[str]) -> str:
    """`layers.0.mlp` to `layers.29.mlp` as `layers.{0-29}.mlp x30`, where one number differs."""
    if len(addresses) == 1:
        return addresses[0] or "the root"
    parts = [re.split(r"(?<![^.])(\d+)(?![^.])", address) for address in addresses]
    columns = list(zip(*parts, strict=False))
    moving = [i for i, column in enumerate(columns) if len(set(column)) > 1]
    if len({len(p) for p in parts}) > 1 or len(moving) != 1 or moving[0] % 2 == 0:
        return ", ".join(addresses)
    numbers = [int(n) for n in columns[moving[0]]]
    first = list(parts[0])
    first[moving[0]] = f"{{{_ranges(numbers)}}}"
    return f"{''.join(first)} x{len(addresses)}"


def _ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] + 1 == number:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in runs)
