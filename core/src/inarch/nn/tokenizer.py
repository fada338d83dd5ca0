"""Text to token ids and back, by the `tokenizers` library, as transformers uses it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer as Backend

from inarch.errors import InarchError
from inarch.nn.chat import ChatTemplate
from inarch.weights.checkpoint import read_json

Messages = Sequence[Mapping[str, str]]


class Tokenizer:
    """A checkpoint's tokenizer.

    Args:
        backend: from the `tokenizers` library.
        bos_token, eos_token, pad_token: as text, where there are such.
        chat_template: jinja, as transformers has it.
        add_bos: whether `encode` puts `bos_token` first.
        add_eos: whether `encode` puts `eos_token` last.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        pad_token: str | None = None,
        chat_template: str | None = None,
        add_bos: bool = False,
        add_eos: bool = False,
    ) -> None:
        self.backend = backend
        self.bos_token, self.eos_token, self.pad_token = bos_token, eos_token, pad_token
        self.chat_template = chat_template
        self.expansions: dict[int, list[int]] = {}
        self.add_bos, self.add_eos = add_bos, add_eos

    @classmethod
    def from_folder(cls, path: Path) -> Tokenizer:
        """The tokenizer of a transformers folder.

        What stands around each text is what tokenizer.json says; `add_bos_token` beside it in
        tokenizer_config.json is passed over, as transformers 5 does.

        Raises:
            InarchError: IA501 where tokenizer.json can't be read.
        """
        file = path / "tokenizer.json"
        try:
            backend = Backend.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise InarchError(
                "IA501",
                "`tokenizer.json` can't be read",
                where=str(file),
                why=str(error),
                remedy="download or save the tokenizer again",
            ) from None
        backend.no_padding()
        backend.no_truncation()
        settings_file = path / "tokenizer_config.json"
        settings = read_json(settings_file) if settings_file.is_file() else {}
        template = path / "chat_template.jinja"
        chat = template.read_text("utf-8") if template.is_file() else _default_template(settings)
        return cls(
            backend,
            bos_token=_text(settings.get("bos_token")),
            eos_token=_text(settings.get("eos_token")),
            pad_token=_text(settings.get("pad_token")),
            chat_template=chat,
        )

    @property
    def size(self) -> int:
        """How many tokens there are, and the first id that is free."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def grown(self, words: Iterable[Sequence[str]]) -> Self:
        """Another tokenizer, with more tokens; this one stays as it is.

        Args:
            words: each of one or several tokens. The first, where it stands in a text without the
                second, stands for all of them.
        """
        twin = copy.copy(self)
        twin.backend = Backend.from_str(self.backend.to_str())
        words = [list(word) for word in words]
        twin.backend.add_tokens([token for word in words for token in word])
        for first, *rest in words:
            ids = [twin.backend.token_to_id(token) or 0 for token in (first, *rest)]
            if rest:
                twin.expansions = {**twin.expansions, ids[0]: ids[1:]}
        return twin

    def id_of(self, token: str | None) -> int | None:
        """The id of one token; None where there is no such token."""
        return None if token is None else self.backend.token_to_id(token)

    @cached_property
    def bos_id(self) -> int | None:
        return self.id_of(self.bos_token)

    @cached_property
    def eos_id(self) -> int | None:
        return self.id_of(self.eos_token)

    @cached_property
    def pad_id(self) -> int | None:
        return self.id_of(self.pad_token)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of a text; `special` adds what the checkpoint puts around each text."""
        ids: list[int] = self.backend.encode(text, add_special_tokens=special).ids
        if self.expansions:
            ids = self._expanded(ids)
        if special and self.add_bos and self.bos_id is not None:
            ids = [self.bos_id, *ids]
        if special and self.add_eos and self.eos_id is not None:
            ids = [*ids, self.eos_id]
        return ids

    def _expanded(self, ids: list[int]) -> list[int]:
        whole: list[int] = []
        for i, token in enumerate(ids):
            rest = self.expansions.get(token, [])
            whole += [token] if ids[i + 1 : i + 2] == rest[:1] else [token, *rest]
        return whole

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of token ids."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special)

    def chat(self, messages: Messages, *, reply: bool = True, **extra: Any) -> str:
        """Messages as the text the model was trained on.

        Args:
            messages: each with `role` and `content`.
            reply: whether the text ends where the model is to answer.
            extra: further names for the template.

        Raises:
            InarchError: IA502 without a template, IA503 for messages it refuses.
        """
        if self.chat_template is None:
            raise InarchError(
                "IA502",
                "this checkpoint has no chat template",
                why="neither tokenizer_config.json nor chat_template.jinja holds one",
                remedy="pass a prompt instead of messages",
            )
        tokens = {
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "pad_token": self.pad_token,
        }
        names = {name: token for name, token in tokens.items() if token is not None} | extra
        return self._template.render(messages, reply=reply, **names)

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate(self.chat_template or "")

    def encode_chat(self, messages: Messages, *, reply: bool = True) -> list[int]:
        """Token ids of messages; the template itself writes what stands around them."""
        return self.encode(self.chat(messages, reply=reply), special=False)

    def stream(self) -> TextStream:
        """Decodes ids as they come."""
        return TextStream(self)


class TextStream:
    """Text from ids one by one, never half a character: what is incomplete waits for the next."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0
        self._shown = 0

    def push(self, token: int) -> str:
        """The text that one more id completes; often a piece, sometimes nothing yet."""
        self._ids.append(token)
        before = self._tokenizer.decode(self._ids[self._start : self._shown])
        whole = self._tokenizer.decode(self._ids[self._start :])
        if len(whole) <= len(before) or whole.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return whole[len(before) :]

    def rest(self) -> str:
        """What never became a whole character."""
        before = self._tokenizer.decode(self._ids[self._start : self._shown])
        return self._tokenizer.decode(self._ids[self._start :])[len(before) :]


def _text(token: Any) -> str | None:
    """A token in tokenizer_config.json is text, or an object that holds it."""
    return token.get("content") if isinstance(token, dict) else token


def _default_template(settings: Mapping[str, Any]) -> str | None:
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {one["name"]: one["template"] for one in template}
        return named.get("default")
    return template
