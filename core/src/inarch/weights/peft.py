"""PEFT's folder, as far as all of its methods share it: targets by name, and how it is written.

Source: PEFT's `check_target_module_exists` and `save_pretrained`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
from torch import Tensor

from inarch.errors import InarchError
from inarch.weights.adapter_file import write_adapter, write_settings

PREFIX = "base_model.model."
"""What stands before the address of a layer in a key."""


class Targets(msgspec.Struct, frozen=True, kw_only=True):
    """What all of PEFT's settings may say of layers; a method's own are a subclass of it."""

    peft_type: str | None = None
    target_modules: str | list[str] | None = None
    exclude_modules: str | list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None

    def expressions(self) -> Iterator[tuple[str, Iterable[str]]]:
        """The names of settings that are regular expressions, and these."""
        patterns = self.layers_pattern
        yield "layers_pattern", [patterns] if isinstance(patterns, str) else patterns or ()
        for name in ("target_modules", "exclude_modules"):
            told = getattr(self, name)
            yield name, [told] if isinstance(told, str) else ()


def refuse_malformed(
    settings: Mapping[str, Any], kind: type[Targets], code: str, where: str
) -> None:
    """Refuse settings of which one can't be what it is.

    Args:
        settings: of adapter_config.json.
        kind: what they must be.
        code: that the method's package gives such an error.
        where: the file.

    Raises:
        InarchError: of that code, for the first such setting.
    """
    wrong = _malformed(settings, kind)
    if wrong is not None:
        name, why = wrong
        raise InarchError(
            code,
            f"the adapter's setting `{name}` can't be what it is",
            where=f"{where}: {name} = {json.dumps(settings.get(name))}",
            why=why,
            remedy="put the adapter_config.json beside it that it was saved with",
        )


def _malformed(settings: Mapping[str, Any], kind: type[Targets]) -> tuple[str, str] | None:
    """The first of PEFT's settings that can't be what it is, by name, and why; None for none."""
    try:
        told = msgspec.convert(dict(settings), kind)
    except msgspec.ValidationError as error:
        why, _, at = str(error).partition(" - at `$.")
        return re.split(r"\W", at)[0], why[:1].lower() + why[1:]
    for name, expressions in told.expressions():
        for expression in expressions:
            try:
                re.compile(expression)
            except re.error as error:
                return name, f"`{expression}` is no regular expression: {error}"
    return None


def targeted(settings: Mapping[str, Any], address: str) -> bool:
    """Whether PEFT's settings would adapt the module at an address."""
    targets: str | list[str] | None = settings.get("target_modules")
    if targets is None or targets == "all-linear":
        return False
    if matches(settings.get("exclude_modules"), address) or not matches(targets, address):
        return False
    layers = settings.get("layers_to_transform")
    if isinstance(targets, str) or address in targets or layers is None or layers == []:
        return True  # what is named in full, such as `lm_head`, is in no layer
    patterns = settings.get("layers_pattern") or []
    patterns = [patterns] if isinstance(patterns, str) else patterns
    for begin in [rf"(?:^|.*?\.){pattern}" for pattern in patterns] or [r".*?\.[^.]*"]:
        found = re.match(rf"{begin}\.(?P<layer>\d+)\.", address)
        if found:
            return int(found["layer"]) in ([layers] if isinstance(layers, int) else layers)
    return False


def matches(targets: str | list[str] | None, address: str) -> bool:
    """Whether an address is one of the names or ends in one, or matches the whole expression."""
    if not targets:
        return False
    if isinstance(targets, str):
        return re.fullmatch(targets, address) is not None
    return f".{address}".endswith(_endings(*targets))


@lru_cache
def _endings(*names: str) -> tuple[str, ...]:
    return tuple(f".{name}" for name in names)


def target_names(addresses: Collection[str], layers: Collection[str]) -> list[str]:
    """The last names of some layers where these single them out among all, else addresses.

    Args:
        addresses: of the layers to name.
        layers: the addresses of all the model's modules.
    """
    names = sorted({address.rpartition(".")[2] for address in addresses})
    same = {address for address in layers if matches(names, address)}
    return names if same == set(addresses) else sorted(addresses)


def write_folder(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    about: Mapping[str, str],
    *,
    name: str = "adapter_model.safetensors",
) -> None:
    """Write `adapter_config.json` and the tensors, each file whole or not at all.

    Args:
        folder: where to.
        config: the settings.
        tensors: by the file's keys.
        about: what `Adapter.write` is told of the model.
        name: of the file of tensors.
    """
    write_adapter(folder / name, tensors, about)
    write_settings(folder / "adapter_config.json", config)
