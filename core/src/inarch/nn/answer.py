"""The text of an answer as its tokens come, which ends at a stop token or before a stop text."""

from __future__ import annotations

from collections.abc import Sequence

from inarch.nn.tokenizer import Tokenizer


class Answer:
    """One row of a generation.

    Args:
        tokenizer: of the model.
        ends: tokens that end the answer and are no part of it.
        stops: texts that end the answer and are no part of it.

    Attributes:
        text: what is certain so far; never half a character or half a stop text.
        ended: whether nothing more comes.
    """

    def __init__(self, tokenizer: Tokenizer, ends: frozenset[int], stops: Sequence[str]) -> None:
        self.text = ""
        self.ended = False
        self._stream, self._ends, self._stops = tokenizer.stream(), ends, tuple(stops)
        self._held = ""

    def push(self, token: int | None) -> str:
        """The text that one more token makes certain; often a piece, sometimes nothing yet."""
        if self.ended:
            return ""
        if token is None or token in self._ends:
            return self.finish()
        self._held += self._stream.push(token)
        stop = self._stop()
        if stop is not None:
            self.ended = True
            return self._give(stop)
        return self._give(len(self._held) - self._maybe_stop())

    def finish(self) -> str:
        """What was held back, now that no token follows."""
        if self.ended:
            return ""
        self.ended = True
        self._held += self._stream.rest()
        stop = self._stop()
        return self._give(len(self._held) if stop is None else stop)

    def _give(self, count: int) -> str:
        piece, self._held = self._held[:count], self._held[count:]
        self.text += piece
        return piece

    def _stop(self) -> int | None:
        """Where the first of the stop texts begins."""
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        return min(found, default=None)

    def _maybe_stop(self) -> int:
        """How many characters at the end may be the beginning of a stop text."""
        held = self._held
        lengths = (n for s in self._stops for n in range(len(s) - 1, 0, -1) if held.endswith(s[:n]))
        return max(lengths, default=0)
