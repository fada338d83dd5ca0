"""A model's tree with caches in it, made once and lent to one generation at a time."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from inarch.errors import InarchError
from inarch.nn.cache import KeyValueCache, cache_edits
from inarch.tree import Chain, Edit
from inarch.tree.edit import is_final
from inarch.tree.regions import regional

BEGINS = "begins"
"""An input that adapters may ask for: whether the tokens are the first of their sequences, True
unless a cache holds earlier ones."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where a decoder finds what it edits.

    Attributes:
        attention: addresses of the steps that take (query, key, value, mask).
        head: of the step that makes logits, which only the last position goes through.
    """

    attention: tuple[str, ...]
    head: str


def last_position(x: Tensor) -> Tensor:
    """[batch, time, width] to [batch, 1, width]: what the next token is read from."""
    return x[:, -1:]


class Decoder:
    """A tree that remembers what it was given.

    Args:
        tree: takes token ids, asks for `positions` and `mask`, and `begins` where an adapter
            needs it, gives logits.
        places: where its attention and its head are.
    """

    def __init__(self, tree: Chain, places: Places) -> None:
        self.caches = [KeyValueCache() for _ in places.attention]
        self.edits = [
            *cache_edits(places.attention, self.caches),
            Edit.before(places.head, last_position, "last_position"),
        ]
        self.tree = tree.edit(self.edits)
        self.made_of = tuple(tree.modules())[1:]
        self.step: CompiledStep | None = None

    def fits(self, tree: Chain) -> bool:
        """Whether it is still what an edit of the tree would give."""
        now = tuple(tree.modules())[1:]
        return (
            len(now) == len(self.made_of)
            and all(a is b for a, b in zip(now, self.made_of, strict=True))
            and not is_final(tree)
            and not any(map(is_final, now))
        )

    def begin(self, capacity: int) -> None:
        """Make ready for a text of at most so many tokens."""
        for cache in self.caches:
            cache.capacity = capacity

    def run(self, ids: Tensor, start: int, positions: Tensor, mask: Tensor | None) -> Tensor:
        """Logits after the last of some tokens, [batch, 1, vocabulary].

        Args:
            ids: [batch, time].
            start: how many tokens came before; a text begins at 0.
            positions: [batch or 1, time].
            mask: see `inarch.nn.attend`.
        """
        slots = range(start, start + ids.shape[1])
        return self.tree(
            ids, positions=positions, mask=mask, slots=slots, **begins(self.tree, start == 0)
        )

    def forget(self) -> None:
        """Give the buffers back, unless a recorded graph stands on them."""
        if self.step is None or self.step.graph is None:
            for cache in self.caches:
                cache.forget()


def begins(tree: Chain, value: bool) -> dict[str, bool]:
    """The input of that name, where the tree asks for it."""
    return {BEGINS: value} if BEGINS in tree.form.needs else {}


class CompiledStep:
    """One token after another at fixed shapes: compiled once, and on CUDA recorded once.

    Everything that changes from token to token is a tensor that is changed in place.

    Args:
        tree: of the model.
        edits: of the decoder, whose caches it shares.
    """

    def __init__(self, tree: Chain, edits: Sequence[Edit]) -> None:
        self.whole = tree.edit(edits)
        self.tree = _compiled(regional(self.whole))
        self.graph: torch.cuda.CUDAGraph | None = None
        self.shape: tuple[Any, ...] = ()
        self.ready = False

    def begin(
        self, start: int, positions: Tensor, padding: Tensor, window: int | None, keys: Tensor
    ) -> None:
        """Make ready for the tokens that follow `start` others.

        Args:
            start: tokens that the caches hold.
            positions: of every token, [batch or 1, capacity].
            padding: [batch or 1, capacity], False where there is nothing.
            window: how far back attention sees, if not to the beginning.
            keys: a cache's buffer, by which a recorded graph is known.
        """
        shape = (keys.data_ptr(), keys.shape, positions.shape, padding.shape, window)
        if self.graph is None or shape != self.shape:
            self.graph, self.shape, self.window, self.ready = None, shape, window, False
            self.ids = positions.new_zeros((keys.shape[0], 1))
            self.slots = positions.new_zeros(1)
            self.columns = torch.arange(padding.shape[1], device=positions.device)
            self.positions, self.padding = positions.clone(), padding.clone()
        self.positions.copy_(positions)
        self.padding.copy_(padding)
        self.slots.fill_(start)

    def run(self, ids: Tensor) -> Tensor:
        """Logits after one more token of each row, [batch, 1, vocabulary]."""
        if not ids.is_cuda:
            return self._step(ids)
        self.ids.copy_(ids)
        graph = self.graph = self.graph or self._recorded()
        graph.replay()
        return self.logits

    def _step(self, ids: Tensor) -> Tensor:
        slots = self.slots
        seen = self.padding & (self.columns <= slots)
        if self.window is not None:
            seen &= self.columns > slots - self.window
        given: dict[str, Any] = {
            "positions": self.positions.index_select(1, slots),
            "mask": seen[:, None, None],
        }
        given |= {"slots": slots, **begins(self.tree, False)}
        if self.ready:
            logits = self._forward(ids, given)
        else:
            with _COMPILING:  # or threads would compile the same at the same time
                logits = self._forward(ids, given)
            self.ready = True
        slots.add_(1)
        return logits

    def _forward(self, ids: Tensor, given: dict[str, Any]) -> Tensor:
        """The tree's; without regions where they fail, as torch 2.13's do at a weight's `.T`."""
        if self.tree is not self.whole:
            try:
                return self.tree(ids, **given)
            except Exception:  # whatever it was, it comes again below or is no matter
                self.tree = _compiled(self.whole)
        try:
            return self.tree(ids, **given)
        except compiler_error() as error:
            raise InarchError(
                "IA512",
                "a step of this model can't be compiled",
                where="compile=True",
                why=str(error).strip().partition("\n")[0],
                remedy="leave compile out, or the adapter whose code this comes from",
            ) from error

    def _recorded(self) -> torch.cuda.CUDAGraph:
        """A step as a CUDA graph, after it ran once so that all of it is compiled."""
        at = self.slots.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._step(self.ids)
        torch.cuda.current_stream().wait_stream(stream)
        self.slots.copy_(at)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self.logits = self._step(self.ids)
        self.slots.copy_(at)
        return graph


def _compiled(tree: Chain) -> Chain:
    """The tree, compiled in place for as many batches and capacities as a server may have.

    Torch allows for 8 of them, and before 2.12 can't be told otherwise.
    """
    known = "recompile_limit" in inspect.signature(torch.compile).parameters
    limit: dict[str, Any] = {"recompile_limit": 64} if known else {}
    tree.compile(fullgraph=True, dynamic=False, **limit)
    return tree


def compiler_error() -> type[Exception]:
    """The kind of everything that goes wrong in compiling; asked for once something did."""
    from torch._dynamo.exc import TorchDynamoException

    return TorchDynamoException


_LOCK, _COMPILING = threading.Lock(), threading.Lock()
_IDLE: WeakKeyDictionary[Chain, dict[Places, list[Decoder]]] = WeakKeyDictionary()


def borrow(tree: Chain, places: Places) -> Decoder:
    """A decoder that no other generation has: one given back, or a new one.

    Raises:
        InarchError: IA108 for a tree that was compiled or sharded in place.
    """
    with _LOCK:
        idle = _IDLE.get(tree, {}).get(places, [])
        decoder = idle.pop() if idle else None
    return decoder if decoder is not None and decoder.fits(tree) else Decoder(tree, places)


def give_back(tree: Chain, places: Places, decoder: Decoder) -> None:
    """Keep a decoder for the next generation. A model that is dropped takes it along."""
    decoder.forget()
    with _LOCK:
        idle = _IDLE.setdefault(tree, {}).setdefault(places, [])
        if not idle:
            idle.append(decoder)
