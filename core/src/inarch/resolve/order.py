"""The simple verdict on order: additions commute, anything else that meets at a site is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from inarch.errors import InarchError
from inarch.tree import Edit


def check_order(edits: Mapping[str, Iterable[Edit]]) -> None:
    """Refuse adapters whose edits meet at a site in kinds that are not known to commute.

    Args:
        edits: for each adapter of the stack, its edits at exact addresses.

    Raises:
        InarchError: IA407, with the first site two adapters meet at so.
    """
    first: dict[str, tuple[str, Edit]] = {}
    for name, its in edits.items():
        for edit in its:
            if edit.kind == "provide":
                continue
            other, before = first.setdefault(edit.address, (name, edit))
            if other != name and {before.kind, edit.kind} not in ({"add"}, {"scale"}, {"tap"}):
                raise InarchError(
                    "IA407",
                    f"the order of `{other}` and `{name}` matters, and nothing says which is meant",
                    where=edit.address,
                    why=f"`{other}` has its {before.kind} there, `{name}` its {edit.kind}; "
                    "only additions are known to commute",
                    remedy=f"leave one of the two out, or keep `{name}` away from that site",
                )
