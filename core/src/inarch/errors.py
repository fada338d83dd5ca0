"""The one error type: a code, what is wrong, where, why, and one thing to do about it.

Laid out as rustc does, because a person reads it top down and stops when they know enough::

    error[IA203]: a tensor does not fit the tree
      --> model.safetensors: model.layers.0.self_attn.q_proj.weight
      = why: the tree declares [576, 576], the file holds [576, 575]
      = help: pass the checkpoint this config.json belongs to

Hundreds group the codes: 1 trees, 2 weights, 3 plugins and manifests, 4 adapters and stacks,
5 running a model, 6 training, 7 the command line. Core's are in `inarch.codes`; a package lists
its own in its manifest, as `[[code]]`.
"""

from __future__ import annotations

import re


class InarchError(Exception):
    """What every refusal in inarch raises. Nothing was changed when it is raised.

    Args:
        code: one of `inarch.codes.CODES`, or of a package's manifest.
        what: the problem in one short sentence, no full stop.
        where: the address, file, key or manifest line it stands at.
        why: the facts that make it one; several lines where several things are wrong at once.
        remedy: one thing to do, a command where there is one.
    """

    def __init__(
        self, code: str, what: str, *, where: str = "", why: str = "", remedy: str = ""
    ) -> None:
        if not re.fullmatch(r"[A-Z]{2,6}\d{3}", code):
            raise ValueError(f"{code!r} is no error code, such as IA101")
        super().__init__(what)
        self.code = code
        self.what = what
        self.where = where
        self.why = why
        self.remedy = remedy

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.code, self.what, self.where, self.why, self.remedy)

    def __str__(self) -> str:
        lines = [f"error[{self.code}]: {self.what}"]
        for mark, text in (
            ("  --> ", self.where),
            ("  = why: ", self.why),
            ("  = help: ", self.remedy),
        ):
            if text:
                lines.append(mark + text.replace("\n", "\n" + " " * len(mark)))
        return "\n".join(lines)

    def as_dict(self) -> dict[str, str]:
        """The error as the command line's JSON envelope holds it."""
        return {
            "code": self.code,
            "what": self.what,
            "where": self.where,
            "why": self.why,
            "remedy": self.remedy,
        }


def _rebuild(
    kind: type[InarchError], code: str, what: str, where: str, why: str, remedy: str
) -> InarchError:
    return kind(code, what, where=where, why=why, remedy=remedy)
