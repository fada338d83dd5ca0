"""Every scene of the examples, as it stands there, on small random files of the same names."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import inarch

sys.path.insert(0, str(Path(__file__).parent))
from small_scenes import NAMES, scenes_in


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes_in(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_scene_runs_as_it_stands_and_is_the_same_picture_in_any_order(
    place: Path, name: str
) -> None:
    from PIL import Image

    done = subprocess.run(
        [sys.executable, f"{name}.py", "--steps", "2"],
        cwd=place,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    with Image.open(place / f"{name}.png") as image:
        assert len(set(image.convert("RGB").tobytes())) > 8
    stack = inarch.load_stack(place / f"{name}.toml")
    base = inarch.load(stack.model or "")
    digests = {base.adapt(*order).digest for order in (stack.specs, tuple(reversed(stack.specs)))}
    assert len(digests) == 1
    assert digests.pop() in done.stdout
