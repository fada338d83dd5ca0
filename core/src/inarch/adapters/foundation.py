"""A foundation model: trees, and what is known of them. It knows no adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from inarch.adapters.adapter import SiteView
from inarch.adapters.example import Example
from inarch.errors import InarchError
from inarch.identity import of_tensors
from inarch.tree import Chain, Found, Selection
from inarch.tree.address import compiled

if TYPE_CHECKING:
    from inarch.nn.tokenizer import Tokenizer
    from inarch.weights import Checkpoint


class Foundation:
    """What `Model` is beside its adapters, and what each family says of itself.

    Args:
        trees: by name; a model of one tree calls it "".
        config: what the family's `parse_config` made of the checkpoint's configuration.
        roles: for each role, the address pattern of its sites.
        checkpoint: where the weights came from.
        tokenizer: for models of text.
        family: the id of the foundation model's plugin.
    """

    ignored: ClassVar[tuple[str, ...]] = ()
    """Patterns of tensors in old checkpoints that the tree has no place for and need not."""

    in_stretches: ClassVar[tuple[str, ...]] = ()
    """Trees that tasks also run in stretches or with edits of their own, by name: FSDP2 manages
    their blocks, or the Chains they are made of, and what is left of them is whole everywhere."""

    def __init__(
        self,
        trees: Mapping[str, Chain],
        config: Any = None,
        *,
        roles: Mapping[str, str] | None = None,
        checkpoint: Checkpoint | None = None,
        tokenizer: Tokenizer | None = None,
        family: str = "",
    ) -> None:
        self.trees = dict(trees)
        self.config = config
        self.roles = dict(roles or {})
        self.checkpoint = checkpoint
        self.tokenizer = tokenizer
        self.family = family
        self.pristine: Mapping[str, Chain] = self.trees
        self._sites: SiteView | None = None
        self._fingerprint = ""

    @classmethod
    def reading(cls, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint as this family reads it: the same, or one that presents it otherwise.

        For names that files of one family have in two ways, and tokenizers in files of their own.
        """
        return checkpoint

    @classmethod
    def dtype_of(cls, config: Any, tree: str, dtype: torch.dtype) -> torch.dtype:
        """The dtype a tree is loaded in where `dtype` was asked for, or is the file's own."""
        return dtype

    @classmethod
    def parse_config(cls, config: dict[str, Any]) -> Any:
        """The family's configuration from a checkpoint's; unsupported settings are errors."""
        raise NotImplementedError

    @classmethod
    def build(cls, config: Any) -> dict[str, Chain]:
        """The trees of a configuration."""
        raise NotImplementedError

    @classmethod
    def tiny_configs(cls) -> Mapping[str, dict[str, Any]]:
        """Configurations of very small models of this family, by what each of them shows.

        As a checkpoint's `config.json` has them, of a few thousand weights, together with every
        branch that the tree takes. Tests make random models of them: `inarch.testing` does for
        every adapter that is installed.
        """
        return {}

    def examples(self) -> Sequence[Example]:
        """Inputs of small forwards, on the model's device: at least one for each tree.

        The resolver proves a stack on them, and tests run them. Values are the same each time.
        """
        return ()

    @property
    def tree(self) -> Chain:
        """The tree of a model that has one."""
        if len(self.trees) != 1:
            raise InarchError(
                "IA412",
                "this model has several trees",
                why=f"they are: {', '.join(self.trees)}",
                remedy='name one: model.trees["..."]',
            )
        return next(iter(self.trees.values()))

    @property
    def sites(self) -> SiteView:
        """The sites of the pristine trees."""
        if self._sites is None:
            settings = None if self.checkpoint is None else self.checkpoint.config
            own = self.own_tokenizers()
            self._sites = SiteView(self.pristine, self.roles, settings, own, type(self))
        return self._sites

    def own_tokenizers(self) -> Mapping[str, Tokenizer]:
        """The base's tokenizers, by the tree that reads their ids."""
        return {} if self.tokenizer is None else dict.fromkeys(self.trees, self.tokenizer)

    @property
    def inputs(self) -> dict[str, tuple[str, ...]]:
        """Each input by name, with the addresses of the steps that ask for it."""
        inputs: dict[str, tuple[str, ...]] = {}
        for name, tree in self.trees.items():
            for key, where in tree.inputs.items():
                inputs[key] = inputs.get(key, ()) + tuple(joined(name, a) for a in where)
        return inputs

    def select(
        self,
        pattern: str | None = None,
        *,
        role: str | None = None,
        type: type | tuple[type, ...] | None = None,
        where: Callable[[Found], bool] | None = None,
        count: int | None = None,
    ) -> Selection:
        """The sites of a pattern, a role (`attention.*`), a class and a predicate, all of them.

        Raises:
            InarchError: IA113 for a malformed pattern, IA114 where the count is another, IA402
                for a role the model doesn't have.
        """
        wanted = None if role is None else {s.address for s in self.sites.find([role])}
        found: list[Found] = []
        for name, tree in self.trees.items():
            for one in tree.select(type=type, where=where):
                found.append(Found(joined(name, one.address), one.step, one.module, one.chain))
        if pattern is not None:
            match = compiled(pattern).fullmatch
            found = [one for one in found if match(one.address)]
        if wanted is not None:
            found = [one for one in found if one.address in wanted]
        asked = " and ".join(part for part in (pattern, role and f"role {role}") if part)
        selection = Selection(tuple(found), asked or "everything")
        return selection if count is None else selection.expect(count)

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor by its name: the base's as its checkpoint has them, and the adapters'."""
        return {
            joined(name, key): tensor
            for name, tree in self.trees.items()
            for key, tensor in tree.state_dict().items()
        }

    def parameters(self) -> Iterator[nn.Parameter]:
        for tree in self.trees.values():
            yield from tree.parameters()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def fingerprint(self) -> str:
        """What identifies the base's weights: from its file, else from the tensors themselves."""
        if self._fingerprint:
            return self._fingerprint
        if self.checkpoint is not None:
            return self.checkpoint.fingerprint()
        return of_tensors(
            (joined(name, key), tensor)
            for name, tree in self.pristine.items()
            for key, tensor in sorted(tree.state_dict().items())
        )


def joined(tree: str, address: str) -> str:
    """An address within a tree as one of the whole model, which begins with the tree's name."""
    return f"{tree}.{address}" if tree and address else tree or address
