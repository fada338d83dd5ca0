"""What a run needs to go on where it stopped: safetensors and JSON, each written whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from inarch.errors import InarchError

_FOLDER = "state"


def save_state(
    out: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    facts: Mapping[str, Any],
) -> None:
    """Write parameters, the optimizer's moments and torch's generators; then `facts`.

    The JSON comes last and names the tensors' file, so a run that dies between the two resumes
    from the state before.
    """
    folder = out / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {"cpu_generator": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda_generator"] = torch.cuda.get_rng_state()
    for name, parameter in parameters.items():
        tensors[f"parameter.{name}"] = parameter.detach().cpu().contiguous()
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}.{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
    name = f"tensors-{facts['step']}.safetensors"
    _replace(folder / name, lambda path: save_file(tensors, path))
    text = json.dumps({**facts, "tensors": name}, indent=1)
    _replace(folder / "state.json", lambda path: path.write_text(text))
    for old in folder.glob("tensors-*.safetensors"):
        if old.name != name:
            old.unlink()


def load_state(
    out: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Put back what `save_state` wrote, and give its facts.

    Raises:
        InarchError: IA603 where there is no state, or it is of another adapter.
    """
    file = out / _FOLDER / "state.json"
    if not file.is_file():
        raise InarchError(
            "IA603",
            "there is no run to resume",
            where=str(file),
            remedy="leave --resume out to begin one",
        )
    try:
        facts: dict[str, Any] = json.loads(file.read_text())
        tensors = load_file(file.parent / facts["tensors"])
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InarchError(
            "IA603",
            "the state of the run to resume can't be read",
            where=str(file),
            why=f"{type(error).__name__}: {error}",
            remedy="leave --resume out to begin anew",
        ) from None
    known = {n.removeprefix("parameter.") for n in tensors if n.startswith("parameter.")}
    if known != set(parameters):
        raise InarchError(
            "IA603",
            "the run to resume trained another adapter",
            where=str(file),
            why=f"it has {len(known)} parameters, this adapter {len(parameters)}, "
            f"{len(known & set(parameters))} of the same name",
            remedy="pass the options the run was begun with",
        )
    torch.set_rng_state(tensors["cpu_generator"])
    if "cuda_generator" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda_generator"])
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[f"parameter.{name}"])
            for key in ("step", "exp_avg", "exp_avg_sq"):
                value = tensors.get(f"{key}.{name}")
                if value is not None:
                    place = "cpu" if key == "step" else parameter.device
                    optimizer.state[parameter][key] = value.to(place)
    return facts


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    write(partial)
    partial.replace(path)
