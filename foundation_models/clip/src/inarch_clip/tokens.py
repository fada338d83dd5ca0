"""CLIP's tokenizer: from tokenizer.json, or from vocab.json and merges.txt.

Equal to transformers' `CLIPTokenizer`: text is normalised (NFC, white space, lower case), split by
the paper's pattern, and merged by byte-level BPE whose words end in `</w>`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, decoders, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from torch import Tensor

from inarch.errors import InarchError
from inarch.nn import Tokenizer
from inarch.weights.checkpoint import read_json

_WORD = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
_END = "</w>"


class ClipTokenizer(Tokenizer):
    """A CLIP's tokenizer; each text stands between `bos_token` and `eos_token`."""

    @classmethod
    def from_folder(cls, path: Path) -> ClipTokenizer:
        """The tokenizer of a folder with tokenizer.json, or with vocab.json and merges.txt.

        Raises:
            InarchError: IA501 where they can't be read.
        """
        if (path / "tokenizer.json").is_file():
            made = super().from_folder(path)
        else:
            made = cls(_backend(path))
        settings = _settings(path)
        made.bos_token = settings.get("bos_token") or "<|startoftext|>"
        made.eos_token = settings.get("eos_token") or "<|endoftext|>"
        made.pad_token = settings.get("pad_token") or made.eos_token
        if not isinstance(made, ClipTokenizer) or made.bos_id is None or made.eos_id is None:
            raise InarchError(
                "IA501",
                "the vocabulary has no token that begins or ends a text",
                where=str(path),
                why=f"{made.bos_token} and {made.eos_token} are asked for",
                remedy="put the files beside each other that were published together",
            )
        return made

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of token ids, a space after each word."""
        return super().decode(ids, skip_special=skip_special).replace(_END, " ").strip()

    def rows(self, texts: Sequence[Sequence[int]], length: int | None = None) -> Tensor:
        """Token ids of several texts as one tensor, filled up with the padding on the right.

        Args:
            texts: the ids of each, with what stands around them.
            length: of each row; None is the longest text's.

        Returns:
            [texts, length], int64.
        """
        width = max(map(len, texts)) if length is None else length
        pad = self.eos_id if self.pad_id is None else self.pad_id
        return torch.tensor([[*ids, *[pad or 0] * (width - len(ids))] for ids in texts])


def has_tokenizer(path: Path) -> bool:
    """Whether a folder has the files of a CLIP's tokenizer."""
    pair = all((path / name).is_file() for name in ("vocab.json", "merges.txt"))
    return pair or (path / "tokenizer.json").is_file()


def _settings(path: Path) -> dict[str, str]:
    """The special tokens' texts, from the two files that may hold them."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (path / name).is_file():
            settings |= read_json(path / name)
    texts: dict[str, str] = {}
    for name in ("bos_token", "eos_token", "pad_token"):
        value = settings.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            texts[name] = value
    return texts


def _backend(path: Path) -> Backend:
    try:
        vocabulary, merges = BPE.read_file(str(path / "vocab.json"), str(path / "merges.txt"))
        model = BPE(
            vocabulary,
            merges,
            continuing_subword_prefix="",
            end_of_word_suffix=_END,
            fuse_unk=False,
            unk_token=_settings(path).get("eos_token", "<|endoftext|>"),
        )
    except Exception as error:  # the library raises bare Exception
        raise InarchError(
            "IA501",
            "`vocab.json` and `merges.txt` can't be read",
            where=str(path),
            why=str(error),
            remedy="put both files there as they were published",
        ) from None
    backend = Backend(model)
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    split = pre_tokenizers.Split(Regex(_WORD), behavior="removed", invert=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    _surround(backend, _settings(path))
    return backend


def _surround(backend: Backend, settings: dict[str, str]) -> None:
    """Let the special tokens be found in text, and stand around it."""
    bos = settings.get("bos_token", "<|startoftext|>")
    eos = settings.get("eos_token", "<|endoftext|>")
    special = [bos, eos, settings.get("pad_token", eos)]
    known = [token for token in dict.fromkeys(special) if backend.token_to_id(token) is not None]
    backend.add_special_tokens(known)
    first, last = backend.token_to_id(bos), backend.token_to_id(eos)
    if first is not None and last is not None:
        backend.post_processor = processors.RobertaProcessing(
            (eos, last), (bos, first), trim_offsets=False, add_prefix_space=False
        )
