"""A refusal that says everything that is wrong at once, not the first thing alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inarch.errors import InarchError


class Refused(InarchError):
    """A stack with several problems; each is an error of its own.

    Attributes:
        problems: all of them, in the order they were found.
    """

    def __init__(self, problems: Sequence[InarchError]) -> None:
        self.problems = tuple(problems)
        codes = ", ".join(dict.fromkeys(problem.code for problem in problems))
        super().__init__(
            "IA414",
            f"{len(problems)} things are wrong with this stack",
            why=codes,
            remedy=f"begin with the first: inarch explain {problems[0].code}",
        )

    def __reduce__(self) -> tuple[object, ...]:
        return Refused, (self.problems,)

    def __str__(self) -> str:
        return "\n\n".join([*map(str, self.problems), super().__str__()])

    def as_dict(self) -> dict[str, Any]:  # type: ignore[override]
        return {**super().as_dict(), "problems": [problem.as_dict() for problem in self.problems]}


def refuse(problems: Sequence[InarchError]) -> None:
    """Raise what is wrong, if anything: one error as it is, several as one `Refused`."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise Refused(problems)


def flattened(error: InarchError) -> tuple[InarchError, ...]:
    """The problems an error stands for: its own, or itself."""
    return error.problems if isinstance(error, Refused) else (error,)
