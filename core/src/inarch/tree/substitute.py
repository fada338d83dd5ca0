"""A tree with other modules in the places of some: the program stays, only weights differ."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from inarch.tree.chain import Chain


def substitute(tree: Chain, modules: Mapping[str, nn.Module]) -> Chain:
    """A new tree with each module at its address, which shares everything else with this one.

    A parameter that was tied and whose module is substituted is not tied any more.
    """
    twins: dict[str, Chain] = {"": tree._twin()}  # pyright: ignore[reportPrivateUsage]
    index = tree.form.index
    for address, module in modules.items():
        path, name = index[address]
        holder, at = twins[""], ""
        for part in path:
            at = f"{at}.{part}" if at else part
            if at not in twins:
                child = holder.module_at(part)
                if not isinstance(child, Chain):
                    raise TypeError(f"{at} is no Chain")
                twins[at] = child._twin()  # pyright: ignore[reportPrivateUsage]
                holder._replace({part: twins[at]})  # pyright: ignore[reportPrivateUsage]
            holder = twins[at]
        holder._replace({name: module})  # pyright: ignore[reportPrivateUsage]
    for at, twin in twins.items():
        prefix = f"{at}." if at else ""
        changed = {a.removeprefix(prefix) for a in modules if a.startswith(prefix)}
        twin.ties = tuple(
            (alias, source)
            for alias, source in twin.ties
            if not {alias.rpartition(".")[0], source.rpartition(".")[0]} & changed
        )
    for twin in reversed(list(twins.values())):
        twin._generate()  # pyright: ignore[reportPrivateUsage]
    return twins[""]
