"""Small image models with adapters of every kind as files, for diffusers and for us."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import inarch

ROOT = Path(__file__).parent.parent
for _folder in ("foundation_models/stable_diffusion", "plugins/ip_adapter"):
    sys.path.insert(0, str(ROOT / _folder / "tests"))

PROMPT, WORSE = "a <toy> in the storm", "ugly sea"
SIZE = {"height": 16, "width": 24}
# As XL's own: nothing attends at the first of three resolutions.
THREE_LEVELS: dict[str, Any] = {
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}


class Files:
    """A pipeline's folder, and adapters for it saved beside it as others publish them.

    Args:
        folder: where all of it is written.
        xl: whether the pipeline is of the second family.
    """

    def __init__(self, folder: Path, *, xl: bool = False) -> None:
        pytest.importorskip("diffusers")
        pytest.importorskip("transformers")
        import small_pipelines as small

        self.folder = folder
        self.xl = xl
        self.base = small.saved(folder / "base", xl=xl, **(THREE_LEVELS if xl else {}))
        self.plain = small.pipeline(self.base)
        self.model = inarch.load(self.base)

    def pipeline(self, kind: str, **more: Any) -> Any:
        """A pipeline of diffusers with the base's parts, fresh from their files."""
        import diffusers
        import small_pipelines as small

        parts = dict(small.pipeline(self.base).components)
        for name in ("text_encoder", "text_encoder_2"):
            if parts.get(name) is not None:  # or diffusers finds no place for LoRA in it
                parts[name].__dict__.pop("text_model", None)
        made = getattr(diffusers, kind)(**parts, **more)
        made.set_progress_bar_config(disable=True)
        return made

    def controlnet(self, name: str, seed: int) -> Any:
        import diffusers

        from inarch_stable_diffusion.beside_diffusers import randomised

        net = diffusers.ControlNetModel.from_unet(
            self.plain.unet, conditioning_embedding_out_channels=(4, 6)
        )
        randomised(net, seed).save_pretrained(self.folder / name)
        return net

    def control_lora(self, name: str, seed: int) -> Any:
        """A Control-LoRA's file, and the ControlNet that it is with the base's weights."""
        import diffusers

        from inarch_controlnet import layout

        net = diffusers.ControlNetModel.from_unet(
            self.plain.unet, conditioning_embedding_out_channels=(4, 6)
        )
        generator = torch.Generator().manual_seed(seed)
        own, hints, tensors = {}, {}, {layout.LORA_MARK: torch.zeros(0)}
        for name_, parameter in net.requires_grad_(False).eval().named_parameters():
            if name_.startswith("controlnet_"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
                hint = name_.startswith(layout.HINT)
                (hints if hint else own)[name_.removeprefix(layout.HINT if hint else "")] = (
                    parameter
                )
            elif name_.endswith(("to_q.weight", "conv2.weight", "linear_1.weight")):
                out, inputs, *kernel = parameter.shape
                up = torch.randn(out, 2, *(1 for _ in kernel), generator=generator) * 0.2
                down = torch.randn(2, inputs, *kernel, generator=generator) * 0.2
                parameter.add_((up.flatten(1) @ down.flatten(1)).reshape(parameter.shape))
                own[name_] = torch.stack([up.new_zeros(())])  # its name alone
                tensors |= {f"{name_}:up": up, f"{name_}:down": down}
        every = [n for n, _ in net.named_parameters() if not n.startswith(layout.HINT)]
        table, hint_table = layout.original_names(every), layout.original_hint_names(hints)
        found = {layout.LORA_MARK: tensors.pop(layout.LORA_MARK)}
        found |= {hint_table[n]: t for n, t in hints.items()}
        found |= {table[n]: t for n, t in own.items() if n.startswith("controlnet_")}
        for key, tensor in tensors.items():
            layer, _, part = key.partition(":")
            found[f"{table[layer].removesuffix('.weight')}.{part}"] = tensor
        self._file(name, found)
        return net

    def t2i(self, name: str, seed: int) -> Any:
        import diffusers

        from inarch_stable_diffusion.beside_diffusers import randomised

        sizes = {"channels": [8, 16, 16], "num_res_blocks": 1, "downscale_factor": 4}
        net = diffusers.T2IAdapter(adapter_type="full_adapter_xl", **sizes)
        randomised(net, seed).save_pretrained(self.folder / name)
        return net

    def lora(self, name: str, seed: int, ends: Sequence[str] = ("to_q", "to_v", "conv1")) -> Path:
        """A LoRA of the UNet and the text encoder, in the names of diffusers."""
        generator = torch.Generator().manual_seed(seed)
        tensors: dict[str, Tensor] = {}
        for tree in ("unet", "text_encoder"):
            for path, layer in getattr(self.plain, tree).named_modules():
                wanted = ("q_proj", "fc1") if tree == "text_encoder" else tuple(ends)
                if not path.endswith(wanted):
                    continue
                at = _with_model(tree, path)
                ones = (1,) * (layer.weight.dim() - 2)
                first = torch.randn(2, *layer.weight.shape[1:], generator=generator) * 0.2
                second = torch.randn(layer.weight.shape[0], 2, *ones, generator=generator) * 0.2
                tensors |= {f"{at}.lora_A.weight": first, f"{at}.lora_B.weight": second}
        return self._file(name, tensors)

    def ip_adapter(self, name: str, kind: str, seed: int, *, lora: bool = False) -> Path:
        from small_ip_adapters import ip_adapter

        context = self.plain.unet.config.cross_attention_dim
        tensors = ip_adapter(self.plain.unet, kind, seed)
        if context != 12:  # the tests of the package are of one width
            tensors = _widened(tensors, context)
        if lora:
            tensors |= self._loras(seed)
        return self._file(name, tensors)

    def _loras(self, seed: int) -> dict[str, Tensor]:
        """What FaceID's files hold beside: a LoRA for every attention."""
        generator = torch.Generator().manual_seed(seed)
        found: dict[str, Tensor] = {}
        unet = self.plain.unet
        for number, name in enumerate(n.removesuffix(".processor") for n in unet.attn_processors):
            layers = unet.get_submodule(name)
            parts = {"to_q": layers.to_q, "to_k": layers.to_k, "to_v": layers.to_v}
            for part, layer in {**parts, "to_out": layers.to_out[0]}.items():
                out, inputs = layer.weight.shape
                at = f"ip_adapter.{number}.{part}_lora"
                found[f"{at}.down.weight"] = torch.randn(2, inputs, generator=generator) * 0.2
                found[f"{at}.up.weight"] = torch.randn(out, 2, generator=generator) * 0.2
        return found

    def image_encoder(self) -> Path:
        """The vision tower that an IP-Adapter was trained with."""
        import transformers

        from inarch_stable_diffusion.beside_diffusers import randomised

        sizes = {"hidden_size": 10, "intermediate_size": 16, "projection_dim": 10}
        config = transformers.CLIPVisionConfig(
            **sizes, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=8
        )
        tower = transformers.CLIPVisionModelWithProjection(config)
        randomised(tower, 3).save_pretrained(self.folder / "image_encoder")
        return self.folder / "image_encoder"

    def words(self, name: str, token: str, count: int, seed: int) -> Path:
        generator = torch.Generator().manual_seed(seed)
        tensors = {token: torch.randn(count, 12, generator=generator) * 0.3}
        if self.xl:
            second = torch.randn(count, 12, generator=generator) * 0.3
            tensors = {"clip_l": tensors[token], "clip_g": second}
        return self._file(name, tensors)

    def image(self, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(1, 3, *SIZE.values(), generator=generator)

    def picture(self, seed: int) -> Any:
        """Likewise, an image of Pillow, whose numbers are whole."""
        from PIL import Image

        pixels = (self.image(seed)[0] * 255).round().to(torch.uint8).permute(1, 2, 0)
        return Image.fromarray(pixels.contiguous().numpy())

    def _file(self, name: str, tensors: Mapping[str, Tensor]) -> Path:
        path = self.folder / f"{name}.safetensors"
        save_file({k: v.contiguous() for k, v in tensors.items()}, path)
        return path


def _with_model(tree: str, path: str) -> str:
    """The name files have, whether or not transformers keeps `text_model.` in its own."""
    inner = "text_model." if tree != "unet" and not path.startswith("text_model.") else ""
    return f"{tree}.{inner}{path}"


def _widened(tensors: Mapping[str, Tensor], context: int) -> dict[str, Tensor]:
    """An IP-Adapter's tokens of another width: twice what they are for 12."""
    times = context // 12
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        last = name.startswith("image_proj.") and name.split(".")[1] in ("proj_out", "norm_out")
        found[name] = tensor.repeat(times, *[1] * (tensor.dim() - 1)) if last else tensor
    return found


def theirs(
    made: Any, *, steps: int = 4, seed: int = 3, guidance: float = 6.0, **given: Any
) -> Tensor:
    """diffusers' latents after some steps of DDIM."""
    import diffusers

    made.scheduler = diffusers.DDIMScheduler.from_config(made.scheduler.config)
    usual = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "latent"}
    usual |= {"negative_prompt": WORSE, "generator": torch.Generator().manual_seed(seed)}
    with torch.no_grad():
        return made(PROMPT, **{**usual, **given}).images


def ours(model: Any, task: str = "text_to_image", *, steps: int = 4, **given: Any) -> Tensor:
    """Our latents after the same."""
    usual = {"guidance": 6.0, "seed": 3, "output": "latents", "progress": False, **SIZE}
    run = getattr(model, task)
    return run(PROMPT, negative_prompt=WORSE, steps=steps, scheduler="ddim", **{**usual, **given})


def close(found: Tensor, expected: Tensor) -> None:
    top = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * top)
