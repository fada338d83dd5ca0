"""A whole Stable Diffusion in one safetensors file, recognised by its keys: the original names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inarch.errors import InarchError
from inarch.weights import MappedFile, TensorInfo, fingerprint, read_header
from inarch.weights.header import refuse_changed
from inarch_clip.tokens import ClipTokenizer, has_tokenizer
from inarch_stable_diffusion import inferred
from inarch_stable_diffusion.checkpoint import PipelineCheckpoint
from inarch_stable_diffusion.original import (
    CLIP,
    OPEN_CLIP,
    UNET,
    VAE,
    Stored,
    from_open_clip,
    open_clip_table,
    renamed,
    unet_table,
    vae_table,
)
from inarch_stable_diffusion.unet_config import parse_unet
from inarch_stable_diffusion.vae_config import parse_vae

# What training and sampling code kept beside the weights, and nothing here reads.
_BESIDE = re.compile(
    r"model_ema\.|.*\.position_ids$|(betas|alphas_cumprod|alphas_cumprod_prev|denoiser\..*|"
    r"sqrt_.*|log_one_minus.*|posterior_.*|logvar|scale_factor|v_pred|ztsnr|edm_.*|loss\..*|"
    r"first_stage_model\.loss\..*|model\.diffusion_model\.(v_pred|ztsnr)|global_step)$"
)


class SinglePart:
    """The tensors of one tree, in a file that holds others too."""

    def __init__(
        self, path: Path, stored: Mapping[str, Stored], config: dict[str, Any], whole: SingleFile
    ) -> None:
        self.path, self.config, self._stored, self._whole = path, config, stored, whole
        self.generation_config: dict[str, Any] = {}

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        infos = self._whole.infos
        return {
            name: TensorInfo(s.shape, infos[s.key].dtype, infos[s.key].kind, infos[s.key].span)
            for name, s in self._stored.items()
        }

    def read(self, name: str, dtype: torch.dtype | None, device: torch.device) -> Tensor:
        stored = self._stored[name]
        return stored.take(self._whole.tensor(stored.key)).to(device=device, dtype=dtype)

    def tokenizer(self) -> None:
        return None

    def fingerprint(self) -> str:
        return self._whole.fingerprint()


class SingleFile(PipelineCheckpoint):
    """A file of the original names; satisfies `inarch.weights.Checkpoint`.

    A tokenizer is looked for beside it: in a folder `tokenizer`, or as vocab.json and merges.txt.

    Raises:
        InarchError: IA202 for a file that is broken, IA552 for one that is no Stable Diffusion's.
    """

    def __init__(self, path: Path) -> None:
        header = self._header = read_header(path)
        self.infos = {k: i for k, i in header.tensors.items() if not _BESIDE.match(k)}
        keys = {key: info.shape for key, info in self.infos.items()}
        encoders = inferred.encoders(keys)
        if f"{UNET}input_blocks.0.0.weight" not in keys or not encoders:
            raise _unknown(path, keys)
        try:
            config = inferred.config(keys, encoders, header.metadata, set(header.tensors))
            found = _parts(keys, encoders, config)
        except (KeyError, IndexError, ValueError) as error:
            raise _broken(path, error) from None
        _check_all_read(path, keys, found)
        self._file: MappedFile | None = None
        parts = {
            name: SinglePart(path, stored, config[name], self) for name, stored in found.items()
        }
        rest = {name: value for name, value in config.items() if name not in parts}
        super().__init__(path, parts, {**rest, "model_type": "stable-diffusion"})
        self._openclip = {n for n, prefix in encoders.items() if prefix.endswith(f"{OPEN_CLIP}.")}

    def tensor(self, key: str) -> Tensor:
        """A tensor as it lies in the file."""
        if self._file is None:
            self._file = MappedFile(self._header)
        return self._file.tensor(key)

    @property
    def files(self) -> list[Path]:
        return [self.path]

    def __getstate__(self) -> dict[str, Any]:
        """Copies open the file for themselves."""
        return {**vars(self), "_file": None}

    def fingerprint(self) -> str:
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        refuse_changed(self.path, self._header.stamp)
        return fingerprint([(self.path, self.infos)])

    @cached_property
    def tokenizers(self) -> dict[str, ClipTokenizer]:
        """OpenCLIP fills texts up with `!`, whose id is 0, and OpenAI's with the end of text."""
        found: dict[str, ClipTokenizer] = {}
        for name in self.parts:
            if not name.startswith("text_encoder"):
                continue
            own = self.path.parent / name.replace("text_encoder", "tokenizer")
            folders = (own, self.path.parent / "tokenizer", self.path.parent)
            folder = next((f for f in folders if has_tokenizer(f)), None)
            if folder is not None:
                found[name] = ClipTokenizer.from_folder(folder)
                if name in self._openclip and folder != own:
                    found[name].pad_token = "!"
        return found


def _parts(
    keys: dict[str, tuple[int, ...]], encoders: Mapping[str, str], config: Mapping[str, Any]
) -> dict[str, dict[str, Stored]]:
    """The tensors of each tree, by the tree's names."""
    parts = {
        "unet": dict(renamed(keys, UNET, unet_table(parse_unet(config["unet"])))),
        "vae": dict(renamed(keys, VAE, vae_table(parse_vae(config["vae"])))),
    }
    for name, prefix in encoders.items():
        if prefix.endswith(f"{CLIP}."):
            stored = renamed(keys, prefix.removesuffix("text_model."), {})
        else:
            table = open_clip_table(config[name]["num_hidden_layers"])
            projects = "architectures" in config[name]
            stored = from_open_clip(keys, prefix, table, projects=projects)
        parts[name] = dict(stored)
    return parts


def _check_all_read(
    path: Path, keys: Mapping[str, Any], parts: Mapping[str, Mapping[str, Stored]]
) -> None:
    """Refuse keys that belong to no part."""
    read = {stored.key for part in parts.values() for stored in part.values()}
    starts = tuple({key.split(".")[0] + "." for key in read})
    lost = [key for key in keys if key not in read and not key.startswith(starts)]
    if lost:
        raise InarchError(
            "IA552",
            f"`{path.name}` holds {len(lost)} tensors that are no Stable Diffusion's",
            where=f"{path}: {lost[0]}",
            why=", ".join(lost[:6]) + (", ..." if len(lost) > 6 else ""),
            remedy="pass a file of the whole model and nothing else",
        )


def _unknown(path: Path, keys: Mapping[str, Any]) -> InarchError:
    some = ", ".join(sorted(keys)[:4])
    return InarchError(
        "IA552",
        f"`{path.name}` is no whole Stable Diffusion",
        where=str(path),
        why=f"it has no UNet and text encoder in the original names; its keys begin: {some}",
        remedy='for an adapter: inarch.adapter("lora", weights="..."); a folder of diffusers is '
        "passed as a folder",
    )


def _broken(path: Path, error: Exception) -> InarchError:
    return InarchError(
        "IA552",
        f"`{path.name}` is no whole Stable Diffusion",
        where=f"{path}: {str(error).strip(chr(39))}",
        why="a tensor that says how large the model is is missing, or has another shape",
        remedy="download or save it again",
    )
