"""The lines of a forward before they are text: values without names yet, and calls of them."""

from __future__ import annotations

from dataclasses import dataclass

WIDTH = 100


@dataclass(eq=False, slots=True)
class Value:
    """One value of a forward: the name it would like and, once it has one, its own."""

    hint: str
    fixed: bool = False
    name: str = ""


Part = str | Value


@dataclass(slots=True)
class Line:
    """`targets = head(arguments)`; without a head the arguments are joined by the operator."""

    targets: list[Value]
    head: str
    arguments: list[list[Part]]
    operator: str = ", "
    site: str = ""

    def values(self) -> list[Value]:
        return [part for argument in self.arguments for part in argument if isinstance(part, Value)]
