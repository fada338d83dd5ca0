"""What the files of all formats call the layers of a model: a table made from its own tree.

Flat names (`lora_unet_down_blocks_0_..._to_q`) can't be turned back by replacing underscores, so
every layer is flattened instead, and a file's names are looked up.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator
from weakref import WeakKeyDictionary

from inarch.adapters import SiteView
from inarch.errors import InarchError
from inarch.tree import Chain
from inarch_lora.sgm import sgm_names

PEFT = "base_model.model."
# What stands before a layer's path, by its tree: first what is written, then other readings.
FLAT = {
    "unet": ("lora_unet_", "oft_unet_", "lycoris_unet_"),
    "transformer": ("lora_transformer_", "lora_unet_"),
    "text_encoder": ("lora_te1_", "lora_te_"),
    "text_encoder_2": ("lora_te2_",),
    "text_encoder_3": ("lora_te3_",),
}
DOTTED = {
    "unet": ("unet.", "diffusion_model.", "model.diffusion_model.", "lora_unet."),
    "transformer": ("transformer.", "diffusion_model.", "model.diffusion_model."),
    "text_encoder": (
        "text_encoder.",
        "text_encoders.clip_l.transformer.",
        "clip_l.",
        "clip_l.transformer.",
        "cond_stage_model.transformer.",
        "conditioner.embedders.0.transformer.",
        "lora_te1.",
        "lora_te.",
    ),
    "text_encoder_2": (
        "text_encoder_2.",
        "text_encoders.clip_g.transformer.",
        "clip_g.",
        "clip_g.transformer.",
        "lora_te2.",
    ),
}


class Names:
    """The table of a model.

    Args:
        sites: the pristine model.
    """

    def __init__(self, sites: SiteView) -> None:
        self._table: dict[str, set[str]] = {}
        paths: dict[str, list[str]] = {}
        for address, site in sites.all.items():
            if site.module is not None and not isinstance(site.module, Chain):
                path = address.removeprefix(f"{site.tree}.") if site.tree else address
                paths.setdefault(site.tree, []).append(path)
        for tree, own in paths.items():
            original = sgm_names(own)
            for path in own:
                address = f"{tree}.{path}" if tree else path
                other = original.get(path)
                written = [path, *_readings(path), *([] if other is None else [other])]
                for name in written:
                    for full in _names(tree, name):
                        self._table.setdefault(full, set()).add(address)

    @classmethod
    def of(cls, sites: SiteView) -> Names:
        """The table of a model, made once for each."""
        found = _TABLES.get(sites)
        if found is None:
            found = _TABLES[sites] = cls(sites)
        return found

    def find(self, name: str) -> str | None:
        """The address of the layer a file calls so; None where there is none.

        Raises:
            InarchError: IA428 for a name that more than one layer has.
        """
        found = self._table.get(name.removeprefix(PEFT), set())
        if len(found) > 1:
            raise InarchError(
                "IA428",
                f"`{name}` names more than one layer of this model",
                where=name,
                why=", ".join(sorted(found)),
                remedy="save the adapter with the name of its tree before each key",
            )
        return next(iter(found), None)

    def near(self, name: str) -> list[str]:
        """Names of layers that look like this one."""
        wanted = name.removeprefix(PEFT)
        start = wanted
        while start:  # comparing with all of the tens of thousands of names would take long
            alike = [known for known in self._table if known.startswith(start)]
            if alike:
                return difflib.get_close_matches(wanted, alike[:500], 2, 0.6)
            start = start[: len(start) * 3 // 4]
        return difflib.get_close_matches(wanted, list(self._table)[:500], 2, 0.6)


_TABLES: WeakKeyDictionary[SiteView, Names] = WeakKeyDictionary()


def _readings(path: str) -> Iterator[str]:
    """A text encoder's path with and without the level that CLIP's checkpoints have above it."""
    inner = path.removeprefix("text_model.")
    if inner != path:
        yield inner
    elif path.startswith(("encoder.", "embeddings.", "final_layer_norm")):
        yield f"text_model.{path}"


def _names(tree: str, path: str) -> Iterator[str]:
    flat = path.replace(".", "_")
    yield path
    yield f"lycoris_{flat}"
    if not tree:
        return
    yield f"{tree}.{path}"
    yield f"lycoris_{tree}_{flat}"
    for prefix in DOTTED.get(tree, ()):
        yield f"{prefix}{path}"
    for prefix in FLAT.get(tree, (f"lora_{tree}_",)):
        yield f"{prefix}{flat}"


def flat_name(address: str, trees: Collection[str]) -> str:
    """What kohya-ss calls the layer at an address; `trees` are the names of the model's."""
    if "" in trees:
        return f"lycoris_{address.replace('.', '_')}"
    tree, _, path = address.partition(".")
    prefix = FLAT.get(tree, (f"lora_{tree}_",))[0]
    if tree == "text_encoder" and "text_encoder_2" not in trees:
        prefix = "lora_te_"
    return prefix + path.replace(".", "_")
