"""AdapterHub's folder: `adapter_config.json` and `adapter.safetensors`, read and written.

A key is BLOCK.LOCATION.adapters.NAME.PARAMETER. A norm before the bottleneck has two keys, since it
is registered twice; both hold the same.

Source: `AdapterLoader` and `BottleneckLayer` of the adapters library, version 1.3.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from inarch.errors import InarchError
from inarch.weights import WeightsHeader

FILE: Final = "adapter.safetensors"
PARTS: Final = {"attention": "attention_adapters", "mlp": "output_adapters"}
"""Where the library keeps the bottlenecks of a block's two parts."""
CHOSEN: Final = {"attention": "mh_adapter", "mlp": "output_adapter"}
"""The settings that say whether a part has one."""
_VERSION = "adapters.1.3.0"  # of the library whose format this is
_KEY = re.compile(
    r"(?P<block>.+)\.(?P<place>attention_adapters|output_adapters)\.adapters"
    r"\.(?P<name>[^.]+)\.(?P<parameter>[^.]+(?:\.[^.]+)*)"
)


def names(norm_before: bool) -> dict[str, str]:
    """What the library calls each parameter; a norm shifts the layer behind it by one."""
    layer = "adapter_down.1" if norm_before else "adapter_down.0"
    table = {"scaling": "scaling"}
    for kind in ("weight", "bias"):
        table[f"down_{kind}"] = f"{layer}.{kind}"
        table[f"up_{kind}"] = f"adapter_up.{kind}"
        if norm_before:
            table[f"norm_before_{kind}"] = f"adapter_down.0.{kind}"
        table[f"norm_after_{kind}"] = f"adapter_norm_after.{kind}"
    return table


def places(
    weights: WeightsHeader, blocks: Iterable[str], norm_before: bool
) -> dict[tuple[str, str], dict[str, str]]:
    """The file's keys, by block and part and then by the parameter they fill.

    Args:
        weights: the file.
        blocks: addresses of the model's blocks. A file that was saved without a head has them
            without the first name.
        norm_before: whether the bottlenecks begin with a norm.

    Raises:
        InarchError: IA434 for a key that is none, IA435 for a norm whose two keys differ.
    """
    known = list(blocks)
    parameters = {suffix: name for name, suffix in names(norm_before).items()}
    parts = {place: part for part, place in PARTS.items()}
    wanted = weights.settings.get("name")
    found: dict[tuple[str, str], dict[str, str]] = {}
    for key in weights.keys():  # noqa: SIM118 - no mapping
        match = _KEY.fullmatch(key)
        if match is None or wanted not in (None, match["name"]):
            raise _stranger(weights, key, f"a bottleneck's keys hold {_form(wanted)}")
        at = [b for b in known if b == match["block"] or b.endswith(f".{match['block']}")]
        if len(at) != 1:
            why = f"the model has no block `{match['block']}`; its first is `{known[0]}`"
            raise _stranger(weights, key, why)
        twin = re.fullmatch(r"adapter_norm_before\.(weight|bias)", match["parameter"])
        if twin is not None and norm_before:
            _check_twin(weights, key, key.replace(twin[0], f"adapter_down.0.{twin[1]}"))
            continue
        if match["parameter"] not in parameters:
            raise _stranger(weights, key, f"a bottleneck has no `{match['parameter']}`")
        place = found.setdefault((at[0], parts[match["place"]]), {})
        place[parameters[match["parameter"]]] = key
    return found


def _form(name: object) -> str:
    return f"BLOCK.{PARTS['mlp']}.adapters.{name or 'NAME'}.PARAMETER"


def _check_twin(weights: WeightsHeader, key: str, other: str) -> None:
    """The norm that is registered twice is one: its second key is read, and compared."""
    if other not in weights.keys() or not torch.equal(weights.read(key), weights.read(other)):  # noqa: SIM118
        raise InarchError(
            "IA435",
            "the two keys of one norm hold different values",
            where=f"{weights.path}: {key}",
            why=f"the other is {other}",
            remedy="save the adapter again",
        )


def _stranger(weights: WeightsHeader, key: str, why: str) -> InarchError:
    return InarchError(
        "IA434",
        f"`{key}` is no tensor of this model's bottlenecks",
        where=f"{weights.path}: {key}",
        why=why,
        remedy="load the base it was trained on, or the adapter it belongs to",
    )


def tensors(
    block: str, part: str, name: str, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors of one bottleneck by the library's keys."""
    norm_before = "norm_before_weight" in parameters
    table = names(norm_before)
    start = f"{block}.{PARTS[part]}.adapters.{name}"
    found = {f"{start}.{table[own]}": tensor for own, tensor in parameters.items()}
    for kind in ("weight", "bias") if norm_before else ():
        twin = parameters[f"norm_before_{kind}"].detach().clone()
        found[f"{start}.adapter_norm_before.{kind}"] = twin
    return found


def config(
    name: str, width: int, settings: Mapping[str, Any], about: Mapping[str, str]
) -> dict[str, Any]:
    """The settings as the library writes them."""
    return {
        "config": dict(sorted(settings.items())),
        "hidden_size": width,
        "model_name": about.get("base", ""),
        "name": name,
        "version": _VERSION,
    }
