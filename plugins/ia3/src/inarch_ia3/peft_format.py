"""What PEFT's IA3Config says, and how its files name the vectors.

Source: PEFT's `IA3Config` and `IA3Model._check_target_module_feedforward`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from inarch.errors import InarchError
from inarch.weights.peft import PREFIX, Targets, refuse_malformed, target_names

_SUFFIX = ".ia3_l"
# What would change the result and is not built: refused when it is set.
_UNSUPPORTED = ("modules_to_save", "layer_replication", "trainable_token_indices")


class Settings(Targets, frozen=True, kw_only=True):
    """What the settings that are read must be."""

    feedforward_modules: str | list[str] | None = None

    def expressions(self) -> Iterator[tuple[str, Iterable[str]]]:
        yield from super().expressions()
        told = self.feedforward_modules
        yield "feedforward_modules", [told] if isinstance(told, str) else ()


def addresses_of(keys: Iterable[str], where: str) -> dict[str, str]:
    """The file's keys by the address they are for.

    Raises:
        InarchError: IA431 for a key that is no vector of an (IA)^3.
    """
    found: dict[str, str] = {}
    for key in keys:
        if not key.endswith(_SUFFIX):
            raise InarchError(
                "IA431",
                f"`{key}` is no tensor of an (IA)^3",
                where=f"{where}: {key}",
                why=f"its keys are {PREFIX}ADDRESS{_SUFFIX}",
                remedy="load it with the adapter it belongs to",
            )
        found[key.removeprefix(PREFIX).removesuffix(_SUFFIX)] = key
    return found


def key_of(address: str) -> str:
    return f"{PREFIX}{address}{_SUFFIX}"


def refuse_unsupported(settings: Mapping[str, Any], where: str) -> None:
    """Refuse settings of another method, that would change the result, or that can't be.

    Raises:
        InarchError: IA432.
    """
    refuse_malformed(settings, Settings, "IA432", where)
    named = [name for name in _UNSUPPORTED if settings.get(name)]
    if settings.get("peft_type", "IA3") != "IA3":
        named = ["peft_type"]
    if named:
        raise InarchError(
            "IA432",
            f"the adapter's `{named[0]}` is not what (IA)^3 has",
            where=f"{where}: {named[0]} = {json.dumps(settings[named[0]])}",
            why="without it the result would be another, so it is not ignored",
            remedy="use the adapter it was made for",
        )


def is_feedforward(settings: Mapping[str, Any], address: str) -> bool | None:
    """Whether a layer is scaled at its input; None where the settings don't say.

    A list is compared with the ends of names, dot or no dot, as PEFT does.
    """
    names: str | list[str] | None = settings.get("feedforward_modules")
    if names is None:
        return None
    if isinstance(names, str):
        return re.fullmatch(names, address) is not None
    return any(address.endswith(name) for name in names)


def named(outputs: Collection[str], inputs: Collection[str], layers: Collection[str]) -> Any:
    """`target_modules` and `feedforward_modules` for the layers scaled at output and at input.

    Short names where PEFT reads them as these very layers, else an expression.
    """
    both = {*outputs, *inputs}
    targets = target_names(both, layers)
    names = (
        sorted({a.rpartition(".")[2] for a in inputs}) if set(targets) != both else sorted(inputs)
    )
    settings: dict[str, Any] = {"feedforward_modules": names}
    if {a for a in both if is_feedforward(settings, a)} == set(inputs):
        return {"target_modules": targets, **settings}
    exact = {"target_modules": both, "feedforward_modules": inputs}
    return {name: "|".join(map(re.escape, sorted(which))) for name, which in exact.items()}
