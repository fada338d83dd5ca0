"""Which kinds of edit commute, as a table. Needs neither torch nor a plugin."""

from __future__ import annotations

COMMUTING = frozenset(
    frozenset(pair)
    for pair in (("add",), ("scale",), ("tap",), ("before", "after"), ("before", "tap"))
)
"""Kinds of two edits at one site whose order leaves no trace in the program's normal form.

`f(x) + g(x) + h(x)` and `f(x) * g * h` are sorted; `before` and `after` stand on either side of
what is there, as do `before` and the names that taps give to what comes out.
"""

DOES = {
    "add": "adds",
    "scale": "scales",
    "before": "changes the input",
    "after": "changes the output",
    "wrap": "wraps",
    "replace": "replaces",
    "tap": "names the value",
    "provide": "provides a value",
}
"""What an adapter does at a site, by the kind of its edit."""
