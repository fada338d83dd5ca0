"""Log-log pictures of results, with the fitted exponents in their legends."""

from __future__ import annotations

import io

from benchmarks.result import Picture

_COLOURS = ("#1f5fa8", "#c4572a", "#3b7d3f", "#7a4fa0", "#8a6d1d", "#555555")
_MARKS = ("o", "s", "^", "D", "v", "P")


def drawn(picture: Picture) -> str:
    """A picture as SVG, the same for the same numbers."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": picture.title, "svg.fonttype": "none"}):
        figure = Figure(figsize=(7.0, 4.4), facecolor="white", layout="constrained")
        axes = figure.add_subplot()
        for i, line in enumerate(picture.lines):
            # Where lines lie on one another, what is beneath shows through dashes and hollow marks.
            style = {"color": _COLOURS[i % 6], "marker": _MARKS[i % 6], "markersize": 5 + i}
            if i:
                style |= {"linestyle": "--", "markerfacecolor": "none"}
            axes.loglog(line.x, line.y, label=f"{line.label}: slope {line.exponent:.2f}", **style)
        axes.set_title(picture.title, fontsize=11, loc="left")
        axes.set_xlabel(picture.x)
        axes.set_ylabel(picture.y)
        measured = sorted({x for line in picture.lines for x in line.x})
        axes.set_xticks(measured, [f"{x:g}" for x in measured])
        axes.set_xticks([], minor=True)
        axes.grid(True, which="major", color="#dddddd", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
        data = io.StringIO()
        figure.savefig(data, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in data.getvalue().splitlines()) + "\n"
