"""What a run needs to go on where it stopped: safetensors and JSON, each written whole.

Any number of processes write it, each what lies in it, and any other number can go on from it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from inarch.errors import InarchError

if TYPE_CHECKING:
    from inarch.distribute import Spread

_FOLDER = "state"
_MOMENTS = ("exp_avg", "exp_avg_sq")


def save_state(
    out: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    facts: Mapping[str, Any],
    layout: Spread | None = None,
) -> None:
    """Write parameters, the optimizer's moments and torch's generators; then `facts`.

    The JSON comes last and names the tensors' folder, so a run that dies between the two resumes
    from the state before.
    """
    from inarch.distribute import save_tensors

    folder = out / _FOLDER
    file = folder / "state.json"
    name = f"tensors-{facts['step']}"
    if file.is_file() and json.loads(file.read_text()).get("tensors") == name:
        name += "-again"
    if layout is not None:
        layout.wait()
    if layout is None or layout.writes:
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
    if layout is not None:
        layout.wait()
    tensors = dict(_generators(layout))
    for key, tensor, parameter in _tensors(parameters, optimizer):
        tensors[key] = tensor.detach() if layout is None else layout.stored(tensor, parameter)
    save_tensors(tensors, folder / name)
    if layout is not None:
        layout.wait()
        if not layout.writes:
            return
    partial = file.with_name(".state.json.partial")
    partial.write_text(json.dumps({**facts, "tensors": name}, indent=1))
    partial.replace(file)
    for old in folder.glob("tensors-*"):
        if old.name != name:
            shutil.rmtree(old)


def _generators(layout: Spread | None) -> Iterator[tuple[str, Tensor]]:
    """The states of this process's generators, under names of its part of the examples.

    Processes that share layers have one part, and must draw alike whatever they went on from.
    """
    part = 0 if layout is None else layout.part_of_data[0]
    yield f"cpu_generator.{part}", torch.get_rng_state()
    if torch.cuda.is_available():
        yield f"cuda_generator.{part}", torch.cuda.get_rng_state()


def _tensors(
    parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, Tensor, nn.Parameter]]:
    """Each parameter and what AdamW keeps of it, made where it kept nothing yet."""
    step = max((s["step"] for s in optimizer.state.values() if s), default=torch.tensor(0.0))
    for name, parameter in parameters.items():
        yield f"parameter.{name}", parameter, parameter
        state = optimizer.state[parameter]
        state.setdefault("step", step.clone())
        yield f"step.{name}", state["step"], parameter
        for key in _MOMENTS:
            state.setdefault(key, torch.zeros_like(parameter.detach()))
            yield f"{key}.{name}", state[key], parameter


def load_state(
    out: Path,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    layout: Spread | None = None,
) -> dict[str, Any]:
    """Put back what `save_state` wrote, and give its facts.

    Raises:
        InarchError: IA603 where there is no state, or it is of another adapter.
    """
    from inarch.distribute.checkpoint import load_tensors, shapes_in

    file = out / _FOLDER / "state.json"
    if not file.is_file():
        raise InarchError(
            "IA603",
            "there is no run to resume",
            where=str(file),
            remedy="leave --resume out to begin one",
        )
    with _readable(file):
        facts: dict[str, Any] = json.loads(file.read_text())
        shapes = shapes_in(file.parent / facts["tensors"])
    own = {key: (tensor, p) for key, tensor, p in _tensors(parameters, optimizer)}
    read = {
        key: torch.empty_like(tensor.detach() if layout is None else layout.stored(tensor, p))
        for key, (tensor, p) in own.items()
    }
    _refuse_other(shapes, {key: tensor.shape for key, tensor in read.items()}, file)
    generators = {key: state for key, state in _generators(layout) if key in shapes}
    with _readable(file):
        load_tensors({**read, **generators}, file.parent / facts["tensors"])
    for key, (tensor, parameter) in own.items():
        if layout is not None:
            layout.restored(read[key], tensor, parameter)
        else:
            with torch.no_grad():
                tensor.copy_(read[key])
    for key, state in generators.items():
        (torch.set_rng_state if key.startswith("cpu") else torch.cuda.set_rng_state)(state)
    return facts


@contextlib.contextmanager
def _readable(file: Path) -> Generator[None, None, None]:
    """Refuse a state that can't be read."""
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InarchError(
            "IA603",
            "the state of the run to resume can't be read",
            where=str(file),
            why=f"{type(error).__name__}: {error}",
            remedy="leave --resume out to begin anew",
        ) from None


def _refuse_other(
    there: Mapping[str, torch.Size], here: Mapping[str, torch.Size], file: Path
) -> None:
    """Refuse the state of another adapter, of other parameters or of other shapes."""
    begin = "parameter."
    known = {name: shape for name, shape in there.items() if name.startswith(begin)}
    own = {name: shape for name, shape in here.items() if name.startswith(begin)}
    other = [name for name in own if name in known and own[name] != known[name]]
    if known.keys() == own.keys() and not other:
        return
    why = (
        f"it has {len(known)} parameters, this adapter {len(own)}, "
        f"{len(known.keys() & own.keys())} of the same name"
    )
    if other:
        name, (one, two) = other[0].removeprefix(begin), (known[other[0]], own[other[0]])
        why = f"its `{name}` is of {list(one)}, this adapter's of {list(two)}"
    raise InarchError(
        "IA603",
        "the run to resume trained another adapter",
        where=str(file),
        why=why,
        remedy="pass the options the run was begun with",
    )
