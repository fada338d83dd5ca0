"""The comparison that decides: both orders of two adapters, as programs in normal form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from inarch.errors import InarchError
from inarch.resolve.footprint import Grounds
from inarch.tree import Chain, Edit


@dataclass(frozen=True, slots=True)
class Outcome:
    """What either order gives.

    Attributes:
        equal: whether both give the same program.
        forward: the source of the first's edits, then the second's; empty where it is refused.
        backward: the source of the other order.
        errors: why an order is refused, forward and backward; None where it isn't.
    """

    equal: bool
    forward: str
    backward: str
    errors: tuple[InarchError | None, InarchError | None]


def compare(chain: Chain, first: Sequence[Edit], second: Sequence[Edit]) -> Outcome:
    """Both orders of two adapters' edits to one Chain or tree, with addresses from there.

    Two programs are equal when their trees have one form: the same steps, in the same places,
    of the same names, and the same below them. Nothing is run, and `chain` stays as it is.
    """
    forward, no_forward = _applied(chain, [*first, *second])
    backward, no_backward = _applied(chain, [*second, *first])
    equal = forward is not None and backward is not None and forward.form is backward.form
    return Outcome(
        equal,
        "" if forward is None else forward.source,
        "" if backward is None else backward.source,
        (no_forward, no_backward),
    )


def compare_at(
    grounds: Grounds, address: str, first: Iterable[Edit], second: Iterable[Edit]
) -> tuple[Outcome, Chain]:
    """`compare` in the Chain that holds one site, with the edits in that Chain alone.

    Returns:
        The outcome, and the Chain as it was.
    """
    _, chain, _ = grounds.chain(address)
    own = [_inner(grounds, address, edits) for edits in (first, second)]
    return compare(chain, *own), chain


def sources(
    grounds: Grounds, address: str, members: Mapping[str, Iterable[Edit]]
) -> dict[str, tuple[str, str]]:
    """For two members, by how the order reads, the Chain's whole source and the lines it adds.

    A refused order has the error's sentence instead.
    """
    (a, first), (b, second) = members.items()
    outcome, chain = compare_at(grounds, address, first, second)
    plain = set(chain.source.splitlines())
    shown: dict[str, tuple[str, str]] = {}
    for names, text, error in zip(
        ((a, b), (b, a)), (outcome.forward, outcome.backward), outcome.errors, strict=True
    ):
        lines = [line.strip() for line in text.splitlines()[1:] if line not in plain]
        brief = f"refused: {error.what}" if error is not None else "\n".join(lines)
        shown[f"{names[0]}, then {names[1]}"] = (text, brief)
    return shown


def _inner(grounds: Grounds, address: str, edits: Iterable[Edit]) -> list[Edit]:
    """The edits whose sites are in the Chain that holds `address`, seen from that Chain."""
    import dataclasses

    at, chain, _ = grounds.chain(address)
    prefix = f"{at}." if at else ""
    inner: list[Edit] = []
    for edit in edits:
        name = edit.address.removeprefix(prefix)
        if edit.kind != "provide" and edit.address.startswith(prefix) and name in chain.form.index:
            inner.append(dataclasses.replace(edit, address=name))
    return inner


def _applied(chain: Chain, edits: Sequence[Edit]) -> tuple[Chain | None, InarchError | None]:
    try:
        return chain.edit(edits), None
    except InarchError as error:
        return None, error
