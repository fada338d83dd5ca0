"""The names of the original code of Stable Diffusion (LDM, and SGM for XL), as one table.

Single files have them. Each module of theirs is one of diffusers', whose names the trees have;
three kinds of tensor also lie otherwise: attention in the autoencoder as 1x1 convolutions, and of
OpenCLIP query, key and value in one, and the projection transposed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from inarch_stable_diffusion.unet_config import UNetConfig
from inarch_stable_diffusion.vae_config import VAEConfig

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPEN_CLIP = "transformer.text_model", "model"
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_VAE_RESNET = {
    "norm1": "norm1",
    "conv1": "conv1",
    "norm2": "norm2",
    "conv2": "conv2",
    "nin_shortcut": "conv_shortcut",
}
_VAE_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_OPEN_CLIP_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}

Table = dict[str, str]


def unet_table(c: UNetConfig) -> Table:
    """For each module of the original UNet the one of the tree."""
    table = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "label_emb.0.0": "add_embedding.linear_1",
        "label_emb.0.2": "add_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
        **_resnet("middle_block.0", "mid_block.resnets.0"),
    }
    if c.mid_depth is not None:
        table["middle_block.1"] = "mid_block.attentions.0"
        table |= _resnet("middle_block.2", "mid_block.resnets.1")
    block = 1
    for level, depths in enumerate(c.depths):
        at = f"down_blocks.{level}"
        for layer, depth in enumerate(depths):
            table |= _resnet(f"input_blocks.{block}.0", f"{at}.resnets.{layer}")
            if depth:
                table[f"input_blocks.{block}.1"] = f"{at}.attentions.{layer}"
            block += 1
        if level < len(c.depths) - 1:
            table[f"input_blocks.{block}.0.op"] = f"{at}.downsamplers.0.conv"
            block += 1
    block = 0
    for level, depths in enumerate(c.up_depths):
        at = f"up_blocks.{level}"
        for layer, depth in enumerate(depths):
            table |= _resnet(f"output_blocks.{block}.0", f"{at}.resnets.{layer}")
            if depth:
                table[f"output_blocks.{block}.1"] = f"{at}.attentions.{layer}"
            if layer == len(depths) - 1 and level < len(c.up_depths) - 1:
                place = 2 if depth else 1
                table[f"output_blocks.{block}.{place}.conv"] = f"{at}.upsamplers.0.conv"
            block += 1
    return table


def _resnet(theirs: str, ours: str) -> Table:
    return {f"{theirs}.{a}": f"{ours}.{b}" for a, b in _RESNET.items()}


def vae_table(c: VAEConfig) -> Table:
    """For each module of the original autoencoder the one of the tree."""
    table = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    last = len(c.widths) - 1
    for half in ("encoder", "decoder"):
        for name in ("conv_in", "conv_out"):
            table[f"{half}.{name}"] = f"{half}.{name}"
        table[f"{half}.norm_out"] = f"{half}.conv_norm_out"
        table |= _vae_resnet(f"{half}.mid.block_1", f"{half}.mid_block.resnets.0")
        table |= _vae_resnet(f"{half}.mid.block_2", f"{half}.mid_block.resnets.1")
        theirs, ours = f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0"
        table[f"{theirs}.norm"] = f"{ours}.group_norm"
        table |= {f"{theirs}.{a}": f"{ours}.{b}" for a, b in _VAE_ATTENTION.items()}
    for level in range(last + 1):
        for layer in range(c.layers):
            theirs, ours = f"encoder.down.{level}.block.{layer}", f"encoder.down_blocks.{level}"
            table |= _vae_resnet(theirs, f"{ours}.resnets.{layer}")
        for layer in range(c.layers + 1):
            theirs, ours = f"decoder.up.{last - level}.block.{layer}", f"decoder.up_blocks.{level}"
            table |= _vae_resnet(theirs, f"{ours}.resnets.{layer}")
        if level < last:
            down, up = f"encoder.down.{level}.downsample.conv", f"decoder.up.{last - level}"
            table[down] = f"encoder.down_blocks.{level}.downsamplers.0.conv"
            table[f"{up}.upsample.conv"] = f"decoder.up_blocks.{level}.upsamplers.0.conv"
    return table


def _vae_resnet(theirs: str, ours: str) -> Table:
    return {f"{theirs}.{a}": f"{ours}.{b}" for a, b in _VAE_RESNET.items()}


def open_clip_table(layers: int) -> Table:
    """For each module of OpenCLIP's text tower the one of the tree."""
    table = {
        "token_embedding": "text_model.embeddings.token_embedding",
        "ln_final": "text_model.final_layer_norm",
    }
    for i in range(layers):
        theirs, ours = f"transformer.resblocks.{i}", f"text_model.encoder.layers.{i}"
        table |= {f"{theirs}.{a}": f"{ours}.{b}" for a, b in _OPEN_CLIP_BLOCK.items()}
    return table


@dataclass(frozen=True)
class Stored:
    """A tensor of a tree as it lies in a file of the original names.

    Attributes:
        key: in the file.
        shape: that the tree's tensor has.
        take: from the file's tensor to the tree's.
    """

    key: str
    shape: tuple[int, ...]
    take: Callable[[Tensor], Tensor]


def renamed(
    keys: dict[str, tuple[int, ...]], prefix: str, table: Table
) -> Iterator[tuple[str, Stored]]:
    """The tree's names of the keys below a prefix, by the longest of the table's modules.

    What the table doesn't have keeps its name, for whoever fills the tree to refuse it.
    """
    for key, shape in keys.items():
        if not key.startswith(prefix):
            continue
        name = key.removeprefix(prefix)
        module, rest = _split(name, table)
        new = f"{table[module]}.{rest}" if module else name
        flat = len(shape) == 4 and ".mid_block.attentions." in new
        yield new, Stored(key, shape[:2], _squeezed) if flat else Stored(key, shape, _same)


def _split(name: str, table: Table) -> tuple[str, str]:
    module, rest = name, ""
    while module and module not in table:
        module, _, part = module.rpartition(".")
        rest = f"{part}.{rest}" if rest else part
    return module, rest


def from_open_clip(
    keys: dict[str, tuple[int, ...]], prefix: str, table: Table, *, projects: bool
) -> Iterator[tuple[str, Stored]]:
    """As `renamed`, for OpenCLIP's text tower; what only its own training needs is left out."""
    blocks = {module.rpartition(".ln_1")[0] for module in table if module.endswith(".ln_1")}
    for new, stored in renamed(keys, prefix, table):
        key, shape = stored.key, stored.shape
        block, _, last = new.rpartition(".attn.")
        if last in ("in_proj_weight", "in_proj_bias") and block in blocks:
            at = block.replace("transformer.resblocks", "text_model.encoder.layers")
            third = (shape[0] // 3, *shape[1:])
            for i, one in enumerate("qkv"):
                name = f"{at}.self_attn.{one}_proj.{last.removeprefix('in_proj_')}"
                yield name, Stored(key, third, _Third(i))
        elif new == "positional_embedding":
            yield "text_model.embeddings.position_embedding.weight", stored
        elif new == "text_projection" and projects:
            yield "text_projection.weight", Stored(key, (shape[1], shape[0]), _transposed)
        elif new not in ("text_projection", "logit_scale") and not _beyond(new, blocks):
            yield new, stored


def _beyond(name: str, blocks: set[str]) -> bool:
    """Whether a tensor is of a layer after those that are read: SD2 reads all but the last."""
    parts = name.split(".")
    is_block = parts[:2] == ["transformer", "resblocks"]
    return is_block and ".".join(parts[:3]) == f"transformer.resblocks.{len(blocks)}"


def _same(x: Tensor) -> Tensor:
    return x


def _squeezed(x: Tensor) -> Tensor:
    return x.flatten(1)


def _transposed(x: Tensor) -> Tensor:
    return x.T.contiguous()


@dataclass(frozen=True)
class _Third:
    index: int

    def __call__(self, x: Tensor) -> Tensor:
        return x.chunk(3)[self.index].clone()
