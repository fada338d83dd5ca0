"""Textual inversion as an adapter: vectors, and the words of a text that stand for them.

Source: Gal et al. 2022, "An Image is Worth One Word", arXiv:2208.01618, section 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from inarch.adapters import Adapter, SiteView, TargetSite
from inarch.adapters.vocabulary import Learned
from inarch.errors import InarchError
from inarch.tree import Edit
from inarch.weights import WeightsHeader, write_adapter
from inarch_textual_inversion.layout import PAIRS, TOKEN, count, layout

ROLE = "embedding.tokens"


class Options(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What `inarch.adapter("textual-inversion", ...)` takes.

    Attributes:
        token: the text that stands for all vectors: by default the one in the file, or else the
            adapter's name in angle brackets, `<name>`.
        tokens: a text of its own for each vector, instead.
        encoder: the tree whose embedding is meant, where several are as wide as the vectors.
        vectors: how many are learned, for an adapter that is to be trained.
        initial: a text whose vectors they begin as, again and again where they are more.
    """

    token: str | None = None
    tokens: tuple[str, ...] = ()
    encoder: str | None = None
    vectors: int = 1
    initial: str | None = None

    def __post_init__(self) -> None:
        if self.vectors < 1:
            raise ValueError("at least 1 vector is learned")
        if self.token is not None and self.tokens:
            raise ValueError("either token or tokens")
        if any(not text or text != text.strip() for text in (self.token or "-", *self.tokens)):
            raise ValueError("a token is text without space around it")


class Vectors(nn.Module):
    """Learned vectors, [vectors, width], given whatever comes in.

    Args:
        shape: as in the file: [width] is one vector.
        begin: whose rows untrained vectors begin as.
        rows: of it, as many as vectors; empty for the mean of all its rows.
    """

    def __init__(
        self, shape: tuple[int, ...], begin: nn.Module | None = None, rows: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.empty(shape))
        self._begin = (begin, tuple(rows))  # in a tuple, so that it is no child

    def forward(self, *_inputs: Tensor) -> Tensor:
        return self.vectors.view(-1, self.vectors.shape[-1])

    def reset_parameters(self) -> None:
        """As the base's rows that were named; the mean of all where none were."""
        base, rows = self._begin
        if base is None:
            nn.init.zeros_(self.vectors)
            return
        with torch.no_grad():
            weight = base.get_parameter("weight")
            self.vectors.copy_(weight[list(rows)] if rows else weight.float().mean(0))


class TextualInversion(Adapter):
    """New words for a model that reads text: their vectors stand beside its embedding."""

    Options = Options
    options: Options
    for_training = ("vectors", "initial")
    conversion = (
        'safetensors.torch.save_file({"emb_params": torch.load(PATH, weights_only=True)'
        '["string_to_param"]["*"].detach().clone()}, "word.safetensors") for a file of the web '
        "interface; safetensors.torch.save_file(torch.load(PATH, weights_only=True), "
        '"word.safetensors") for one of diffusers'
    )

    def __init__(self, name: str, options: Options) -> None:
        super().__init__(name, options)
        self._lessons: list[Learned] = []
        self._token = options.token or f"<{name}>"

    def edits(self, sites: SiteView, weights: WeightsHeader | None) -> Iterable[Edit]:
        embeddings = sites.find([ROLE], modules=True)
        self._lessons = []
        if weights is None:
            chosen = [e for e in embeddings if self.options.encoder in (None, e.tree)]
            if not chosen:
                raise self._unsuited("its trees that read text have other names", embeddings)
            edits = [self._fresh(site, sites) for site in chosen]
        else:
            edits = [
                self._edit(site, Vectors(weights.shape(key)), fills={"vectors": key})
                for site, key in self._places(embeddings, weights)
            ]
        return edits

    def learned(self) -> Sequence[Learned]:
        return self._lessons

    # Where vectors belong

    def _places(
        self, embeddings: Sequence[TargetSite], weights: WeightsHeader
    ) -> list[tuple[TargetSite, str]]:
        """Each tensor of the file with the embedding it stands beside."""
        found = layout(weights)
        self._token = self.options.token or found.token or self._token
        if not found.paired:
            [key] = found.keys
            return [(self._suited(embeddings, weights, key), key)]
        if len(embeddings) != len(found.keys):
            why = f"the file is for {len(found.keys)} text encoders, the model has "
            raise self._unsuited(why + str(len(embeddings)), embeddings, weights)
        for site, key in zip(embeddings, found.keys, strict=True):
            if weights.shape(key)[-1] != _width(site):
                why = f"`{key}` is {weights.shape(key)[-1]} wide, `{site.tree}` {_width(site)}"
                raise self._unsuited(why, embeddings, weights)
        return list(zip(embeddings, found.keys, strict=True))

    def _suited(
        self, embeddings: Sequence[TargetSite], weights: WeightsHeader, key: str
    ) -> TargetSite:
        """The one embedding as wide as the vectors."""
        width = weights.shape(key)[-1]
        named = [e for e in embeddings if self.options.encoder in (None, e.tree)]
        suited = [e for e in named if _width(e) == width]
        if len(suited) == 1:
            return suited[0]
        widths = ", ".join(f"{e.tree or 'the model'} {_width(e)}" for e in embeddings)
        many = f"{len(suited)} embeddings are {width} wide"
        why = many if suited else f"`{key}` is {width} wide, and there are: {widths}"
        raise self._unsuited(why, suited or embeddings, weights)

    def _unsuited(
        self, why: str, embeddings: Sequence[TargetSite], weights: WeightsHeader | None = None
    ) -> InarchError:
        name = embeddings[-1].tree
        several = len(embeddings) > 1
        return InarchError(
            "IA472",
            f"the vectors of `{self.name}` suit none of the model's embeddings",
            where=f"adapter `{self.name}`" if weights is None else str(weights.path),
            why=why,
            remedy=f'say which: encoder="{name}"' if several else "load the base it was learned on",
        )

    # What is put there

    def _edit(self, site: TargetSite, vectors: Vectors, **options: Any) -> Edit:
        provided = f"{self.name}_vectors"
        words = self._words(count(tuple(vectors.vectors.shape)))
        self._lessons.append(Learned(site.address, words, provided))
        return Edit(
            address=site.tree,
            kind="provide",
            adapter=self.name,
            step=vectors,
            names=(provided,),
            label="vectors",
            **options,
        )

    def _words(self, number: int) -> tuple[tuple[str, ...], ...]:
        """The tokens: of one word, numbered as diffusers does, or a word each."""
        if not self.options.tokens:
            rest = (f"{self._token}_{i}" for i in range(1, number))
            return ((self._token, *rest),)
        if len(self.options.tokens) != number:
            raise InarchError(
                "IA473",
                f"{len(self.options.tokens)} tokens don't go with {number} vectors",
                where=f"adapter `{self.name}`: tokens",
                why="each vector has a token of its own there",
                remedy='give as many, or one for all: token="<word>"',
            )
        return tuple((token,) for token in self.options.tokens)

    def _fresh(self, site: TargetSite, sites: SiteView) -> Edit:
        number = max(self.options.vectors, len(self.options.tokens))
        rows = self._initial(site, sites)
        rows = [rows[i % len(rows)] for i in range(number)] if rows else []
        vectors = Vectors((number, _width(site)), site.module, rows)
        return self._edit(site, vectors, reads=(site.address,))

    def _initial(self, site: TargetSite, sites: SiteView) -> list[int]:
        """The ids of the text that the vectors begin as."""
        text, tokenizer = self.options.initial, sites.tokenizers.get(site.tree)
        if text is None:
            return []
        ids = [] if tokenizer is None else tokenizer.encode(text, special=False)
        if not ids:
            raise InarchError(
                "IA473",
                f"the vectors can't begin as {text!r}",
                where=f"adapter `{self.name}`: initial",
                why="the model has no tokenizer" if tokenizer is None else "it has no tokens",
                remedy="leave `initial` out, and they begin as the mean of all",
            )
        return ids

    def write(self, folder: Path, edges: Mapping[str, nn.Module], about: Mapping[str, str]) -> None:
        """Save as diffusers does, or for two text encoders as kohya-ss: learned_embeds.safetensors.

        Raises:
            InarchError: IA473 where each vector has a token, which no layout holds, and for more
                than two text encoders.
        """
        tensors = [module.get_parameter("vectors").detach() for module in edges.values()]
        if self.options.tokens or len(tensors) > 2:
            raise InarchError(
                "IA473",
                "no published layout holds this textual inversion",
                where=f"adapter `{self.name}`",
                why="a file has one token, and vectors for one or two text encoders",
                remedy='learn one word: token="<word>", vectors=4',
            )
        keys = (self._token,) if len(tensors) == 1 else PAIRS[0]
        write_adapter(
            folder / "learned_embeds.safetensors",
            dict(zip(keys, tensors, strict=True)),
            about,
            {TOKEN: self._token},
        )


def _width(site: TargetSite) -> int:
    module = site.module
    return 0 if module is None else module.get_parameter("weight").shape[-1]
