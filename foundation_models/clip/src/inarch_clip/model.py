"""CLIP as a model of texts and images: what `inarch.load` makes of its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from inarch.adapters import Example, Model
from inarch.errors import InarchError
from inarch.nn import causal_mask
from inarch.tree import Chain, branch
from inarch.weights import Checkpoint
from inarch_clip.checkpoint import ClipCheckpoint
from inarch_clip.config import ClipConfig, TextConfig, parse
from inarch_clip.images import ImageProcessor, Picture
from inarch_clip.states import with_hidden
from inarch_clip.tokens import ClipTokenizer
from inarch_clip.tree import clip

_SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
_TEXT = {**_SMALL, "num_hidden_layers": 2, "vocab_size": 31, "max_position_embeddings": 12}
_VISION = {**_SMALL, "num_hidden_layers": 2, "image_size": 8, "patch_size": 4}


class Clip(Model):
    """CLIP, whole or one of its towers, with or without the projection into the shared space."""

    config: ClipConfig
    ignored = ("*.embeddings.position_ids",)
    in_stretches = ("",)

    @classmethod
    def reading(cls, checkpoint: Checkpoint) -> Checkpoint:
        return ClipCheckpoint(checkpoint)

    @classmethod
    def parse_config(cls, config: dict[str, Any]) -> ClipConfig:
        return parse(config)

    @classmethod
    def build(cls, config: ClipConfig) -> dict[str, Chain]:
        return {"": clip(config)}

    @classmethod
    def tiny_configs(cls) -> Mapping[str, dict[str, Any]]:
        text = {"model_type": "clip_text_model", "eos_token_id": 30, **_TEXT}
        towers = {"text_config": text, "vision_config": _VISION, "projection_dim": 6}
        return {
            "whole": {"model_type": "clip", **towers},
            "text": text,
            "gelu": {**text, "hidden_act": "gelu", "eos_token_id": 2},
        }

    def examples(self) -> Sequence[Example]:
        """Two texts, one of them padded, and two images: what the tree takes of them."""
        inputs: dict[str, Any] = {}
        if self.config.text is not None:
            rows = [[0, 5, 6, 7, 30], [0, 9, 30, 30, 30]]
            ids = torch.tensor(rows, device=self.device) % self.config.text.vocab_size
            inputs |= {"input_ids": ids, "mask": None}
        if self.config.vision is not None:
            c = self.config.vision
            shape = (2, c.num_channels, c.image_size, c.image_size)
            count = torch.arange(torch.Size(shape).numel(), device=self.device).float()
            inputs["pixel_values"] = torch.sin(count * 0.7).view(shape).to(self.dtype)
        return [Example("", inputs)]

    # One tower

    @cached_property
    def text_tree(self) -> Chain:
        """Token ids to states and pooled states, with the adapters in this model.

        Raises:
            InarchError: IA506 for a model of images alone.
        """
        if self.config.text is None:
            raise self._lacks("text tower", "it is a vision model")
        return self.tree if self.config.vision is None else _tower(self.tree, "text", "input_ids")

    @cached_property
    def vision_tree(self) -> Chain:
        """Images to states of patches and a pooled state, with the adapters in this model.

        Raises:
            InarchError: IA506 for a model of texts alone.
        """
        if self.config.vision is None:
            raise self._lacks("vision tower", "it is a text model")
        alone = self.config.text is None
        return self.tree if alone else _tower(self.tree, "image", "pixel_values")

    @cached_property
    def image_processor(self) -> ImageProcessor:
        """What is done to images: as the checkpoint's folder says."""
        path = None if self.checkpoint is None else self.checkpoint.path
        size = 224 if self.config.vision is None else self.config.vision.image_size
        return ImageProcessor.from_folder(path, size)

    def __call__(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        **inputs: Any,
    ) -> Tensor:
        """How well each text suits each image, as logits, [images, texts].

        Args:
            input_ids: [texts, time].
            pixel_values: [images, channels, size, size], as `image_processor` makes them.
            attention_mask: [texts, time], 0 for padding.
            inputs: what adapters ask for beside.

        Raises:
            InarchError: IA506 for a checkpoint of one tower, IA505 for inputs of other shapes.
        """
        text, vision = self.text_tree, self.vision_tree  # each refuses where its tower is missing
        mask = self._mask(input_ids, attention_mask)
        self.refuse_batch(len(input_ids), text)
        self.refuse_batch(len(pixel_values), vision)
        return self.tree(input_ids, self._pixels(pixel_values), mask=mask, **inputs)

    # Texts

    @torch.inference_mode()
    def embed_text(
        self,
        texts: str | Sequence[str],
        *,
        normalise: bool = False,
        truncate: bool = False,
        **inputs: Any,
    ) -> Tensor:
        """Texts as vectors in the space they share with images.

        Args:
            texts: one text or several.
            normalise: make each vector one long.
            truncate: cut texts that are too long, keeping their end token, as transformers does
                when asked.
            inputs: what adapters ask for beside.

        Returns:
            [texts, projection_dim], or [texts, width] without a projection.

        Raises:
            InarchError: IA506 without a text tower or tokenizer, IA543 for no text or one that is
                too long.
        """
        tree, ids = self.text_tree, self.token_ids(texts, truncate=truncate)
        self.refuse_batch(len(ids), tree)
        pooled = tree(ids, mask=None, **inputs)[1]
        return F.normalize(pooled, dim=-1) if normalise else pooled

    def token_ids(self, texts: str | Sequence[str], *, truncate: bool = False) -> Tensor:
        """The token ids of texts, [texts, time], filled up to the longest.

        Raises:
            InarchError: as `embed_text`.
        """
        self.text_tree  # noqa: B018 (refuses where there is none)
        config: Any = self.config.text
        rows = _ids(self._tokenizer(), texts, config, truncate)
        return self._tokenizer().rows(rows).to(self.device)

    # Images

    @torch.inference_mode()
    def embed_image(
        self,
        images: Picture | Sequence[Picture],
        *,
        normalise: bool = False,
        **inputs: Any,
    ) -> Tensor:
        """Images as vectors in the space they share with texts.

        Args:
            images: paths, images of Pillow, arrays or tensors: one, or a list of them.
            normalise: make each vector one long.
            inputs: what adapters ask for beside.

        Returns:
            [images, projection_dim], or [images, width] without a projection.

        Raises:
            InarchError: IA506 without a vision tower, IA542 for what is no image.
        """
        tree, pixels = self.vision_tree, self.pixels(images)
        self.refuse_batch(len(pixels), tree)
        pooled = tree(pixels, **inputs)[1]
        return F.normalize(pooled, dim=-1) if normalise else pooled

    def pixels(self, images: Picture | Sequence[Picture]) -> Tensor:
        """Images as the vision tower takes them, [images, channels, size, size].

        Raises:
            InarchError: as `embed_image`.
        """
        self.vision_tree  # noqa: B018 (refuses where there is none)
        several = isinstance(images, list | tuple)
        given: list[Any] = list(images) if several else [images]  # pyright: ignore
        if not given:
            raise InarchError(
                "IA542", "there is no image", why="the list is empty", remedy="pass at least one"
            )
        return self._pixels(self.image_processor(given).to(self.device, self.dtype))

    @torch.inference_mode()
    def image_states(self, pixel_values: Tensor, *, early: int = 1) -> Tensor:
        """The states of patches before the last layers, which image models read.

        Args:
            pixel_values: as `pixels` gives them.
            early: how many layers are left out.

        Returns:
            [images, 1 + patches, width], unnormed.

        Raises:
            InarchError: IA506 without a vision tower, IA541 where there are not so many layers.
        """
        tree = with_hidden(self.vision_tree, early, tower="vision_model")
        return tree(self._pixels(pixel_values))[-1]

    @torch.inference_mode()
    def classify(
        self,
        image: Picture | Sequence[Picture],
        labels: Sequence[str],
        *,
        template: str = "{}",
        **inputs: Any,
    ) -> dict[str, float] | list[dict[str, float]]:
        """How likely each label is for an image, without training on them.

        Args:
            image: one image, or a list of them.
            labels: texts to choose from.
            template: what stands around each, such as "a photo of a {}".
            inputs: what adapters ask for beside.

        Returns:
            For each label its probability, which sum to 1, the likeliest first; a list of these for
            a list of images.

        Raises:
            InarchError: IA506 for a checkpoint of one tower, IA542 for what is no image, IA543 for
                no labels, a label twice, or a template with no place for it.
        """
        names = _checked(labels, template)
        texts = [template.replace("{}", name) for name in names]
        ids, pixels = self.token_ids(texts), self.pixels(image)
        chances = self(ids, pixels, **inputs).float().softmax(dim=-1).tolist()
        rows = [
            dict(sorted(zip(names, row, strict=True), key=lambda pair: -pair[1])) for row in chances
        ]
        return rows if isinstance(image, list | tuple) else rows[0]

    # What is checked

    def _mask(self, ids: Tensor, padding: Tensor | None) -> Tensor | None:
        if ids.dim() != 2 or ids.is_floating_point():
            why = f"these are {ids.dtype} {list(ids.shape)}"
            raise InarchError(
                "IA505",
                "token ids are integers, [texts, time]",
                where="input_ids",
                why=why,
                remedy="let `model.token_ids` make them",
            )
        if padding is None:
            return None
        if padding.shape != ids.shape:
            why = f"the ids are {list(ids.shape)}, the mask {list(padding.shape)}"
            raise InarchError(
                "IA505",
                "the mask is not of these ids",
                where="attention_mask",
                why=why,
                remedy="give one number for each token id",
            )
        return causal_mask(*ids.shape[1:], ids.shape[1], padding=padding.bool(), device=ids.device)

    def _pixels(self, values: Tensor) -> Tensor:
        c: Any = self.config.vision
        wanted = [c.num_channels, c.image_size, c.image_size]
        if values.dim() != 4 or list(values.shape[1:]) != wanted:
            raise InarchError(
                "IA505",
                "these images are not of the size the vision tower was made for",
                where="pixel_values",
                why=f"they are {list(values.shape)}, and {['images', *wanted]} is needed",
                remedy="let `model.pixels` make them, with the preprocessor_config.json of the "
                "checkpoint",
            )
        return values

    def _tokenizer(self) -> ClipTokenizer:
        if not isinstance(self.tokenizer, ClipTokenizer):
            raise InarchError(
                "IA506",
                "this model has no tokenizer",
                where="" if self.checkpoint is None else str(self.checkpoint.path),
                why="its checkpoint has neither tokenizer.json nor vocab.json and merges.txt",
                remedy="put them beside config.json, or call `model.text_tree` with token ids",
            )
        return self.tokenizer

    def _lacks(self, what: str, why: str) -> InarchError:
        return InarchError(
            "IA506",
            f"this CLIP has no {what}",
            where="" if self.checkpoint is None else str(self.checkpoint.path),
            why=why,
            remedy="load a checkpoint of both towers",
        )


def _tower(tree: Chain, which: str, takes: str) -> Chain:
    return branch(tree, f"{which}.tower", [takes])


def _ids(
    tokenizer: ClipTokenizer, texts: str | Sequence[str], config: TextConfig, truncate: bool
) -> list[list[int]]:
    """Token ids of each text, none longer than the tower's positions."""
    given: list[Any] = list(texts) if isinstance(texts, list | tuple) else [texts]
    if not given or not all(isinstance(text, str) for text in given):
        why = "the list is empty" if not given else "what was given is not text"
        raise InarchError("IA543", "there are no texts", why=why, remedy="pass at least one text")
    rows = [tokenizer.encode(text) for text in given]
    most = config.max_position_embeddings
    for text, row in zip(given, rows, strict=True):
        if len(row) > most and not truncate:
            raise InarchError(
                "IA543",
                "a text is too long for the text tower",
                where=text[:60] + "...",
                why=f"it has {len(row)} tokens with those around it, and {most} have a position",
                remedy="shorten it, or pass truncate=True",
            )
    return [row if len(row) <= most else [*row[: most - 1], row[-1]] for row in rows]


def _checked(labels: Sequence[str], template: str) -> list[str]:
    names = [] if isinstance(labels, str) else list(labels)
    wrong = ""
    if not names:
        wrong = "labels are a list of texts, at least one"
    elif len(set(names)) != len(names):
        wrong = "a label stands there twice"
    elif "{}" not in template:
        wrong = f"the template {template!r} has no {{}}, where a label stands"
    if wrong:
        raise InarchError(
            "IA543",
            "there is nothing to choose from",
            where="labels",
            why=wrong,
            remedy='classify(image, ["cat", "dog"], template="a photo of a {}")',
        )
    return names
