"""What a single file's tensors say of its configuration, in diffusers' words."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any

from inarch_stable_diffusion.original import CLIP, OPEN_CLIP, UNET, VAE

Keys = Mapping[str, tuple[int, ...]]
# Where text encoders stand: SD 1 and 2, XL, and XL's refiner, which has the second one alone.
_PLACES = (
    ("text_encoder", f"cond_stage_model.{CLIP}."),
    ("text_encoder", f"cond_stage_model.{OPEN_CLIP}."),
    ("text_encoder", f"conditioner.embedders.0.{CLIP}."),
    ("text_encoder_2", f"conditioner.embedders.1.{OPEN_CLIP}."),
    ("text_encoder_2", f"conditioner.embedders.0.{OPEN_CLIP}."),
)
HEAD_DIM = 64


def encoders(keys: Keys) -> dict[str, str]:
    """The text encoders that a file has, and where each stands."""
    return {name: prefix for name, prefix in _PLACES if any(key.startswith(prefix) for key in keys)}


def config(
    keys: Keys, encoders: Mapping[str, str], metadata: Mapping[str, str], every: set[str]
) -> dict[str, Any]:
    """The configuration of each part.

    Args:
        keys: the tensors' shapes.
        encoders: from `encoders`.
        metadata: the file's own strings, which may say what the UNet predicts.
        every: all names in the file, of which some are marks.

    Raises:
        KeyError: for a tensor that is missing.
    """
    xl = "text_encoder_2" in encoders
    refiner = xl and len(encoders) == 1
    texts = {name: _text(keys, prefix, xl) for name, prefix in encoders.items()}
    pooled = texts["text_encoder_2"]["projection_dim"] if xl else 0
    unet = _unet(keys, xl, pooled, 5 if refiner else 6)
    velocity = _velocity(unet, xl, metadata, every)
    unet["sample_size"] = 128 if xl else 96 if velocity else 64
    return {
        "unet": unet,
        "vae": _vae(keys, xl),
        **texts,
        "scheduler": _scheduler(xl, velocity, every),
        "force_zeros_for_empty_prompt": xl and not refiner,
        "requires_aesthetics_score": refiner,
    }


def _unet(keys: Keys, xl: bool, pooled: int, sizes: int) -> dict[str, Any]:
    def shape(name: str) -> tuple[int, ...]:
        return keys[f"{UNET}{name}.weight"]

    def has(name: str) -> bool:
        return f"{UNET}{name}.weight" in keys

    def depth(at: str) -> int:
        return next(i for i in count() if not has(f"{at}.transformer_blocks.{i}.norm1"))

    widths, layers, depths = [], [], []
    level = 0
    for block in count(1):
        at = f"input_blocks.{block}"
        if has(f"{at}.0.op"):
            level += 1
        elif has(f"{at}.0.in_layers.2"):
            if level == len(widths):
                widths.append(shape(f"{at}.0.in_layers.2")[0])
                layers.append(0)
                depths.append(depth(f"{at}.1"))
            layers[level] += 1
        else:
            break
    middle = depth("middle_block.1")
    linear = len(_one(keys, UNET, ".proj_in.weight")) == 2
    context = _one(keys, UNET, ".attn2.to_k.weight")[1]
    heads = [max(1, width // HEAD_DIM) for width in widths] if linear else 8
    settings: dict[str, Any] = {
        "in_channels": shape("input_blocks.0.0")[1],
        "out_channels": shape("out.2")[0],
        "block_out_channels": widths,
        "layers_per_block": layers,
        "down_block_types": [_kind(d, "DownBlock2D") for d in depths],
        "up_block_types": [_kind(d, "UpBlock2D") for d in reversed(depths)],
        # Levels without transformers have a number all the same: the middle reads the last.
        "transformer_layers_per_block": [*(max(1, d) for d in depths[:-1]), max(1, middle)],
        "time_embedding_dim": shape("time_embed.0")[0],
        "cross_attention_dim": context,
        "attention_head_dim": heads,
        "use_linear_projection": linear,
    }
    if xl:
        total = shape("label_emb.0.0")[1]
        settings |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": (total - pooled) // sizes,
            "projection_class_embeddings_input_dim": total,
        }
    return settings


def _one(keys: Keys, prefix: str, suffix: str) -> tuple[int, ...]:
    """The shape of the first tensor that is called so."""
    found = (s for k, s in keys.items() if k.startswith(prefix) and k.endswith(suffix))
    shape = next(found, None)
    if shape is None:
        raise KeyError(f"{prefix}*{suffix}")
    return shape


def _kind(depth: int, name: str) -> str:
    return f"CrossAttn{name}" if depth else name


def _vae(keys: Keys, xl: bool) -> dict[str, Any]:
    widths: list[int] = []
    while (at := f"{VAE}encoder.down.{len(widths)}.block.0.conv1.weight") in keys:
        widths.append(keys[at][0])
    layers = next(i for i in count() if f"{VAE}encoder.down.0.block.{i}.conv1.weight" not in keys)
    return {
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": layers,
        "latent_channels": keys[f"{VAE}decoder.conv_in.weight"][1],
        "use_quant_conv": f"{VAE}quant_conv.weight" in keys,
        "use_post_quant_conv": f"{VAE}post_quant_conv.weight" in keys,
        "sample_size": 1024 if xl else 512,
        "scaling_factor": 0.13025 if xl else 0.18215,
    }


def _text(keys: Keys, prefix: str, xl: bool) -> dict[str, Any]:
    open_clip = prefix.endswith(f".{OPEN_CLIP}.")
    blocks = f"{prefix}transformer.resblocks" if open_clip else f"{prefix}encoder.layers"
    norm, wide = ("ln_1", "mlp.c_fc") if open_clip else ("layer_norm1", "mlp.fc1")
    layers = next(i for i in count() if f"{blocks}.{i}.{norm}.weight" not in keys)
    table = f"{prefix}{'' if open_clip else 'embeddings.'}token_embedding.weight"
    places = "positional_embedding" if open_clip else "embeddings.position_embedding.weight"
    vocabulary, width = keys[table]
    settings: dict[str, Any] = {
        "model_type": "clip_text_model",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": keys[f"{blocks}.0.{wide}.weight"][0],
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // HEAD_DIM),
        "max_position_embeddings": keys[f"{prefix}{places}"][0],
        "hidden_act": "gelu" if open_clip else "quick_gelu",
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
    }
    if open_clip and xl:
        settings["architectures"] = ["CLIPTextModelWithProjection"]
        settings["projection_dim"] = keys[f"{prefix}text_projection"][1]
    elif open_clip:
        settings["num_hidden_layers"] = layers - 1  # SD 2 reads the state before the last layer
    return settings


def _velocity(unet: dict[str, Any], xl: bool, metadata: Mapping[str, str], every: set[str]) -> bool:
    """Whether the UNet predicts velocity: as the file says, else as its kind was published."""
    told = metadata.get("modelspec.prediction_type", "").lower()
    if told:
        return told.startswith("v")
    if any(name.rpartition(".")[2] == "v_pred" for name in every):
        return True
    second = unet["use_linear_projection"] and not xl
    return second and unet["in_channels"] == unet["out_channels"]


def _scheduler(xl: bool, velocity: bool, every: set[str]) -> dict[str, Any]:
    return {
        "_class_name": "EulerDiscreteScheduler" if xl else "DDIMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": "v_prediction" if velocity else "epsilon",
        "rescale_betas_zero_snr": "ztsnr" in {name.rpartition(".")[2] for name in every},
    }
