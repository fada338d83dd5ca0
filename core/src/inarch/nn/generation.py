"""Generation: the prompt once, then token by token over the cache."""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from inarch.errors import InarchError
from inarch.nn.attention import causal_mask, positions_of
from inarch.nn.decoder import CompiledStep, Places, borrow, give_back
from inarch.nn.sampling import Sampling
from inarch.tree import Chain

_SMALLEST = 128


def ids_of(prompts: Iterable[Iterable[int]]) -> list[list[int]]:
    """Prompts as lists of token ids.

    Raises:
        InarchError: IA505 for what is no list of them.
    """
    try:
        rows = [[operator.index(token) for token in prompt] for prompt in prompts]
    except (TypeError, ValueError):
        raise InarchError(
            "IA505",
            "prompts are lists of token ids, one list each",
            where="prompts",
            why=f"these are {reprlib.repr(prompts)}",
            remedy="generate_ids([[1, 2, 3], [4, 5]])",
        ) from None
    if not all(rows) or not rows:
        raise InarchError(
            "IA504",
            "a prompt is empty" if rows else "there is no prompt",
            why="there is no token to begin with, and this tokenizer adds none",
            remedy="give at least one word",
        )
    return rows


def refuse_unknown(prompts: Mapping[int, Sequence[int]], size: int | None) -> None:
    """Refuse token ids that a model has not; on a GPU they would end the process.

    Args:
        prompts: by their numbers, none of them empty.
        size: how many ids there are; None if untold.

    Raises:
        InarchError: IA505 for the first prompt that has one.
    """
    for number, prompt in prompts.items():
        least, most = min(prompt), max(prompt)
        if least < 0 or (size is not None and most >= size):
            ids = "at least 0" if size is None else f"from 0 to {size - 1}"
            raise InarchError(
                "IA505",
                f"prompt {number} has a token id that this model has not",
                where="prompts",
                why=f"its ids are {ids}, and {least if least < 0 else most} is not",
                remedy="encode texts with this model: model.encode(text)",
            )


def stops_of(stop: Iterable[int]) -> frozenset[int]:
    """Token ids that end a row.

    Raises:
        InarchError: IA504 for what is no set of them.
    """
    try:
        return frozenset(operator.index(token) for token in stop)
    except TypeError:
        raise InarchError(
            "IA504",
            f"what ends a row is a set of token ids, not {reprlib.repr(stop)}",
            where="stop",
            remedy="stop={2}, or a text to stop before: generate(..., stop=...)",
        ) from None


class Generation:
    """One generation: a decoder, and the loop over it.

    Args:
        tree: takes token ids, asks for `positions` and `mask`, and `begins` where an adapter
            needs it, gives logits.
        places: where its attention and its head are.
        prompts: token ids, at least one each.
        new_tokens: at most so many are generated.
        window: how far back attention sees, if not to the beginning.
        pad: the id that shorter prompts are filled up with on the left.
        compile: run every token after the first through a compiled step.

    Raises:
        InarchError: IA108 for a tree that was compiled or sharded in place.
    """

    def __init__(
        self,
        tree: Chain,
        places: Places,
        prompts: Sequence[Sequence[int]],
        new_tokens: int,
        *,
        window: int | None = None,
        pad: int = 0,
        compile: bool = False,
    ) -> None:
        self.tree, self.places = tree, places
        self.window, self.pad, self.compile = window, pad, compile
        self.device = next(tree.parameters()).device
        self.longest = max(len(prompt) for prompt in prompts)
        self.new_tokens = new_tokens
        self.capacity = self.longest + new_tokens
        if compile:  # powers of two, for which what was compiled serves again
            self.capacity = max(_SMALLEST, 1 << (self.capacity - 1).bit_length())
        rows = [[pad] * (self.longest - len(p)) + list(p) for p in prompts]
        self.ids = torch.tensor(rows, device=self.device)
        self.padding: Tensor | None = None
        if len({len(p) for p in prompts}) > 1:
            padding = torch.ones((len(prompts), self.capacity), dtype=torch.bool)
            for row, prompt in zip(padding, prompts, strict=True):
                row[: self.longest - len(prompt)] = False
            self.padding = padding.to(self.device)
            self.positions = positions_of(self.padding)
        else:
            self.positions = torch.arange(self.capacity, device=self.device)[None]
        self.near = self._near()
        self.decoder = borrow(tree, places)

    def _near(self) -> Tensor | None:
        """[capacity], True for the last ones a window sees; None where it sees all of them."""
        if self.window is None or self.window >= self.capacity:
            return None
        return torch.arange(self.capacity, device=self.device) >= self.capacity - self.window

    def steps(
        self, sampling: Sampling, stop: frozenset[int], *, apart: bool = False
    ) -> Iterator[list[int | None]]:
        """The tokens of each step, None for rows that have stopped after a stop token.

        Args:
            sampling: how tokens are chosen.
            stop: tokens that end a row.
            apart: with a seed, let each row draw what it would draw alone.
        """
        generator: torch.Generator | list[torch.Generator] | None = sampling.generator(self.device)
        if apart and generator is not None:
            own = [sampling.generator(self.device) for _ in range(len(self.ids))]
            generator = [one for one in own if one is not None]
        live = [True] * len(self.ids)
        given, start, seen = self.ids, 0, None
        self.decoder.begin(self.capacity)
        try:
            for _ in range(self.new_tokens):
                tokens, seen = self._step(given, start, seen, sampling, generator)
                start += given.shape[1]
                given = tokens[:, None]
                chosen: list[int] = tokens.tolist()
                yield [t if alive else None for t, alive in zip(chosen, live, strict=True)]
                live = [alive and t not in stop for t, alive in zip(chosen, live, strict=True)]
                if not any(live):
                    return
        finally:
            give_back(self.tree, self.places, self.decoder)

    @torch.inference_mode()  # of each step: around a yield it would hold in the caller's code too
    def _step(
        self,
        given: Tensor,
        start: int,
        seen: Tensor | None,
        sampling: Sampling,
        generator: torch.Generator | Sequence[torch.Generator] | None,
    ) -> tuple[Tensor, Tensor | None]:
        """The next token of each row, [batch], and which tokens each row has had, if asked."""
        logits = self._logits(given, start)[:, -1]
        if sampling.penalises:
            seen = self._first_seen(logits) if seen is None else seen.scatter(1, given, True)
        return sampling.next(logits, seen, generator), seen

    def _logits(self, given: Tensor, start: int) -> Tensor:
        """Logits after the last of the tokens given, [batch, 1, vocabulary]."""
        if start and self.compile:
            return self._compiled(start).run(given)
        end = start + given.shape[1]
        return self.decoder.run(given, start, self.positions[:, start:end], self._mask(start, end))

    def _mask(self, start: int, end: int) -> Tensor | None:
        """Which keys the tokens see; for one token alone a slice of what is there already."""
        if start == 0 or end - start > 1:
            padding = None if self.padding is None else self.padding[:, :end]
            return causal_mask(
                end - start, end, padding=padding, window=self.window, device=self.device
            )
        near = None if self.near is None or end <= (self.window or 0) else self.near[-end:]
        if self.padding is None:
            return None if near is None else near[None, None, None]
        seen = self.padding[:, :end] if near is None else self.padding[:, :end] & near
        return seen[:, None, None]

    def _compiled(self, start: int) -> CompiledStep:
        """The compiled step, ready for the token at `start`."""
        decoder = self.decoder
        if decoder.step is None:
            decoder.step = CompiledStep(self.tree, decoder.edits)
        if start == self.longest:
            # One shape for a batch, whether its prompts are of one length or not.
            shape, padding = (len(self.ids), self.capacity), self.padding
            if padding is None:
                padding = torch.ones(shape, dtype=torch.bool, device=self.device)
            keys, _ = decoder.caches[0].kept
            decoder.step.begin(start, self.positions.expand(shape), padding, self.window, keys)
        return decoder.step

    def _first_seen(self, logits: Tensor) -> Tensor:
        """The prompts' tokens, [batch, vocabulary]; what fills a prompt up is none of them."""
        width = max(logits.shape[1], int(self.ids.max()) + 1)  # learned tokens have no logit
        seen = logits.new_zeros((len(logits), width), dtype=torch.bool).scatter_(1, self.ids, True)
        if self.padding is not None:
            real = self.padding[:, : self.longest]
            seen[:, self.pad] = ((self.ids == self.pad) & real).any(-1)
        return seen[:, : logits.shape[1]]
