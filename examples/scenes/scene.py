"""What the scenes share: a stack file, and the model it says, on the device that is asked for."""

from __future__ import annotations

import argparse
from typing import Any

import inarch


def opened(stack_file: str) -> tuple[Any, dict[str, Any]]:
    """The adapted model of a stack file, and what the command line says of the sampling.

    `--device cuda` and `--dtype float16` are all there is to change for a GPU.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=None, help="the scene's own by default")
    given = parser.parse_args()
    stack = inarch.load_stack(stack_file)
    model = inarch.load(stack.model, device=given.device, dtype=given.dtype).adapt(stack)
    settings = {"seed": given.seed, "steps": given.steps}
    return model, {name: value for name, value in settings.items() if value is not None}
