"""What adapters ask of a model's tasks: a distilled one asks for its scheduler and few steps."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from inarch.errors import InarchError

if TYPE_CHECKING:
    from inarch.adapters.graft import Draft
    from inarch.adapters.member import Member
    from inarch.plugins import Index
    from inarch.weights import WeightsHeader

METADATA = "inarch.asks"
"""The string in an adapter file's header, a JSON object, that holds what it asks for."""


def asks_of(member: Member | Draft, listed: Index) -> dict[str, Any]:
    """What one adapter asks for, by the names that the tasks' arguments have.

    Its file says so, before it the manifest that ships the file, before both the adapter itself,
    which knows what the user wants.

    Raises:
        InarchError: IA411 where the file's header holds something else than a JSON object.
    """
    shipped = listed.weights.get(member.spec.use)
    return {
        **_in_file(member.header),
        **({} if shipped is None else shipped.asks),
        **member.adapter.asks(),
    }


def asked(members: Iterable[Member | Draft], listed: Index) -> dict[str, Any]:
    """What several adapters ask for, of which no two disagree."""
    return {name: value for m in members for name, value in asks_of(m, listed).items()}


def disagreements(members: Iterable[Member | Draft], listed: Index) -> Iterator[InarchError]:
    """IA420 for each setting that two adapters ask to be different."""
    first: dict[str, tuple[str, Any]] = {}
    for member in members:
        for name, value in asks_of(member, listed).items():
            other, before = first.setdefault(name, (member.name, value))
            if before != value:
                yield InarchError(
                    "IA420",
                    f"`{other}` and `{member.name}` ask for different settings",
                    where=name,
                    why=f"`{other}` asks for {name} = {json.dumps(before)}, "
                    f"`{member.name}` for {json.dumps(value)}",
                    remedy=f"leave one of the two out, or settle it for one: "
                    f'inarch.adapter("{member.spec.use}", ..., '
                    f"asks={{{json.dumps(name)}: {json.dumps(before)}}})",
                )


def _in_file(header: WeightsHeader | None) -> dict[str, Any]:
    text = None if header is None else header.metadata.get(METADATA)
    if header is None or text is None:
        return {}
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InarchError(
            "IA411",
            f"the file's `{METADATA}` is no JSON object",
            where=str(header.path),
            why=text[:60],
            remedy="save the adapter again",
        )
    return found
