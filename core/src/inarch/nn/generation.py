"""Generation: the prompt once, then token by token over the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from inarch.nn.attention import causal_mask, positions_of
from inarch.nn.cache import CacheClock, cache_edits
from inarch.nn.sampling import Sampling
from inarch.tree import Chain, Edit

BEGINS = "begins"
"""An input that adapters may ask for: whether the tokens are the first of their sequences, True
unless a cache holds earlier ones."""


def last_position(x: Tensor) -> Tensor:
    """[batch, time, width] to [batch, 1, width]: what the next token is read from."""
    return x[:, -1:]


class Generator:
    """One generation: the tree with caches, and the loop over it.

    Args:
        tree: takes token ids, asks for `positions` and `mask`, and `begins` where an adapter
            needs it, gives logits.
        attention: addresses of the steps that take (query, key, value, mask).
        head: address of the step that makes logits, which only the last position goes through.
        prompts: token ids, at least one each.
        new_tokens: at most so many are generated.
        window: how far back attention sees, if not to the beginning.
        pad: the id that shorter prompts are filled up with on the left.
    """

    def __init__(
        self,
        tree: Chain,
        attention: Sequence[str],
        head: str,
        prompts: Sequence[Sequence[int]],
        new_tokens: int,
        *,
        window: int | None = None,
        pad: int = 0,
    ) -> None:
        self.device = next(tree.parameters()).device
        self.longest = max(len(prompt) for prompt in prompts)
        self.capacity = self.longest + new_tokens
        self.new_tokens, self.window, self.pad = new_tokens, window, pad
        self.clock = CacheClock()
        edits = cache_edits(attention, self.capacity, self.clock)
        self.tree = tree.edit([*edits, Edit.before(head, last_position, "last_position")])
        rows = [[pad] * (self.longest - len(p)) + list(p) for p in prompts]
        self.ids = torch.tensor(rows, device=self.device)
        self.padding: Tensor | None = None
        if len({len(p) for p in prompts}) > 1:
            self.padding = torch.ones((len(prompts), self.capacity), dtype=torch.bool)
            for row, prompt in zip(self.padding, prompts, strict=True):
                row[: self.longest - len(prompt)] = False
            self.padding = self.padding.to(self.device)
            self.positions = positions_of(self.padding)
        else:
            self.positions = torch.arange(self.capacity, device=self.device)[None]

    def steps(self, sampling: Sampling, stop: frozenset[int]) -> Iterator[list[int | None]]:
        """The tokens of each step, None for rows that have stopped after a stop token."""
        generator = sampling.generator(self.device)
        live = [True] * len(self.ids)
        given, seen = self.ids, None
        for _ in range(self.new_tokens):
            tokens, seen = self._step(given, seen, sampling, generator)
            chosen: list[int] = tokens.tolist()
            yield [t if alive else None for t, alive in zip(chosen, live, strict=True)]
            live = [alive and t not in stop for t, alive in zip(chosen, live, strict=True)]
            if not any(live):
                return
            given = tokens[:, None]

    @torch.inference_mode()  # of each step: around a yield it would hold in the caller's code too
    def _step(
        self,
        given: Tensor,
        seen: Tensor | None,
        sampling: Sampling,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor | None]:
        """The next token of each row, [batch], and which tokens each row has had, if asked."""
        logits = self._forward(given)[:, -1]
        if sampling.penalises:
            seen = self._first_seen(logits) if seen is None else seen.scatter(1, given, True)
        return sampling.next(logits, seen, generator), seen

    def _first_seen(self, logits: Tensor) -> Tensor:
        """The prompts' tokens, [batch, vocabulary]; what fills a prompt up is none of them."""
        width = max(logits.shape[1], int(self.ids.max()) + 1)  # learned tokens have no logit
        seen = logits.new_zeros((len(logits), width), dtype=torch.bool).scatter_(1, self.ids, True)
        if self.padding is not None:
            real = self.padding[:, : self.longest]
            seen[:, self.pad] = ((self.ids == self.pad) & real).any(-1)
        return seen[:, : logits.shape[1]]

    def _forward(self, given: Tensor) -> Tensor:
        start = self.clock.start
        end = start + given.shape[1]
        padding = None if self.padding is None else self.padding[:, :end]
        mask = causal_mask(
            given.shape[1], end, padding=padding, window=self.window, device=self.device
        )
        self.clock.given = given.shape[1]
        more = {BEGINS: start == 0} if BEGINS in self.tree.form.needs else {}
        logits = self.tree(given, positions=self.positions[:, start:end], mask=mask, **more)
        self.clock.start = end
        return logits
