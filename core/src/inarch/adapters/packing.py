"""Which layers of a model may be packed: the manifest's roles say so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from inarch.adapters.adapter import SiteView
from inarch.tree import Chain
from inarch.tree.pack import packed

_TOGETHER = ({"query": "q", "key": "k", "value": "v"}, {"gate": "gate", "up": "up"})


def packed_trees(trees: Mapping[str, Chain], sites: SiteView) -> dict[str, Chain]:
    """The trees with queries, keys and values, and gates and ups, as one product each.

    Roles whose last words go together and whose first are the same name the candidates
    (`text.attention.query`, `.key` and `.value`); the trees must show that they share their input.

    Args:
        trees: adapted or not.
        sites: of the pristine trees.
    """
    groups = list(_groups(sites))
    return {
        name: packed(
            tree,
            [
                {a.removeprefix(f"{name}."): short for a, (at, short) in g.items() if at == name}
                for g in groups
            ],
            sites.trees[name],
        )
        for name, tree in trees.items()
    }


def _groups(sites: SiteView) -> Iterator[dict[str, tuple[str, str]]]:
    """The tree and the short name of each layer of a group, by address; each layer once."""
    seen: set[str] = set()
    for shorts in _TOGETHER:
        for prefix in dict.fromkeys(role.rpartition(".")[0] for role in sites.roles):
            roles = {f"{prefix}.{last}".strip("."): short for last, short in shorts.items()}
            group: dict[str, tuple[str, str]] = {}
            for role, short in roles.items():
                for site in sites.find([role]) if role in sites.roles else ():
                    if site.address not in seen:
                        group[site.address] = site.tree, short
            seen |= group.keys()
            yield group
