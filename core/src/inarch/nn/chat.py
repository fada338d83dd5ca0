"""Chat templates: jinja, sandboxed, with the names and settings transformers gives them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from inarch.errors import InarchError


class ChatTemplate:
    """A checkpoint's template, compiled once.

    Raises:
        InarchError: IA503 for one that is no jinja.
    """

    def __init__(self, text: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        names: dict[str, Any] = {"raise_exception": _refuse, "strftime_now": _now}
        environment.globals.update(names)
        try:
            self._template = environment.from_string(text)
        except TemplateError as error:
            raise InarchError(
                "IA503",
                "the chat template is no jinja",
                where="chat_template",
                why=str(error),
                remedy="pass a prompt instead of messages, or mend the template",
            ) from None

    def render(self, messages: Sequence[Mapping[str, str]], *, reply: bool, **names: Any) -> str:
        """The text of a conversation.

        Raises:
            InarchError: IA503 for messages that are none, or that the template refuses.
        """
        for i, message in enumerate(messages):
            if not isinstance(message, Mapping) or "role" not in message:  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InarchError(
                    "IA503",
                    f"message {i} is none",
                    where=repr(message)[:80],
                    why="a message is a mapping with `role` and `content`",
                    remedy='write {"role": "user", "content": "..."}',
                )
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=reply, tools=None, documents=None, **names
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise InarchError(
                "IA503",
                "the chat template refuses these messages",
                where=", ".join(str(m.get("role")) for m in messages),
                why=str(error),
                remedy="begin with a user's message and let user and assistant take turns",
            ) from None


class _Generation(Extension):
    """`{% generation %}`: marks what the assistant says, for training; its text is its content."""

    tags = {"generation"}  # noqa: RUF012 jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers: unlike jinja's own, it escapes nothing for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _now(layout: str) -> str:
    return datetime.now().strftime(layout)
