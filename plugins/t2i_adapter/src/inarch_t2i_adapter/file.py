"""A T2I-Adapter's file: which network it holds, and how it is saved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from torch import Tensor

from inarch.errors import InarchError
from inarch.weights import WeightsHeader, write_adapter, write_settings
from inarch_t2i_adapter.body import BodyConfig
from inarch_t2i_adapter.layout import PREFIX, Layout, layout_of


def config_of(weights: WeightsHeader) -> tuple[BodyConfig, Layout]:
    """The sizes of the network in a file, from its config.json or, without one, its shapes.

    Returns:
        The sizes, and how the file calls the weights.

    Raises:
        InarchError: IA455 where neither tells.
    """
    keys = set(weights.keys())
    layout = layout_of(keys)
    if layout is None:
        raise _no_adapter(weights, f"it begins with: {', '.join(sorted(keys)[:3]) or 'nothing'}")
    names = BodyConfig.__struct_fields__
    told = {name: weights.settings[name] for name in names if name in weights.settings}
    try:
        return msgspec.convert(told or _from_shapes(weights, layout), BodyConfig), layout
    except (msgspec.ValidationError, InarchError) as error:
        raise _no_adapter(weights, str(error)) from None


def _from_shapes(weights: WeightsHeader, layout: Layout) -> dict[str, Any]:
    """Published adapters read 1 or 3 channels in squares of 8 pixels, XL's of 16."""

    def shape(name: str) -> tuple[int, ...]:
        key = layout.key(f"{name}.weight")
        if key not in weights.keys():  # noqa: SIM118 (no mapping)
            raise _no_adapter(weights, f"it has no tensor {key}")
        return weights.shape(key)

    first = shape("body.0.in_conv" if layout.light else "conv_in")
    sizes = {c * f * f: (c, f) for c in (1, 3) for f in (8, 16)}
    if first[1] not in sizes:
        raise _no_adapter(weights, f"its first layer reads {first[1]} channels")
    channels, factor = sizes[first[1]]
    last = "out_conv" if layout.light else "resnets.0.block2"
    widths = [shape(f"body.{i}.{last}")[0] for i in range(layout.features)]
    kind = "full_adapter_xl" if factor == 16 else "full_adapter"
    return {
        "in_channels": channels,
        "channels": widths[:-1] if layout.light else widths,
        "num_res_blocks": layout.layers,
        "downscale_factor": factor,
        "adapter_type": "light_adapter" if layout.light else kind,
    }


def write(
    folder: Path, tensors: Mapping[str, Tensor], config: BodyConfig, about: Mapping[str, str]
) -> None:
    """Write diffusers' folder, each file whole or not at all."""
    named = {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()}
    write_adapter(folder / "diffusion_pytorch_model.safetensors", named, about)
    write_settings(
        folder / "config.json", {"_class_name": "T2IAdapter", **msgspec.to_builtins(config)}
    )


def _no_adapter(weights: WeightsHeader, why: str) -> InarchError:
    return InarchError(
        "IA455",
        "the file is no T2I-Adapter's",
        where=str(weights.path),
        why=why,
        remedy="pass the folder that diffusers saved, or a file of TencentARC's",
    )
