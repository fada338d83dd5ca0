"""Examples to train on: JSON lines, and which of their tokens are learned."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inarch.errors import InarchError
from inarch.nn.tokenizer import Tokenizer

IGNORED = -100
"""The label of a token that is not learned, as `torch.nn.functional.cross_entropy` has it."""

_LINE = (
    'write {"messages": [{"role": "user", "content": "..."}, '
    '{"role": "assistant", "content": "..."}]}'
)


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids, and the same as labels where they are learned."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]


def read_examples(path: str | Path, tokenizer: Tokenizer, *, max_length: int) -> list[Example]:
    """Examples from a file of JSON lines.

    Each line is an object with `messages` (what the assistant says is learned), with `prompt` and
    `completion` (which is learned), or with `text` (all of it is).

    Args:
        path: the file.
        tokenizer: the model's.
        max_length: longer examples are cut off at so many tokens.

    Raises:
        InarchError: IA601 for a file that can't be read, IA602 for a line that is no example.
    """
    path = Path(path)
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InarchError(
            "IA601",
            f"the examples in `{path.name}` can't be read",
            where=str(path),
            why=why,
            remedy="pass a file of JSON lines",
        ) from None
    examples: list[Example] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            ids, labels = _tokens(_parsed(line, f"{path}:{number}"), tokenizer, f"{path}:{number}")
            ids, labels = ids[:max_length], labels[:max_length]
            if all(label == IGNORED for label in labels[1:]):
                raise _bad(f"{path}:{number}", f"nothing is learned of its {max_length} tokens")
            examples.append(Example(tuple(ids), tuple(labels)))
    if not examples:
        raise InarchError(
            "IA601",
            f"`{path.name}` holds no example",
            where=str(path),
            remedy=_LINE,
        )
    return examples


def _parsed(line: str, where: str) -> dict[str, Any]:
    try:
        record: Any = json.loads(line)
    except ValueError as error:
        raise _bad(where, f"it is no JSON: {error}") from None
    if not isinstance(record, dict):
        raise _bad(where, "it is no JSON object")
    return record


def _tokens(
    record: dict[str, Any], tokenizer: Tokenizer, where: str
) -> tuple[list[int], list[int]]:
    if isinstance(record.get("messages"), list):
        return _conversation(record["messages"], tokenizer, where)
    if isinstance(record.get("prompt"), str) and isinstance(record.get("completion"), str):
        prompt = tokenizer.encode(record["prompt"])
        learned = tokenizer.encode(record["completion"], special=False) + _end(tokenizer)
        return prompt + learned, [IGNORED] * len(prompt) + learned
    if isinstance(record.get("text"), str):
        ids = tokenizer.encode(record["text"]) + _end(tokenizer)
        return ids, list(ids)
    keys = ", ".join(record) or "none"
    raise _bad(where, f"its keys are {keys}; wanted: messages, or prompt and completion, or text")


def _end(tokenizer: Tokenizer) -> list[int]:
    return [] if tokenizer.eos_id is None or tokenizer.add_eos else [tokenizer.eos_id]


def _conversation(
    messages: list[Mapping[str, str]], tokenizer: Tokenizer, where: str
) -> tuple[list[int], list[int]]:
    """A conversation, of which what the assistant says is learned, its end mark included."""
    try:
        ids = tokenizer.encode_chat(messages, reply=False)
        labels = [IGNORED] * len(ids)
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = tokenizer.encode_chat(messages[:i], reply=True)
            after = tokenizer.encode_chat(messages[: i + 1], reply=False)
            if ids[: len(after)] != after or after[: len(before)] != before:
                raise _bad(where, "the chat template rewrites earlier turns when later ones come")
            labels[len(before) : len(after)] = ids[len(before) : len(after)]
    except InarchError as error:
        raise error if error.code == "IA602" else _bad(where, error.why or error.what) from None
    return ids, labels


def _bad(where: str, why: str) -> InarchError:
    return InarchError(
        "IA602",
        "a line is no example",
        where=where,
        why=why,
        remedy=_LINE,
    )


def batch(examples: Sequence[Example], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, labels and mask, [batch, longest] each, filled up on the right."""
    longest = max(len(example.ids) for example in examples)
    ids = torch.zeros((len(examples), longest), dtype=torch.long)
    labels = torch.full((len(examples), longest), IGNORED)
    mask = torch.zeros((len(examples), longest), dtype=torch.long)
    for row, example in enumerate(examples):
        size = len(example.ids)
        ids[row, :size] = torch.tensor(example.ids)
        labels[row, :size] = torch.tensor(example.labels)
        mask[row, :size] = 1
    return ids.to(device), labels.to(device), mask.to(device)


def order(count: int, size: int, seed: int, first: int) -> Iterator[list[int]]:
    """Indices of batch after batch without end, each epoch shuffled anew, from batch `first` on.

    Depends on nothing but its arguments, so that a resumed run sees what an uninterrupted one does.
    """
    size = min(size, count)
    each = count // size
    epoch, skip = divmod(first, each)
    while True:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        shuffled: list[int] = torch.randperm(count, generator=generator).tolist()
        for start in range(skip, each):
            yield shuffled[start * size : (start + 1) * size]
        epoch, skip = epoch + 1, 0
