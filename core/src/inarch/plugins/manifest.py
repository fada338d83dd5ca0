"""The static manifest of a package: `inarch.toml`, read without importing the package.

Annotations are evaluated as they stand: from text, msgspec would compile each when it first reads.
"""

from typing import TYPE_CHECKING, Any, Literal

import msgspec

from inarch.errors import InarchError

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = 1


class Described(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What every entry of a manifest has.

    Attributes:
        id: how users call it; one package has it.
        summary: one line.
        manifest: the file it stands in, set when the index is made.
        distribution: the pip package it came with.
        version: that package's version.
    """

    id: str
    summary: str = ""
    manifest: str = ""
    distribution: str = ""
    version: str = ""


class ModelEntry(Described, kw_only=True):
    """A foundation model: which checkpoints are its own, what it does, and what its sites are."""

    model_types: list[str]
    architectures: list[str] = []
    tasks: list[str] = []
    roles: dict[str, str] = {}


class CheckpointEntry(Described, kw_only=True):
    """A published checkpoint that a pip package ships: `file` from the site-packages folder."""

    model: str
    package: str
    file: str
    install: str


class AdapterEntry(Described, kw_only=True):
    """An adapter: the roles it is for, the kinds of edit it makes, the formats it reads.

    What it declares of others counts only where both are in a stack.

    Attributes:
        after: ids of adapters it comes after, where the order matters.
        before: ids of adapters it comes before.
        requires: ids of adapters that must be in the stack with it.
        conflicts: ids of adapters that can't be.
        models: for ids of foundation models, the versions of their package it is for (PEP 440).
        changes: what it changes of the model's outputs on purpose, as a clause, such as "the
            virtual tokens come before the others"; empty where shapes and dtypes are kept.
        initial_effect: what an untrained one already does to the output, and why; empty for one
            that begins by changing no bit.
        examples: other ways to ask for it, as options by a name for each: those that change what
            its edits are. Tests compose them with other adapters.
    """

    roles: list[str] = []
    kinds: list[
        Literal["add", "scale", "before", "after", "wrap", "replace", "provide", "tap"]
    ] = []
    formats: list[str] = []
    trainable: bool = False
    initial_effect: str = ""
    examples: dict[str, dict[str, Any]] = {}
    paper: str = ""
    after: list[str] = []
    before: list[str] = []
    requires: list[str] = []
    conflicts: list[str] = []
    models: dict[str, str] = {}
    changes: str = ""


class FormatEntry(Described, kw_only=True):
    """A checkpoint file format: how its files are recognised."""

    suffixes: list[str] = []
    magic: str = ""


class WeightsEntry(Described, kw_only=True):
    """Trained adapter weights: `path` is a file or folder beside the manifest.

    `asks` is what they ask of the model's tasks, such as `{ scheduler = "lcm", guidance = 1.0 }`.
    """

    adapter: str
    model: str
    path: str
    checkpoint: str = ""
    fingerprint: str = ""
    licence: str = ""
    asks: dict[str, Any] = {}


class CodeEntry(Described, kw_only=True):
    """An error code a package raises: `summary` is its line in the registry.

    Attributes:
        explain: what `inarch explain CODE` prints: what happened, an example, and the cure.
    """

    explain: str = ""


class Manifest(msgspec.Struct, forbid_unknown_fields=True):
    """All that one package says of itself."""

    schema: int
    model: list[ModelEntry] = []
    checkpoint: list[CheckpointEntry] = []
    adapter: list[AdapterEntry] = []
    format: list[FormatEntry] = []
    weights: list[WeightsEntry] = []
    code: list[CodeEntry] = []


class _Version(msgspec.Struct):
    schema: int


def read_manifest(path: "Path") -> Manifest:
    """Read one manifest.

    Raises:
        InarchError: IA301 where it can't be read, IA302 where it is malformed, IA303 where it is
            written in a newer schema than this inarch knows.
    """
    from inarch.plugins.tomlfile import read_toml  # not needed while the index is cached

    version = read_toml(path, _Version, unreadable="IA301", malformed="IA302").schema
    if version != SCHEMA:
        raise InarchError(
            "IA303",
            f"the manifest has schema {version}, and this inarch reads {SCHEMA}",
            where=str(path),
            why="the package was made for another release of inarch",
            remedy="pip install --upgrade inarch",
        )
    return read_toml(path, Manifest, unreadable="IA301", malformed="IA302")
