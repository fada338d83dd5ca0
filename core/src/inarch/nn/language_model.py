"""Language models: token ids to logits, and prompts or messages to text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from inarch.adapters.example import Example
from inarch.adapters.model import Model
from inarch.adapters.row_edges import other_batch
from inarch.adapters.rows import Row
from inarch.errors import InarchError
from inarch.nn.answer import Answer
from inarch.nn.attention import causal_mask, positions_of
from inarch.nn.capture import captured_addresses, capturing
from inarch.nn.decoder import BEGINS, Places
from inarch.nn.generation import Generation, ids_of, refuse_unknown, stops_of
from inarch.nn.mixed import Batch, batches, in_order
from inarch.nn.sampling import Sampling
from inarch.nn.tokenizer import Messages, Tokenizer

Prompt = str | Messages


class LanguageModel(Model):
    """A model whose tree takes token ids and asks for `positions` and `mask`.

    Its manifest has the roles `attention.attend` and `head`.
    """

    @property
    def window(self) -> int | None:
        """How many positions back attention sees; None is all of them."""
        return getattr(self.config, "sliding_window", None)

    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        capture: Sequence[str],
        **inputs: Any,
    ) -> tuple[Tensor, dict[str, Any]]: ...
    @overload
    def __call__(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **inputs: Any
    ) -> Tensor: ...
    def __call__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        capture: Sequence[str] = (),
        **inputs: Any,
    ) -> Tensor | tuple[Tensor, dict[str, Any]]:
        """Logits of every position, [batch, time, vocabulary].

        Args:
            input_ids: [batch, time].
            attention_mask: [batch, time], 0 for padding on either side.
            capture: roles or address patterns of sites; what flows there is given as well, by
                address: `logits, seen = model(ids, capture=["block"])`.
            inputs: what adapters ask for beside.

        Raises:
            InarchError: IA402 for a capture that matches nothing, IA505 for ids of another shape,
                or a mask that is not theirs, IA513 for another batch than one of `rows`.
        """
        if not _are(input_ids, dim=2) or input_ids.dtype not in (torch.int32, torch.int64):
            raise InarchError(
                "IA505",
                "token ids are integers, [batch, time]",
                where="input_ids",
                why=f"what is given is {_described(input_ids)}",
                remedy="add a batch dimension: input_ids[None]"
                if _are(input_ids, dim=1)
                else "torch.tensor([[1, 2, 3]])",
            )
        batch, time = input_ids.shape
        if self.row_adapters is not None and batch != len(self.row_adapters):
            raise other_batch(len(self.row_adapters), batch)
        padding, positions = None, torch.arange(time, device=input_ids.device)[None]
        if attention_mask is not None:
            if not _are(attention_mask, dim=2) or attention_mask.shape != input_ids.shape:
                raise InarchError(
                    "IA505",
                    "the attention mask is not of these token ids",
                    where="attention_mask",
                    why=f"the ids are {[batch, time]}, the mask is {_described(attention_mask)}",
                    remedy="give one number for each token id",
                )
            if not bool(attention_mask.all()):
                padding = attention_mask.bool()
                positions = positions_of(padding)
        mask = causal_mask(time, time, padding=padding, window=self.window, device=input_ids.device)
        begins = {BEGINS: True} if BEGINS in self.tree.form.needs else {}
        given = {"positions": positions, "mask": mask, **begins, **inputs}
        if not capture:
            return self.tree(input_ids, **given)
        tree, addresses = capturing(self.tree, captured_addresses(self, capture))
        logits, *values = tree(input_ids, **given)
        return logits, dict(zip(addresses, values, strict=True))

    def encode(self, prompt: Prompt) -> list[int]:
        """The token ids of a text as it is, or of messages in the checkpoint's chat template.

        Raises:
            InarchError: IA501 to IA506.
        """
        return _encoded(self._tokenizer(), prompt)

    def examples(self) -> Sequence[Example]:
        """Two rows of equal length, and two of which one is filled up on the left."""
        ids = torch.tensor([[1, 5, 2, 8, 3, 0, 4], [6, 2, 7, 7, 1, 4, 3]], device=self.device)
        padding = torch.ones_like(ids, dtype=torch.bool)
        padding[1, :3] = False
        time = ids.shape[1]
        plain = causal_mask(time, time, window=self.window, device=ids.device)
        padded = causal_mask(time, time, padding=padding, window=self.window, device=ids.device)
        straight = torch.arange(time, device=ids.device)[None]
        return (
            Example("", {"input_ids": ids, "positions": straight, "mask": plain}),
            Example("", {"input_ids": ids, "positions": positions_of(padding), "mask": padded}),
        )

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        stream: bool = False,
        compile: bool = False,
        adapters: Sequence[Row] | None = None,
    ) -> str | list[str] | Iterator[str]:
        """Text that continues a prompt or answers messages, or a list of either.

        Args:
            prompt: text, messages (`{"role": "user", "content": "..."}`), or a list of either,
                which runs as one batch.
            max_new_tokens: at most so many.
            temperature: 0 takes the likeliest token each time.
            top_k, top_p, min_p, repetition_penalty, seed: see `Sampling`.
            stop: texts to stop before.
            stream: give the text in pieces as it is made, for one prompt.
            compile: compile the step from token to token, once for each structure, batch and
                capacity (the next power of two of prompt and `max_new_tokens` together). That
                takes seconds once and pays where many tokens follow.
            adapters: what each prompt has, instead of all that the model has: see `generate_ids`.

        Returns:
            The text without the prompt; a list of texts for a list; an iterator when streaming.

        Raises:
            InarchError: IA501 to IA506, IA512; IA403 and IA513 for `adapters`; IA108 after `fsdp`.
        """
        sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
        self._tokenizer()
        many = _is_batch(prompt)
        prompts: list[Any] = list(prompt) if many else [prompt]
        parts = self._batches(adapters, len(prompts), compile)
        if not prompts:
            return []
        models = dict(sorted((i, part.model) for part in parts for i in part.numbers)).values()
        tokenizers = [model._tokenizer() for model in models]
        ids = [_encoded(own, one) for own, one in zip(tokenizers, prompts, strict=True)]
        stops = _stop_texts(stop)
        if stream and many:
            raise InarchError(
                "IA506",
                "only one prompt can be streamed",
                why=f"{len(prompts)} were given",
                remedy="stream each on its own, or leave stream out",
            )
        steps = _run(parts, ids_of(ids), max_new_tokens, sampling, self.stop_ids, compile=compile)
        answers = [Answer(tokenizer, self.stop_ids, stops) for tokenizer in tokenizers]
        if stream:
            return _streamed(steps, answers[0])
        texts = _finished(steps, answers)
        return texts if many else texts[0]

    def generate_ids(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int = 128,
        sampling: Sampling | None = None,
        stop: frozenset[int] | None = None,
        compile: bool = False,
        adapters: Sequence[Row] | None = None,
    ) -> Iterator[list[int | None]]:
        """Token ids step by step, one for each prompt, None for prompts that have stopped.

        Args:
            prompts: token ids, which run as one batch.
            max_new_tokens, compile: see `generate`.
            sampling: how tokens are chosen; the likeliest each time where it is left out.
            stop: tokens that end a row; the model's own where they are left out.
            adapters: what each prompt has, instead of all that the model has: a name, None for
                the base, or several names. They run as one batch where `rows` takes them, and
                else, or compiled, as one batch for each stack. A row's tokens are those it has
                alone, in either case and with a seed too, from which each row draws for itself.

        Raises:
            InarchError: IA504 where there is nothing to begin with or nothing to generate, IA505
                for prompts that are no lists of token ids; IA512, with the second token, where the
                step can't be compiled; IA403 for an adapter that the model doesn't have, IA513 for
                other faults of `adapters`.
        """
        rows = ids_of(prompts)
        parts = self._batches(adapters, len(rows), compile)
        stops = self.stop_ids if stop is None else stops_of(stop)
        chosen = sampling or Sampling()
        return _run(parts, rows, max_new_tokens, chosen, stops, compile=compile)

    def _batches(
        self, adapters: Sequence[Row] | None, count: int, compile: bool
    ) -> list[Batch[LanguageModel]]:
        """The batches that some prompts run in."""
        if self.row_adapters is not None and len(self.row_adapters) != count:
            raise other_batch(len(self.row_adapters), count)
        if adapters is None:
            return [Batch(self, tuple(range(count)), apart=self.row_adapters is not None)]
        return batches(self, adapters, count, compile=compile)

    def _steps(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        sampling: Sampling,
        stop: frozenset[int],
        *,
        compile: bool,
        apart: bool,
    ) -> Iterator[list[int | None]]:
        """The steps of one batch: see `generate_ids` and `Generation.steps`."""
        if type(max_new_tokens) is not int or max_new_tokens < 1:
            raise InarchError(
                "IA504",
                f"max_new_tokens must be an integer, at least 1, not {max_new_tokens!r}",
                where="max_new_tokens",
                remedy="max_new_tokens=64",
            )
        if self.layout is not None and self.layout.fixed:
            raise InarchError(
                "IA108",
                "a model that was sharded with `fsdp` generates no text",
                why="that takes a tree with room for keys and values, made of the model's own",
                remedy='inarch.shard(model, "tensor"), or "replicate"',
            )
        attention = tuple(site.address for site in self.sites.find(["attention.attend"]))
        generation = Generation(
            self.tree,
            Places(attention, self.sites.find(["head"])[0].address),
            prompts,
            max_new_tokens,
            window=self.window,
            pad=self._pad_id(),
            compile=compile,
        )
        return generation.steps(sampling, stop, apart=apart)

    def _ids(self) -> int | None:
        """How many token ids there are, those that adapters taught included; None if untold."""
        size: int | None = getattr(self.config, "vocab_size", None)
        taught = sum(len(learned.tokens) for m in self.adapters for learned in m.adapter.learned())
        if size is None or not taught:
            return size
        return max(size, size + taught if self.tokenizer is None else self.tokenizer.size)

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end a text: the generation configuration's, and the tokenizer's own."""
        told: Any = None
        if self.checkpoint is not None:
            told = self.checkpoint.generation_config.get("eos_token_id")
            told = self.checkpoint.config.get("eos_token_id") if told is None else told
        ids = set(told) if isinstance(told, list) else {told}
        if self.tokenizer is not None:
            ids.add(self.tokenizer.eos_id)
        return frozenset(i for i in ids if i is not None)

    def _pad_id(self) -> int:
        return (self.tokenizer.pad_id if self.tokenizer is not None else None) or 0

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise InarchError(
                "IA506",
                "this model has no tokenizer",
                where=str(self.checkpoint.path) if self.checkpoint is not None else "",
                why="its checkpoint has no tokenizer.json",
                remedy="put tokenizer.json beside config.json, or call the model with token ids",
            )
        return self.tokenizer


def _run(
    parts: Sequence[Batch[LanguageModel]],
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling,
    stop: frozenset[int],
    *,
    compile: bool,
) -> Iterator[list[int | None]]:
    """The steps of some batches as those of one."""
    for part in parts:
        refuse_unknown({number: prompts[number] for number in part.numbers}, part.model._ids())
    steps = [
        part.model._steps(
            [prompts[number] for number in part.numbers],
            max_new_tokens,
            sampling,
            stop,
            compile=compile,
            apart=part.apart,
        )
        for part in parts
    ]
    if len(parts) == 1:
        return steps[0]
    numbers = [part.numbers for part in parts]
    return in_order(list(zip(numbers, steps, strict=True)), len(prompts))


def _streamed(steps: Iterator[list[int | None]], answer: Answer) -> Iterator[str]:
    """The pieces of one answer."""
    for [token] in steps:
        if piece := answer.push(token):
            yield piece
        if answer.ended:
            return
    if piece := answer.finish():
        yield piece


def _finished(steps: Iterator[list[int | None]], answers: Sequence[Answer]) -> list[str]:
    """The texts of all answers; no step is made once every one has ended."""
    for tokens in steps:
        for answer, token in zip(answers, tokens, strict=True):
            answer.push(token)
        if all(answer.ended for answer in answers):
            break
    for answer in answers:
        answer.finish()
    return [answer.text for answer in answers]


def _are(value: object, *, dim: int) -> bool:
    """Whether a value is a tensor of so many dimensions."""
    return isinstance(value, Tensor) and value.dim() == dim


def _described(value: object) -> str:
    """A value as errors tell of it."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}"
    return f"of type {type(value).__name__}"


def _is_batch(prompt: Prompt | Sequence[Prompt]) -> bool:
    """Whether this is a list of prompts, not one prompt or one conversation."""
    if isinstance(prompt, str) or not isinstance(prompt, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance]
        return False
    return not prompt or not isinstance(prompt[0], Mapping)


def _stop_texts(stop: str | Sequence[str]) -> tuple[str, ...]:
    given: Any = () if stop is None else stop  # pyright: ignore[reportUnnecessaryComparison]
    listed = isinstance(given, Iterable) and not isinstance(given, str)
    stops: tuple[Any, ...] = tuple(given) if listed else (given,)
    for one in stops:
        if not one or not isinstance(one, str):
            raise InarchError(
                "IA504",
                "a stop text is empty" if one == "" else f"a stop text is text, not {one!r}",
                where="stop",
                remedy="leave it out" if one == "" else 'stop=["\\n"], or generate_ids(stop={2})',
            )
    return stops


def _encoded(tokenizer: Tokenizer, prompt: Any) -> list[int]:
    if isinstance(prompt, str):
        return tokenizer.encode(prompt)
    if isinstance(prompt, Sequence) and all(isinstance(one, Mapping) for one in prompt):
        return tokenizer.encode_chat(prompt)
    raise InarchError(
        "IA505",
        f"a {type(prompt).__name__} is no prompt",
        why="a prompt is text, or a list of messages",
        remedy='generate("Once upon a time") or generate([{"role": "user", "content": "Hello"}])',
    )
