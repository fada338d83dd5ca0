"""Loading: nothing drawn, nothing read before it is needed, no second copy of the weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from inarch.tree import Chain
from inarch.weights import blank, fill, open_checkpoint

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc"
)
LAYERS, SIZE = 6, 32 * 2**20

MEASURED = f"""
import re, sys
from pathlib import Path
import torch
from torch import nn
from inarch.tree import Chain
from inarch.weights import blank, fill, open_checkpoint

def memory():
    text = Path("/proc/self/status").read_text()
    names = ("RssAnon", "VmRSS", "VmHWM")
    return [int(re.search(name + r":\\s+(\\d+)", text)[1]) * 1024 for name in names]

def tree(layers):
    with blank():
        return Chain(*(nn.Linear(2048, 4096, bias=False) for _ in range(layers)))

folder, dtype = Path(sys.argv[1]), getattr(torch, sys.argv[2])
fill(tree(1), open_checkpoint(folder / "one"), dtype)
before = memory()
whole = tree({LAYERS})
fill(whole, open_checkpoint(folder / "all"), dtype)
after = memory()
print(*(b - a for a, b in zip(before, after)))
"""


class Operations(TorchDispatchMode):
    """Notes what is drawn at random, and what writes."""

    def __init__(self) -> None:
        super().__init__()
        self.random: list[str] = []
        self.read: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.random.append(str(func))
        if func.overloadpacket.__name__ in ("copy_", "_to_copy", "clone"):
            self.read.append(str(func))
        return func(*args, **(kwargs or {}))


def saved(folder: Path, layers: int) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    tensors = {f"{i}.weight": torch.full((4096, 2048), float(i)) for i in range(layers)}
    save_file(tensors, folder / "model.safetensors")
    return folder


def grown(folder: Path, dtype: str) -> list[float]:
    """What loading adds, over the file's bytes: of memory of its own, resident, at the peak."""
    saved(folder / "one", 1)
    saved(folder / "all", LAYERS)
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(folder), dtype],
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(number) / (LAYERS * SIZE) for number in done.stdout.split()]


def test_weights_in_the_files_dtype_are_mapped_and_read_when_they_are_used(tmp_path: Path) -> None:
    own, resident, peak = grown(tmp_path, "float32")
    assert max(own, resident, peak) < 0.1


def test_weights_that_are_cast_are_in_memory_once(tmp_path: Path) -> None:
    own, resident, peak = grown(tmp_path, "bfloat16")
    assert 0.4 < own < 0.55
    assert resident < 1.0
    assert peak < 1.1  # the cast half, and the stretch of the file that is read


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_building_and_filling_run_no_random_operation(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {
        "0.weight": torch.ones(8, 8),
        "0.bias": torch.ones(8),
        "1.weight": torch.ones(9, 8),
    }
    (tmp_path / "config.json").write_text("{}")
    save_file(tensors, tmp_path / "model.safetensors")
    with Operations() as operations:
        with blank():
            tree = Chain(nn.Linear(8, 8), nn.Embedding(9, 8))
        fill(tree, open_checkpoint(tmp_path), dtype)
    assert operations.random == []
    casts = 0 if dtype == torch.float32 else len(tensors)
    assert len(operations.read) == casts
    with Operations() as operations:
        nn.Linear(8, 8)
    assert operations.random  # so it would have been seen
