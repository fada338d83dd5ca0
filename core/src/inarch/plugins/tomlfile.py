"""A TOML file read into a struct, with errors that name the file, the line and the key."""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from inarch.errors import InarchError

Struct = TypeVar("Struct", bound=msgspec.Struct)


def read_toml(path: Path, kind: type[Struct], *, unreadable: str, malformed: str) -> Struct:
    """Read and validate a TOML file.

    Args:
        path: the file.
        kind: the struct it must be; unknown keys are refused where the struct says so.
        unreadable: the error code for a file that can't be read.
        malformed: the error code for one that is no such struct.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InarchError(
            unreadable,
            f"`{path.name}` can't be read",
            where=str(path),
            why=why,
            remedy="check the path",
        ) from None
    try:
        return msgspec.convert(tomllib.loads(text), kind)
    except tomllib.TOMLDecodeError as error:
        raise InarchError(
            malformed,
            f"`{path.name}` is no TOML",
            where=str(path),
            why=str(error),
            remedy='write it as TOML: key = "value"',
        ) from None
    except msgspec.ValidationError as error:
        raise _misfit(path, text, kind, str(error), malformed) from None


def _misfit(path: Path, text: str, kind: type, message: str, code: str) -> InarchError:
    """msgspec says what is wrong and where in the data; add the line and the likely correction."""
    what, _, place = message.partition(" - at `$")
    quoted = re.search(r"`([^`]+)`", what)
    key = quoted.group(1) if quoted and "unknown field" in what else place.strip("`").split(".")[-1]
    key = key.split("[")[0]
    line = next((i for i, one in enumerate(text.splitlines(), 1) if _starts(one, key)), 0)
    keys = sorted(_keys(kind))
    near = difflib.get_close_matches(key, keys, 1, 0.5) if "unknown" in what else []
    return InarchError(
        code,
        f"`{path.name}` does not say what it should",
        where=f"{path}:{line}" if line else str(path),
        why=what[:1].lower()
        + what[1:]
        + (f", at {place.strip('`.')}" if place.strip("`.") else ""),
        remedy=f"did you mean `{near[0]}`?" if near else f"the keys are: {', '.join(keys)}",
    )


def _starts(line: str, key: str) -> bool:
    return bool(key) and bool(
        re.match(rf"\s*(\[+\s*)?[\"']?{re.escape(key)}[\"']?\s*(=|\.|\])", line)
    )


def _keys(kind: Any) -> set[str]:
    """The keys of a struct and of the structs in it."""
    keys: set[str] = set()
    seen: set[type] = set()  # one may hold others of its own kind
    todo: list[Any] = [kind]
    while todo:
        one = todo.pop()
        if isinstance(one, type) and issubclass(one, msgspec.Struct):
            if one in seen:
                continue
            seen.add(one)
            for field in msgspec.structs.fields(one):
                keys.add(field.encode_name)
                todo.append(field.type)
        else:
            todo += list(getattr(one, "__args__", ()))
    return keys
