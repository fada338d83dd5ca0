"""The training loop: one adapter learns, everything else keeps its bits."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inarch.errors import InarchError
from inarch.nn.language_model import LanguageModel
from inarch_training.curve import draw, write_csv
from inarch_training.data import IGNORED, Example, batch, order, read_examples
from inarch_training.state import load_state, save_state

Schedule = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What a run left behind.

    Attributes:
        folder: the adapter in its own format, `loss.csv`, `loss.png` and `state/`.
        losses: of each step, in nats a learned token.
        interrupted: whether it was stopped before its last step.
    """

    folder: Path
    losses: list[float] = field(repr=False)
    interrupted: bool

    @property
    def steps(self) -> int:
        return len(self.losses)


def train(
    model: LanguageModel,
    data: str | Path | list[Example],
    *,
    adapter: str,
    out: str | Path,
    steps: int = 200,
    batch_size: int = 4,
    accumulate: int = 1,
    learning_rate: float = 1e-3,
    schedule: Schedule = "cosine",
    warmup: float = 0.05,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    max_length: int = 512,
    seed: int = 0,
    save_every: int = 50,
    resume: bool = False,
    on_step: Callable[[int, float], None] | None = None,
) -> TrainingResult:
    """Train one adapter of a model, and save it with the base's fingerprint.

    Only the named adapter's parameters take gradients and only they move. The same seed, data and
    model give the same bits on a CPU; a resumed run ends as an uninterrupted one would have.
    Ctrl-C finishes the step, saves, and returns.

    Args:
        model: has the adapter, and a tokenizer if `data` is a file.
        data: JSON lines (see `read_examples`) or examples.
        adapter: the name of the one to train.
        out: a folder for all the run leaves.
        steps: of the optimizer, in all.
        batch_size: examples in a forward.
        accumulate: forwards in a step.
        learning_rate: AdamW's at its highest.
        schedule: how it falls after `warmup`, a share of the steps.
        weight_decay: AdamW's.
        clip: the norm gradients are cut to.
        max_length: tokens of an example, at most.
        seed: of the order of examples and of dropout.
        save_every: steps between two saves.
        resume: go on from the state in `out`.
        on_step: told of each step and its loss.

    Raises:
        InarchError: IA6xx for data, settings or a state that don't fit, IA403 for no such adapter.
    """
    _check(steps=steps, batch_size=batch_size, accumulate=accumulate, save_every=save_every)
    if not 0 <= learning_rate < math.inf:
        what = f"learning_rate must be at least 0 and finite, not {learning_rate}"
        raise InarchError("IA605", what, where="learning_rate", remedy="learning_rate=1e-3")
    member, folder = model.adapters[adapter], Path(out)
    _refuse_unwritable(folder)
    examples = data if isinstance(data, list) else _read(model, data, max_length)
    _refuse_other_examples(model, examples)
    with _only(model, adapter):
        parameters = member.parameters()
        optimizer = torch.optim.AdamW(
            parameters.values(), lr=learning_rate, weight_decay=weight_decay
        )
        torch.manual_seed(seed + _part(model)[0])
        losses: list[float] = []
        layout = model.layout
        settings = {"seed": seed, "batch_size": batch_size, "accumulate": accumulate}
        if resume:
            facts = load_state(folder, parameters, optimizer, layout)
            losses = _resumed(facts, settings, folder)
        rates = [_rate(i, steps, warmup, schedule) * learning_rate for i in range(steps)]
        batches = order(len(examples), batch_size, seed, len(losses) * accumulate)

        def save() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            model.save_adapter(adapter, folder)
            facts = {"step": len(losses), "losses": losses, "settings": settings}
            save_state(folder, parameters, optimizer, facts, layout)
            if layout is None or layout.writes:
                write_csv(folder / "loss.csv", losses, rates[: len(losses)])

        with _stopping(patience=0.0 if layout is None else 10.0) as pressed:

            def stopped() -> bool:
                return pressed() if layout is None else layout.any(pressed())

            while len(losses) < steps and not stopped():
                optimizer.param_groups[0]["lr"] = rates[len(losses)]
                chosen = [[examples[i] for i in next(batches)] for _ in range(accumulate)]
                losses.append(_step(model, chosen, optimizer, parameters, clip))
                if on_step is not None:
                    on_step(len(losses), losses[-1])
                if len(losses) % save_every == 0:
                    save()
        save()
    if layout is None or layout.writes:
        draw(folder / "loss.png", losses, f"{adapter}: {member.kind}, {len(losses)} steps")
    return TrainingResult(folder, losses, len(losses) < steps)


def _step(
    model: LanguageModel,
    batches: list[list[Example]],
    optimizer: torch.optim.Optimizer,
    parameters: dict[str, nn.Parameter],
    clip: float,
) -> float:
    """One step over several forwards; each learned token counts the same, in whichever it is.

    Of several processes each takes its part of the examples, and the step is that of all.
    """
    device, layout = model.device, model.layout
    tokens = sum(label != IGNORED for group in batches for e in group for label in e.labels[1:])
    total = 0.0
    for group in batches:
        ids, labels, mask = batch(_own(group, *_part(model)), device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(ids, mask)
        loss = _loss(logits, labels) / tokens
        loss.backward()
        total += float(loss.detach() if layout is None else layout.total(loss.detach().clone()))
    if not math.isfinite(total):
        raise InarchError(
            "IA604",
            f"the loss is {total}",
            why="the adapter was not changed by this step; the last save holds",
            remedy="lower the learning rate",
        )
    if layout is None:
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), clip)
    else:
        layout.reduce_gradients(parameters.values())
        layout.clip(parameters.values(), clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def _part(model: LanguageModel) -> tuple[int, int]:
    """Which part of each batch is this process's, of how many."""
    return (0, 1) if model.layout is None else model.layout.part_of_data


def _own(group: list[Example], part: int, parts: int) -> list[Example]:
    """One process's share of a forward's examples; where none is left, one with nothing to learn.

    Every process runs every forward, since those that share weights wait for each other.
    """
    own = group[part::parts]
    return own or [Example(group[0].ids, (IGNORED,) * len(group[0].ids))]


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The summed loss of the learned tokens, each predicted from those before it, in float32."""
    following = labels[:, 1:]
    learned = following != IGNORED
    return F.cross_entropy(logits[:, :-1][learned].float(), following[learned], reduction="sum")


def _rate(step: int, steps: int, warmup: float, schedule: Schedule) -> float:
    """The share of the learning rate at a step."""
    first = max(1, round(steps * warmup))
    if step < first:
        return (step + 1) / first
    done = (step - first) / max(1, steps - first)
    if schedule == "constant":
        return 1.0
    return 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def _read(model: LanguageModel, data: str | Path, max_length: int) -> list[Example]:
    if model.tokenizer is None:
        raise InarchError(
            "IA605",
            "examples are text, and this model has no tokenizer",
            where=str(data),
            remedy="put tokenizer.json beside config.json, or pass examples of token ids",
        )
    return read_examples(data, model.tokenizer, max_length=max_length)


def _refuse_other_examples(model: LanguageModel, examples: list[Example]) -> None:
    """Refuse examples that are not those of every process, each of which would train on its own."""
    if model.layout is None:
        return
    digest = hashlib.sha256(repr([(e.ids, e.labels) for e in examples]).encode()).hexdigest()
    if not model.layout.alike(digest):
        raise InarchError(
            "IA601",
            "the processes have other examples",
            why=f"this one has {len(examples)}, and another not the same",
            remedy="give every process the same file",
        )


def _check(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise InarchError(
                "IA605", f"{name} must be at least 1, not {value}", where=name, remedy=f"{name}=1"
            )


def _refuse_unwritable(folder: Path) -> None:
    """Refuse a folder that can't be saved into before anything was learned."""
    place = next((path for path in (folder, *folder.absolute().parents) if path.exists()), folder)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise InarchError(
            "IA605",
            f"what is trained can't be saved in `{folder}`",
            where=str(place),
            why="it can't be written to" if place.is_dir() else "it is no folder",
            remedy="name another folder",
        )


def _resumed(facts: dict[str, Any], settings: dict[str, int], folder: Path) -> list[float]:
    if facts["settings"] != settings:
        raise InarchError(
            "IA603",
            "the run to resume was begun with other settings",
            where=str(folder),
            why=f"it had {facts['settings']}, asked for are {settings}",
            remedy="pass the settings it was begun with",
        )
    return list(facts["losses"])


@contextlib.contextmanager
def _only(model: LanguageModel, name: str) -> Generator[None, None, None]:
    """While it lasts, the named adapter is trainable and no other; then all is as it was."""
    before = {member.name: member.trainable for member in model.adapters}
    for member in model.adapters:
        member.trainable = member.name == name
    try:
        yield
    finally:
        for member in model.adapters:
            if not member.merged:
                member.trainable = before[member.name]


@contextlib.contextmanager
def _stopping(patience: float) -> Generator[Callable[[], bool], None, None]:
    """Says whether Ctrl-C was pressed; pressed twice it interrupts at once.

    Args:
        patience: seconds in which a second press is the first one again, as processes hear of it
            from the terminal and from what started them.
    """
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return
    before = signal.getsignal(signal.SIGINT)

    first = 0.0

    def press(*_: object) -> None:
        nonlocal first
        now = time.monotonic()
        if pressed.is_set() and now - first > patience:
            signal.signal(signal.SIGINT, before)
            raise KeyboardInterrupt
        if not pressed.is_set():
            first = now
            pressed.set()

    signal.signal(signal.SIGINT, press)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)
