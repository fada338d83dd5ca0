"""The loss curve of a run, as CSV and as a picture."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path


def write_csv(path: Path, losses: Sequence[float], rates: Sequence[float]) -> None:
    """One line a step: its number, its loss, and the learning rate it was made with."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("step", "loss", "learning_rate"))
        rows = enumerate(zip(losses, rates, strict=True), 1)
        writer.writerows((i, f"{loss:.6f}", f"{rate:.3e}") for i, (loss, rate) in rows)


def draw(path: Path, losses: Sequence[float], title: str) -> None:
    """The curve as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps = range(1, len(losses) + 1)
    axes.plot(steps, losses, color="#b8c4d6", linewidth=1, label="each step")
    axes.plot(steps, smoothed(losses), color="#1f4e8c", linewidth=1.8, label="smoothed")
    axes.set(title=title, xlabel="step", ylabel="loss (nats a token)", ylim=(0, None))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def smoothed(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """An exponential mean that starts unbiased."""
    mean, norm, result = 0.0, 0.0, list[float]()
    for value in values:
        mean = weight * mean + (1 - weight) * value
        norm = weight * norm + (1 - weight)
        result.append(mean / norm)
    return result
