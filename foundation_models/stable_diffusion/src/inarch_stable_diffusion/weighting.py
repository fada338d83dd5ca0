"""Prompts as users write them: weighted words, forced breaks, and any length.

The syntax and the rule of weights are those of the AUTOMATIC1111 web interface: `(word)` counts 1.1
times, `[word]` 1 / 1.1 times, `(word:1.3)` 1.3 times, nested ones multiply, `\\(` is a bracket, and
`BREAK` begins a new chunk. A token's state is multiplied by its weight, and each chunk is then
scaled so that its mean is what it was; compel, by contrast, mixes states with an empty prompt's.

A text encoder sees 75 tokens at once, so a longer prompt is encoded in chunks of 75, each between
tokens that begin and end it, and the states of the chunks follow one another.

Source: `modules/prompt_parser.py` and `modules/sd_hijack_clip.py` of stable-diffusion-webui 1.10.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from inarch.errors import InarchError
from inarch.tree import Chain
from inarch_clip.states import ending, with_hidden
from inarch_clip.tokens import ClipTokenizer

ROUND, SQUARE = 1.1, 1 / 1.1
BREAK = re.compile(r"\s*\bBREAK\b\s*")
_PARTS = re.compile(r"\\.|\\|\(|\[|:\s*([+-]?[.\d]+)\s*\)|\)|\]|[^\\()\[\]:]+|:", re.DOTALL)

Words = list[tuple[str, float]]
Chunks = list[tuple[list[int], list[float]]]


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder: the tokenizer, and a tree that gives states and pooled states of ids."""

    tokenizer: ClipTokenizer
    tree: Chain

    @property
    def length(self) -> int:
        """How many tokens it sees at once, with the two around them."""
        positions = self.tree.get_parameter("text_model.embeddings.position_embedding.weight")
        return positions.shape[0]


def parse(prompt: str) -> list[Words]:
    """The words of a prompt with their weights, for each part between `BREAK`s.

    Brackets that are never closed reach to the end; a closing one without an opening one is text.

    Raises:
        InarchError: IA558 for a weight that is no number.
    """
    pieces: Words = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def times(start: int, factor: float) -> None:
        pieces[start:] = [(text, weight * factor) for text, weight in pieces[start:]]

    breaks: list[int] = []
    for match in _PARTS.finditer(prompt):
        text, weight = match[0], match[1]
        if text[0] == "\\":
            pieces.append((text[1:] if text[1:] in {*"()[]\\"} else text, 1.0))
        elif text in opened:
            opened[text].append(len(pieces))
        elif weight is not None and opened["("]:
            times(opened["("].pop(), _number(weight, prompt))
        elif text == ")" and opened["("]:
            times(opened["("].pop(), ROUND)
        elif text == "]" and opened["["]:
            times(opened["["].pop(), SQUARE)
        else:
            first, *rest = BREAK.split(text)
            pieces.append((first, 1.0))
            for part in rest:
                breaks.append(len(pieces))
                pieces.append((part, 1.0))
    for start in opened["("]:
        times(start, ROUND)
    for start in opened["["]:
        times(start, SQUARE)
    ends = [0, *breaks, len(pieces)]
    return [_joined(pieces[a:b]) for a, b in pairwise(ends)]


def _number(text: str, prompt: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InarchError(
            "IA558",
            f"`{text}` is no weight",
            where=prompt,
            why="a weight is a number, such as 1.3",
            remedy="write (word:1.3), or \\(word\\) for brackets that are text",
        ) from None


def _joined(pieces: Words) -> Words:
    """Neighbours of one weight as one text, so that words are split as they would be unweighted."""
    joined: Words = []
    for text, weight in pieces:
        if joined and joined[-1][1] == weight:
            joined[-1] = (joined[-1][0] + text, weight)
        elif text:
            joined.append((text, weight))
    return joined


def chunks(prompt: str, tokenizer: ClipTokenizer, size: int, *, plain: bool = False) -> Chunks:
    """Token ids and their weights in chunks of at most `size`, at least one chunk.

    Args:
        prompt: text with the syntax above.
        tokenizer: of the text encoder.
        size: 75 for the published encoders.
        plain: take brackets and `BREAK` as text.
    """
    done: Chunks = []
    for words in [[(prompt, 1.0)]] if plain else parse(prompt):
        ids: list[int] = []
        weights: list[float] = []
        for text, weight in words:
            found = tokenizer.encode(text, special=False)
            ids += found
            weights += [weight] * len(found)
        for start in range(0, max(len(ids), 1), size):
            done.append((ids[start : start + size], weights[start : start + size]))
    return done


def encode_prompts(
    prompts: Sequence[str] | Sequence[Sequence[str]],
    encoders: Sequence[TextEncoder],
    *,
    early: int = 0,
    normed: bool = True,
    plain: bool = False,
    least: int = 1,
    inputs: Mapping[str, Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """Prompts as the states that an image model attends to.

    All come out equally long: shorter ones are filled up with empty chunks.

    Args:
        prompts: a text for each image, or one list of these for each encoder.
        encoders: one, or SDXL's two.
        early: how many layers before the last the states are of: `clip_skip`, and one more in SDXL.
        normed: whether the final norm follows: in all but SDXL.
        plain: take brackets and `BREAK` as text.
        least: so many chunks at least, as other prompts have that are to be as long.
        inputs: what adapters of the text encoders ask for beside.

    Returns:
        States, [prompts, chunks * 77, width], of two encoders side by side in width; and the last
        encoder's pooled state of each first chunk, [prompts, projection_dim].

    Raises:
        InarchError: IA505 for what is no text, IA541 for a state that isn't there, IA558.
    """
    cut = _cut(prompts, encoders, plain)
    most = max(least, *(len(parts) for texts in cut for parts in texts))
    states: list[Tensor] = []
    pooled = torch.empty(0)
    for encoder, texts in zip(encoders, cut, strict=True):
        even = [[*parts, *[([], [])] * (most - len(parts))] for parts in texts]
        found, pooled = _encoded(encoder, even, early, normed, inputs or {})
        states.append(found)
    return torch.cat(states, dim=-1), pooled


def count_chunks(
    prompts: Sequence[str] | Sequence[Sequence[str]],
    encoders: Sequence[TextEncoder],
    *,
    plain: bool = False,
) -> int:
    """How many chunks the longest of some prompts has; see `encode_prompts`."""
    return max(len(parts) for texts in _cut(prompts, encoders, plain) for parts in texts)


def _cut(
    prompts: Sequence[Any], encoders: Sequence[TextEncoder], plain: bool
) -> list[list[Chunks]]:
    """Each encoder's prompts in chunks."""
    rows = [list(p) for p in prompts] if _nested(prompts) else [list(prompts)] * len(encoders)
    _check(rows, len(encoders))
    return [
        [chunks(text, encoder.tokenizer, encoder.length - 2, plain=plain) for text in texts]
        for texts, encoder in zip(rows, encoders, strict=True)
    ]


def _encoded(
    encoder: TextEncoder,
    texts: Sequence[Chunks],
    early: int,
    normed: bool,
    inputs: Mapping[str, Any],
) -> tuple[Tensor, Tensor]:
    """Weighted states of equally many chunks a text, and pooled states of the first."""
    tokenizer, length = encoder.tokenizer, encoder.length
    flat = [chunk for parts in texts for chunk in parts]
    edges = tokenizer.bos_id, tokenizer.eos_id
    ids = tokenizer.rows([[edges[0] or 0, *ids, edges[1] or 0] for ids, _ in flat], length)
    tree = ending(encoder.tree, early) if normed else with_hidden(encoder.tree, early)
    asked = {name: inputs[name] for name in tree.form.needs if name in inputs} | {"mask": None}
    outputs = tree(ids.to(next(tree.parameters()).device), **asked)
    states = outputs[0] if normed else outputs[2]
    filled = [[1.0, *w, *[1.0] * (length - 1 - len(w))] for _, w in flat]
    states = weighted(states, torch.tensor(filled, device=states.device))
    per_text = states.unflatten(0, (len(texts), -1)).flatten(1, 2)
    return per_text, outputs[1].unflatten(0, (len(texts), -1))[:, 0]


def weighted(states: Tensor, weights: Tensor) -> Tensor:
    """States of chunks, [chunks, time, width], times weights, [chunks, time], of the same mean.

    Chunks in which nothing is weighted stay as they are, bit for bit.
    """
    if bool((weights == 1).all()):
        return states
    wide = states.float()
    heavy = wide * weights[..., None]
    before, after = (x.mean(dim=(1, 2), keepdim=True) for x in (wide, heavy))
    heavy = heavy * torch.where(after == 0, torch.ones_like(after), before / after)
    plain = (weights == 1).all(dim=1)[:, None, None]
    return torch.where(plain, states, heavy.to(states.dtype))


def _nested(prompts: Sequence[Any]) -> bool:
    return bool(prompts) and isinstance(prompts[0], list | tuple)


def _check(rows: Sequence[Sequence[Any]], encoders: int) -> None:
    wrong = ""
    if len(rows) != encoders:
        wrong = f"there are {len(rows)} lists of prompts for {encoders} text encoders"
    elif len({len(texts) for texts in rows}) != 1 or not rows[0]:
        wrong = "each text encoder needs as many prompts as the others, at least one"
    elif not all(isinstance(text, str) for texts in rows for text in texts):
        wrong = "a prompt is text"
    if wrong:
        remedy = "pass a text, or a list of texts for a batch"
        raise InarchError("IA505", "these are no prompts", where="prompt", why=wrong, remedy=remedy)
