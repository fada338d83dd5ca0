"""The proof: a patched model run on tensors without data, and what it costs.

Trees are copied to the meta device, where every operation computes shapes and dtypes and nothing
else. Each example that the model declares runs before and after patching.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from inarch.adapters.adapter import SiteView
from inarch.adapters.example import Example
from inarch.adapters.graft import Draft, sketched, split
from inarch.adapters.member import Member
from inarch.adapters.memory import parts
from inarch.errors import InarchError
from inarch.resolve.memory import free_bytes
from inarch.resolve.operations import Alive, Operations
from inarch.tree import Chain, Edit
from inarch.tree.diff import chains

if TYPE_CHECKING:
    from inarch.adapters.model import Model


class Run(msgspec.Struct, frozen=True):
    """One example, before and after patching.

    Attributes:
        tree: the tree that ran.
        inputs: shape and dtype of each tensor that went in.
        outputs: of each that came out of the patched tree.
        before: of each that came out of the tree as it was.
        operations: of the patched tree that compute something: views are not counted.
        operations_before: and of the tree as it was.
        activations: the most bytes of intermediate values alive at one time.
    """

    tree: str
    inputs: dict[str, str]
    outputs: list[str]
    before: list[str]
    operations: int
    operations_before: int
    activations: int


class Proof(msgspec.Struct, frozen=True):
    """What running on tensors without data showed.

    Attributes:
        runs: one for each example.
        changes: what adapters promise to change of the outputs, where they do.
        base_bytes: of the base's weights.
        adapter_bytes: of each adapter's weights.
        device: where the model is to run.
        needed: bytes a device needs: activations of the largest example, the adapters that are
            not there yet, and the base where it isn't.
        free: bytes the device has free; None where that can't be told.
        unproved: what could not be run, and why.
    """

    runs: list[Run]
    changes: list[str]
    base_bytes: int
    adapter_bytes: dict[str, int]
    device: str
    needed: int
    free: int | None
    unproved: list[str]


def prove(
    model: Model,
    drafts: Sequence[Draft],
    order: Sequence[str],
    device: torch.device | None = None,
) -> tuple[Proof, list[InarchError]]:
    """Run the patched model on every example, and say what is wrong with what came out.

    Args:
        model: what is to be adapted; it is copied without its data and left as it is.
        drafts: the new adapters; their modules are used up.
        order: all members, canonically.
        device: where it is to run; by default where the model is.

    Returns:
        The proof, and IA805 for outputs that changed without a promise, IA806 for memory that the
        device doesn't have, IA807 for examples that fail.
    """
    memo: dict[int, Any] = {}
    twins = {name: _without_data(tree, memo) for name, tree in model.pristine.items()}
    sites = SiteView(twins, model.roles)
    edits: dict[str, tuple[Edit, ...]] = {
        member.name: tuple(_edit_without_data(edit, memo) for edit in member.edits)
        for member in model.adapters
    }
    edits |= {draft.name: sketched(draft, sites) for draft in drafts}
    every = [edit for name in order for edit in edits[name]]
    patched = {
        name: twin.edit([e for edit in every for t, e in [split(edit, twins)] if t == name])
        for name, twin in twins.items()
    }
    members: list[Draft | Member] = [*model.adapters, *drafts]
    runs, unproved, problems = _run(model, members, twins, patched)
    changes = [f"{m.name}: {m.entry.changes}" for m in members if m.entry and m.entry.changes]
    if not changes:
        problems += _unpromised(runs)
    sizes = {name: _bytes(m for e in its for m in _modules(e)) for name, its in edits.items()}
    base = _bytes(twins.values())
    place = device or model.device
    needed = sum(sizes[draft.name] for draft in drafts)
    needed += max((run.activations for run in runs), default=0)
    needed += base if model.device != place else 0
    free = free_bytes(place)
    if free is not None and needed > free:
        problems.append(_too_little(place, needed, free))
    return Proof(runs, changes, base, sizes, str(place), needed, free, unproved), problems


def _run(
    model: Model,
    members: Sequence[Draft | Member],
    twins: Mapping[str, Chain],
    patched: Mapping[str, Chain],
) -> tuple[list[Run], list[str], list[InarchError]]:
    runs: list[Run] = []
    unproved: list[str] = []
    problems: list[InarchError] = []
    examples = model.examples()
    kept: Alive = {}
    if not examples:
        unproved.append(f"the model `{model.family or 'of no family'}` declares no examples")
    for example in examples:
        given = tree_map(_meta, dict(example.inputs))
        asked = set(patched[example.tree].form.needs) - set(given)
        for member in members:
            extra = member.adapter.example_inputs(Example(example.tree, given))
            given |= {name: _meta(value) for name, value in extra.items() if name in asked}
        lacking = sorted(asked - set(given))
        if lacking:
            unproved.append(f"nobody gives an example of the input {', '.join(lacking)}")
            continue
        try:
            before = _traced(twins[example.tree], example, given, {})
            after = _traced(patched[example.tree], example, given, kept)
        except Exception as error:  # whatever a module's forward raises is what went wrong
            problems.append(_fails(example, error))
            continue
        shapes = {name: _shape(v) for name, v in given.items() if isinstance(v, Tensor)}
        runs.append(
            Run(
                example.tree,
                shapes,
                after.outputs,
                before.outputs,
                after.operations,
                before.operations,
                after.peak,
            )
        )
    return runs, list(dict.fromkeys(unproved)), problems


@dataclass(frozen=True, slots=True)
class _Trace:
    outputs: list[str] = field(default_factory=list[str])
    operations: int = 0
    peak: int = 0


def _traced(tree: Chain, example: Example, given: Mapping[str, Any], alive: Alive) -> _Trace:
    """One forward: the second where several terms are one, since the first makes what they keep."""
    takes = [given[name] for name in tree.interface.takes]
    needs = {name: given[name] for name in tree.form.needs}
    making, counter = Operations(alive), Operations(alive)
    with torch.no_grad():
        if any(len(j.terms) > 1 for _, chain in chains(tree) for j in chain.form.joints):
            with making:
                tree(*takes, **needs)
        with counter:
            outputs = tree(*takes, **needs)
    shapes = [_shape(value) for value in tree_leaves(outputs) if isinstance(value, Tensor)]
    return _Trace(shapes, counter.count, max(making.peak, counter.peak))


def _shape(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


def _without_data(tree: Chain, memo: dict[int, Any]) -> Chain:
    _remember(tree, memo)
    return copy.deepcopy(tree, memo)


def _edit_without_data(edit: Edit, memo: dict[int, Any]) -> Edit:
    for module in _modules(edit):
        _remember(module, memo)
    return copy.deepcopy(edit, memo)


def _remember(module: nn.Module, memo: dict[int, Any]) -> None:
    """Have copies of a module share copies of its tensors that hold no data."""
    for parameter in module.parameters():
        twin = torch.empty_like(parameter, device="meta", requires_grad=False)
        memo.setdefault(id(parameter), nn.Parameter(twin, requires_grad=False))
    for buffer in module.buffers():
        memo.setdefault(id(buffer), torch.empty_like(buffer, device="meta"))


def _modules(edit: Edit) -> list[nn.Module]:
    return [module for _, module in parts(edit)]


def _bytes(modules: Iterable[nn.Module]) -> int:
    tensors = {id(p): p for module in modules for p in module.parameters()}
    return sum(p.numel() * p.element_size() for p in tensors.values())


def _unpromised(runs: Sequence[Run]) -> list[InarchError]:
    changed = [run for run in runs if run.before != run.outputs]
    if not changed:
        return []
    run = changed[0]
    return [
        InarchError(
            "IA805",
            "the stack changes what comes out of the model, and no adapter says that it does",
            where=f"the tree {run.tree}" if run.tree else "the model's output",
            why=f"it was {', '.join(run.before)}, and is {', '.join(run.outputs)}, for "
            + ", ".join(f"{name} {shape}" for name, shape in run.inputs.items()),
            remedy='an adapter that means to declares it: changes = "..." in its manifest',
        )
    ]


def _fails(example: Example, error: Exception) -> InarchError:
    notes = getattr(error, "__notes__", ())
    return InarchError(
        "IA807",
        "the patched model fails on an example of its own inputs",
        where=f"the tree {example.tree}" if example.tree else "the model",
        why="\n".join([f"{type(error).__name__}: {str(error).splitlines()[0]}", *notes]),
        remedy="find the adapter: inarch bisect STACK -- inarch plan {stack}",
    )


def _too_little(device: torch.device, needed: int, free: int) -> InarchError:
    return InarchError(
        "IA806",
        f"the stack needs more memory than {device} has free",
        why=f"it needs {_size(needed)}, and {_size(free)} are free",
        remedy="load the base in bfloat16, or leave adapters out",
    )


def _size(count: int) -> str:
    """Bytes in the unit that reads best."""
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 1 << power:
            return f"{count / (1 << power):.1f} {unit}"
    return f"{count} bytes"
