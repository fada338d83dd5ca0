"""Words that adapters teach: tokens of the adapted model's tokenizer, and vectors in its tree.

An adapter's edits provide the vectors under a name of its own; here they find their place. Ids are
given in the order of the adapters' names, from where the base's tokenizer ends, so every order of a
stack is one model. The base's tokenizer and its embedding stay as they are: of an embedding, ids
that it doesn't have are looked up beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from inarch.errors import InarchError
from inarch.tree import Edit, Here, Identity, Let, Parallel, Seq, Use

if TYPE_CHECKING:
    from inarch.adapters.adapter import SiteView
    from inarch.adapters.member import Member
    from inarch.nn.tokenizer import Tokenizer

OWNER = "vocabulary"
"""Whose edits these are, in the source."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What one adapter teaches one embedding.

    Attributes:
        site: the address of an embedding of token ids.
        words: each of one or several tokens; the first, written in a text, stands for all.
        vectors: the name that an edit of the adapter provides them under, [tokens, width], in the
            order of the words.
    """

    site: str
    words: tuple[tuple[str, ...], ...]
    vectors: str

    @property
    def tokens(self) -> list[str]:
        return [token for word in self.words for token in word]


def taught(sites: SiteView, members: Iterable[Member]) -> tuple[list[Edit], dict[str, Tokenizer]]:
    """The edits and the tokenizers, by tree, that members' words ask for.

    Args:
        sites: of the pristine model, with its tokenizers.
        members: those that act in the model.

    Raises:
        InarchError: IA400 for a token that the tokenizer or another member has.
    """
    found: dict[str, list[tuple[str, Learned]]] = {}
    for member in sorted(members, key=lambda m: m.name):
        for learned in member.adapter.learned():
            found.setdefault(learned.site, []).append((member.name, learned))
    edits: list[Edit] = []
    grown: dict[str, Tokenizer] = {}
    for site, lessons in found.items():
        tokenizer = sites.tokenizers.get(sites.all[site].tree)
        first = _size(tokenizer, sites.all[site].module)
        _check(lessons, tokenizer)
        edits.append(_looked_up(site, first, [learned for _, learned in lessons]))
        if tokenizer is not None:
            words = [word for _, learned in lessons for word in learned.words]
            grown[sites.all[site].tree] = tokenizer.grown(words)
    return edits, grown


def with_words(edits: Sequence[Edit], words: Sequence[Edit]) -> list[Edit]:
    """The edits of a stack, in order, with those of `taught` at their places.

    A learned word replaces what an embedding gives and what others add to it, and comes before
    what is made of that, such as a prefix.
    """
    whole = list(edits)
    for word in words:
        here = (
            i
            for i, edit in enumerate(whole)
            if edit.address == word.address and edit.kind not in ("add", "scale")
        )
        whole.insert(next(here, len(whole)), word)
    return whole


def _looked_up(site: str, first: int, lessons: Sequence[Learned]) -> Edit:
    """The edit of an embedding that gives each taught id its vector, whatever else stands there."""
    ids, steps = first, list[Any]()
    for learned in lessons:
        values = Parallel(Identity(), Use("token_ids"), Use(learned.vectors))
        steps.append(Seq(values, partial(with_learned, first=ids)))
        ids += len(learned.tokens)
    known = partial(in_vocabulary, size=first)
    return Edit.wrap(site, Seq(Let("token_ids"), known, Here(), *steps), OWNER)


def in_vocabulary(input_ids: Tensor, *, size: int = 0) -> Tensor:
    """Ids below `size` as they are, and 0 for those that were learned."""
    return input_ids.masked_fill(input_ids >= size, 0)


def with_learned(x: Tensor, token_ids: Tensor, vectors: Tensor, *, first: int = 0) -> Tensor:
    """Embeddings [..., width] with the vectors of the ids that count from `first`."""
    rows = token_ids - first
    learned = (rows >= 0) & (rows < len(vectors))
    return vectors[rows.clamp(0, len(vectors) - 1)].to(x.dtype).where(learned[..., None], x)


def _size(tokenizer: Tokenizer | None, module: nn.Module | None) -> int:
    """The first id that is free."""
    if tokenizer is not None:
        return tokenizer.size
    weight = None if module is None else getattr(module, "weight", None)
    return len(weight) if isinstance(weight, Tensor) else 0


def _check(lessons: Sequence[tuple[str, Learned]], tokenizer: Tokenizer | None) -> None:
    owner: dict[str, str] = {}
    for name, learned in lessons:
        for token in learned.tokens:
            known = tokenizer is not None and tokenizer.id_of(token) is not None
            if known or token in owner:
                other = "the base's tokenizer" if known else f"`{owner[token]}`"
                raise InarchError(
                    "IA400",
                    f"the token `{token}` of `{name}` is taken",
                    where=f"adapter `{name}`",
                    why=f"{other} has it",
                    remedy=f'give it another: token="<{name}_2>"',
                )
            owner[token] = name
