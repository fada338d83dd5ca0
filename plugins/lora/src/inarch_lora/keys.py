"""What a key of an adapter's file ends in, and the parameter that this names, in every format."""

from __future__ import annotations

import re
from collections.abc import Iterable

from inarch.errors import InarchError

_SIDES = {"down": "lora_A", "up": "lora_B"}
PARAMETERS: dict[str, str] = {
    # PEFT, and diffusers since it uses PEFT
    "lora_A.weight": "lora_A",
    "lora_B.weight": "lora_B",
    "lora_A.default.weight": "lora_A",
    "lora_B.default.weight": "lora_B",
    "lora_B.bias": "lora_B_bias",
    "lora_embedding_A": "lora_embedding_A",
    "lora_embedding_B": "lora_embedding_B",
    "lora_magnitude_vector": "lora_magnitude_vector",
    "lora_magnitude_vector.weight": "lora_magnitude_vector",
    "base_layer.bias": "bias",
    "bias": "bias",
    # kohya-ss
    "lora_mid.weight": "lora_mid",
    **{f"lora_{side}.weight": name for side, name in _SIDES.items()},
    # diffusers
    **{f"lora.{side}.weight": name for side, name in _SIDES.items()},
    **{f"lora_linear_layer.{side}.weight": name for side, name in _SIDES.items()},
    # LyCORIS
    **{f"hada_w{n}_{side}": f"hada_w{n}_{side}" for n in (1, 2) for side in "ab"},
    "hada_t1": "hada_t1",
    "hada_t2": "hada_t2",
    **{f"lokr_w{n}": f"lokr_w{n}" for n in (1, 2)},
    **{f"lokr_w{n}_{side}": f"lokr_w{n}_{side}" for n in (1, 2) for side in "ab"},
    "lokr_t2": "lokr_t2",
    "oft_blocks": "oft_blocks",
    "rescale": "oft_rescale",
    "dora_scale": "dora_scale",
    "diff": "diff",
    "diff_b": "diff_b",
    "w_norm": "w_norm",
    "b_norm": "b_norm",
    # read, and no parameters
    "alpha": "alpha",
    "scalar": "scalar",
}
# What another kind of adapter leaves in a file, and what that kind is called.
_FOREIGN = {
    "oft_diag": "OFT",
    "oft_R.weight": "OFT",
    "a1.weight": "GLoRA",
    "on_input": "IA3",
    "ia3_l": "IA3",
    "lora_C.weight": "another LoRA",
}
_PROCESSOR = re.compile(
    r"(?P<path>.+?)(?:\.processor)?\.to_(?P<of>q|k|v|out)_lora\.(?P<side>down|up)\.weight"
)
_OLD_NAMES = {"q": ("to_q", "q_proj"), "k": ("to_k", "k_proj"), "v": ("to_v", "v_proj")}
_OLD_OUT = ("to_out.0", "out_proj")


def split_key(key: str, where: str) -> tuple[tuple[str, ...], str]:
    """The names a layer may have by a key, the first that exists counting, and the parameter.

    Raises:
        InarchError: IA423 for a key that ends in nothing this package knows.
    """
    old = _PROCESSOR.fullmatch(key)
    if old:
        names = _OLD_NAMES.get(old["of"], _OLD_OUT)
        return tuple(f"{old['path']}.{name}" for name in names), _SIDES[old["side"]]
    parts = key.split(".")
    for count in (1, 2, 3):
        suffix = ".".join(parts[-count:])
        if suffix in PARAMETERS and len(parts) > count and not _longer(parts, count):
            name = ".".join(parts[:-count])
            if name.endswith(".to_out"):  # diffusers' old name of to_out.0
                return (name, f"{name}.0"), PARAMETERS[suffix]
            return (name,), PARAMETERS[suffix]
    raise _unknown(key, where, parts)


def _longer(parts: list[str], count: int) -> bool:
    """Whether a longer ending is known too: `base_layer.bias` is no bias of a `base_layer`."""
    return any(
        len(parts) > more and ".".join(parts[-more:]) in PARAMETERS for more in range(count + 1, 4)
    )


def _unknown(key: str, where: str, parts: Iterable[str]) -> InarchError:
    parts = list(parts)
    kinds = (".".join(parts[-count:]) for count in (1, 2))
    foreign = next((_FOREIGN[kind] for kind in kinds if kind in _FOREIGN), "")
    if parts[0] == "bundle_emb":
        foreign = "textual inversion, bundled with the adapter"
    why = (
        f"it is a tensor of {foreign}" if foreign else f"their keys end in: {', '.join(PARAMETERS)}"
    )
    return InarchError(
        "IA423",
        f"`{key}` is no tensor of a LoRA or of its relatives",
        where=f"{where}: {key}",
        why=why,
        remedy="leave it out when saving, or use the adapter it belongs to",
    )
