"""Image models whose channels lie last: equal values, and no layout that flips on the way."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import inarch
from inarch.testing import tiny_models
from inarch.testing.subject import assert_close, inputs_of, outputs, trained
from inarch.weights.channels import lay_channels_last

FAMILY = "stable-diffusion"
SPECS = {
    "lora": inarch.adapter("lora", rank=2, targets=("attention.*", "resnet.conv")),
    "dora": inarch.adapter("lora", rank=2, use_dora=True, targets=("resnet.conv",)),
    "controlnet": inarch.adapter("controlnet"),
    "t2i": inarch.adapter("t2i-adapter"),
    "ip": inarch.adapter("ip-adapter"),
}
TINY = list(tiny_models(families=[FAMILY]))


class Images(TorchDispatchMode):
    """What operations give that are images, and how many copies change a layout."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bool] = []
        self.copies = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("clone", "_to_copy") and _telling(given) and last(given) != last(args[0]):
            self.copies += 1
        if name in ("convolution", "native_group_norm", "cat", "silu", "upsample_nearest2d"):
            made = given[0] if isinstance(given, tuple) else given
            if _telling(made):
                self.seen.append(last(made))
        return given


def _telling(tensor: Any) -> bool:
    return (
        isinstance(tensor, Tensor)
        and tensor.dim() == 4
        and tensor.shape[1] > 1
        and tensor[0, 0].numel() > 1
    )


def lies_last(tree: nn.Module) -> bool:
    """Whether every convolution whose weight can tell has its channels last."""
    weights = [m.weight for m in tree.modules() if isinstance(m, nn.Conv2d)]
    return all(last(weight) for weight in weights if _telling(weight))


def last(image: Tensor) -> bool:
    return image.is_contiguous(memory_format=torch.channels_last)


def laid(tiny: Any, dtype: torch.dtype = torch.float32) -> Any:
    """The same random model, laid out channels last as loading does."""
    model = tiny.build(dtype=dtype)
    for tree in model.trees.values():
        lay_channels_last(tree)
    return model


@pytest.mark.parametrize("tiny", TINY, ids=str)
def test_every_tree_gives_equal_values(tiny: Any) -> None:
    """In double precision, since random weights blow what is rounded up to 2e-5 of the whole."""
    expected = outputs(tiny.build(dtype=torch.float64))
    assert_close(outputs(laid(tiny, torch.float64)), expected, 1e-12)


@pytest.mark.parametrize("tiny", TINY, ids=str)
@pytest.mark.parametrize("tree", ["unet", "vae"])
def test_images_lie_channels_last_throughout_and_no_copy_turns_them(tiny: Any, tree: str) -> None:
    model = laid(tiny)
    for name, inputs in inputs_of(model):
        if name == tree:
            with Images() as images, torch.no_grad():
                model.trees[tree](**inputs)
            assert len(images.seen) > 10
            assert all(images.seen)
            assert images.copies == 0


def test_images_lie_as_ever_where_nobody_asked() -> None:
    model = TINY[0].build()
    with Images() as images, torch.no_grad():
        outputs(model)
    assert not any(images.seen)


@pytest.mark.parametrize("kind", SPECS)
def test_an_adapter_does_the_same(kind: str) -> None:
    expected = outputs(trained(TINY[0].build(), SPECS[kind]))
    assert_close(outputs(trained(laid(TINY[0]), SPECS[kind])), expected, 1e-5)


@pytest.mark.parametrize("kind", ["lora", "ip"])
def test_an_adapter_of_layers_turns_no_image(kind: str) -> None:
    model = trained(laid(TINY[0]), SPECS[kind])
    inputs = next(inputs for name, inputs in inputs_of(model) if name == "unet")
    with Images() as images, torch.no_grad():
        model.trees["unet"](**inputs)
    assert all(images.seen)
    assert images.copies == 0


def test_merging_keeps_the_layout() -> None:
    merged = trained(laid(TINY[0]), SPECS["lora"]).merge()
    assert lies_last(merged.trees["unet"])
    assert_close(outputs(merged), outputs(trained(TINY[0].build(), SPECS["lora"]).merge()), 1e-5)


def test_a_checkpoint_is_loaded_so_and_its_bits_are_the_file_s(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    from inarch_stable_diffusion.beside_diffusers import SMALL, randomised

    theirs = randomised(diffusers.UNet2DConditionModel(**SMALL), 0)
    theirs.save_pretrained(tmp_path)
    plain, model = inarch.load(tmp_path), inarch.load(tmp_path, channels_last=True)
    assert lies_last(next(iter(model.trees.values())))
    assert not lies_last(next(iter(plain.trees.values())))
    state = copy.copy(model.state_dict())
    assert all(torch.equal(state[name], t) for name, t in plain.state_dict().items())
    assert model.fingerprint() == plain.fingerprint()
    save_file({n: t.contiguous() for n, t in state.items()}, tmp_path / "again.safetensors")
    assert_close(outputs(model), outputs(plain), 1e-5)
