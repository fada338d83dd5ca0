"""The tokenizer a GGUF header describes, rebuilt with the `tokenizers` library.

A header has the vocabulary, the merges and the kinds of tokens; how text is split before merging
it only names. The expressions are llama.cpp's for the names that files of this architecture have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, decoders, pre_tokenizers
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE

from inarch.errors import InarchError
from inarch.nn.tokenizer import Tokenizer

_CONTROL, _USER_DEFINED = 3, 4
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "smaug-bpe": _LLAMA3,
    "dbrx": _LLAMA3,
    "tekken": _TEKKEN,
}
# llama.cpp also parts digits for `smollm`, which shows in white space before a digit and nowhere
# else. transformers does not when it reads a GGUF file, and reading as it does was asked for.
_PLAIN = ("default", "gpt-2", "gpt2", "smollm", "")


def tokenizer_of(fields: Mapping[str, Any], where: str) -> Tokenizer | None:
    """The tokenizer of a file's metadata; None where the file has none.

    Raises:
        InarchError: IA253 for a kind of tokenizer, or a way of splitting text, that is not known.
    """
    kind = fields.get("tokenizer.ggml.model")
    if kind is None:
        return None
    tokens: list[str] = list(fields["tokenizer.ggml.tokens"])
    if kind == "gpt2":
        backend = _byte_level(tokens, fields, where)
    elif kind == "llama":
        backend = _sentencepiece(tokens, fields)
    else:
        raise _unknown(f"tokenizers of kind `{kind}`", f"{where}: tokenizer.ggml.model")
    _add_specials(backend, tokens, fields.get("tokenizer.ggml.token_type", ()), kind == "gpt2")

    def token(name: str) -> str | None:
        number = fields.get(f"tokenizer.ggml.{name}_token_id")
        return None if number is None else tokens[int(number)]

    return Tokenizer(
        backend,
        bos_token=token("bos"),
        eos_token=token("eos"),
        pad_token=token("padding"),
        chat_template=fields.get("tokenizer.chat_template"),
        add_bos=bool(fields.get("tokenizer.ggml.add_bos_token", kind == "llama")),
        add_eos=bool(fields.get("tokenizer.ggml.add_eos_token", False)),
    )


def _byte_level(tokens: Sequence[str], fields: Mapping[str, Any], where: str) -> Backend:
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    split = str(fields.get("tokenizer.ggml.pre", ""))
    merges = [tuple(m.split(" ", 1)) for m in fields.get("tokenizer.ggml.merges", ())]
    spelled = [t if set(t) <= alphabet else _spelled(t) for t in tokens]
    vocabulary = {token: i for i, token in enumerate(spelled)}
    backend = Backend(BPE(vocabulary, merges, ignore_merges=split in _SPLITS))
    if split in _PLAIN:
        before: Any = pre_tokenizers.ByteLevel(add_prefix_space=False)
    elif split in _SPLITS:
        pieces = pre_tokenizers.Split(Regex(_SPLITS[split]), behavior="isolated")
        plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        before = pre_tokenizers.Sequence([pieces, plain])
    else:
        raise _unknown(f"the pre-tokenizer `{split}`", f"{where}: tokenizer.ggml.pre")
    backend.pre_tokenizer = before
    backend.decoder = decoders.ByteLevel()
    return backend


def _spelled(token: str) -> str:
    """A token that is not written in the byte alphabet, written in it."""
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return "".join(piece for piece, _ in spelled.pre_tokenize_str(token))


def _sentencepiece(tokens: Sequence[str], fields: Mapping[str, Any]) -> Backend:
    vocabulary = {token: i for i, token in enumerate(tokens)}
    listed = fields.get("tokenizer.ggml.merges")
    scores = fields.get("tokenizer.ggml.scores", ())
    merges = [tuple(m.split(" ", 1)) for m in listed] if listed else _merges(vocabulary, scores)
    unknown = fields.get("tokenizer.ggml.unknown_token_id")
    backend = Backend(
        BPE(
            vocabulary,
            merges,
            fuse_unk=True,
            byte_fallback=True,
            unk_token=None if unknown is None else tokens[int(unknown)],
        )
    )
    prefixed = bool(fields.get("tokenizer.ggml.add_space_prefix", True))
    scheme = "first" if prefixed else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if prefixed else []))
    return backend


def _merges(vocabulary: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """The merges a SentencePiece vocabulary implies: every way to split each piece, best first."""
    found: list[tuple[float, int, int, int, int, tuple[str, str]]] = []
    for token, number in vocabulary.items():
        for i in range(1, len(token)):
            left, right = token[:i], token[i:]
            if left in vocabulary and right in vocabulary:
                rank = (-scores[number], -len(left), -len(right))
                found.append((*rank, vocabulary[left], vocabulary[right], (left, right)))
    return [pair for *_, pair in sorted(found)]


def _add_specials(
    backend: Backend, tokens: Sequence[str], kinds: Sequence[int], byte_level: bool
) -> None:
    """Control tokens stay whole and are special; user-defined ones stay whole and are not."""
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    control = [
        AddedToken(token, normalized=False, special=True)
        for token, kind in zip(tokens, kinds, strict=False)
        if kind == _CONTROL and (not byte_level or set(token) <= alphabet)
    ]
    known = backend.get_vocab(with_added_tokens=False)
    defined = [
        AddedToken(token, normalized=False, special=False)
        for token, kind in zip(tokens, kinds, strict=False)
        if kind == _USER_DEFINED and token in known
    ]
    backend.add_special_tokens(control)
    backend.add_tokens(defined)


def _unknown(what: str, where: str) -> InarchError:
    return InarchError(
        "IA253",
        f"{what} can't be rebuilt from a GGUF file",
        where=where,
        why="the header names how text is split and does not say it",
        remedy="use the model's transformers folder, which has a tokenizer.json",
    )
