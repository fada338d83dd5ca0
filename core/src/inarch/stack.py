"""A stack: a model and its adapters, as a user writes them. Needs neither torch nor a plugin."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from inarch.errors import InarchError


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """One adapter of a stack; made by `inarch.adapter`.

    `where` is the place it was written at, and `folder` what paths in its options count from.
    """

    use: str
    weights: str | None = None
    name: str = ""
    scale: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    after: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    adapters: tuple[AdapterSpec, ...] = ()
    where: str = field(default="", compare=False)
    folder: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Stack:
    """Adapters for a model, in the order they were written.

    Args:
        adapters: made by `inarch.adapter`, or ids.
        model: what `inarch.load` takes: a checkpoint's id or path.
    """

    adapters: Sequence[AdapterSpec | str] = ()
    model: str | None = None

    def __post_init__(self) -> None:
        specs = tuple(adapter(a) if isinstance(a, str) else a for a in self.adapters)
        object.__setattr__(self, "adapters", specs)

    @property
    def specs(self) -> tuple[AdapterSpec, ...]:
        return tuple(a for a in self.adapters if isinstance(a, AdapterSpec))


def adapter(
    use: str,
    *,
    weights: str | Path | None = None,
    name: str | None = None,
    scale: float = 1.0,
    after: str | Sequence[str] = (),
    before: str | Sequence[str] = (),
    adapters: Sequence[AdapterSpec | str] = (),
    **options: Any,
) -> AdapterSpec:
    """Say which adapter a model is to be adapted with. Nothing is imported or read yet.

    Args:
        use: the id of an adapter plugin (`lora`), or of trained weights a package ships (`pirate`).
        weights: a file or folder with its weights; without one the adapter starts untrained.
        name: its identity in the model; by default `use`.
        scale: how strongly it acts; 1.0 is as trained.
        after: names of members of the stack that it comes after, where the order matters.
        before: names of members that it comes before.
        adapters: for one that brings a tree of its own, such as a ControlNet: what that tree is
            adapted with, made by this function. Their names need only differ from each other's.
        options: what the plugin's manifest page lists, such as `rank=8`.

    Raises:
        InarchError: IA401 for a scale that is no finite number or a `use` that is no text.
    """
    if not isinstance(use, str) or not use:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InarchError(
            "IA401",
            f"an adapter is named by its id, not by {use!r}",
            remedy='inarch.adapter("lora")',
        )
    scale = finite_scale(scale, use, f'inarch.adapter("{use}", scale=1.0)')
    label = name if name is not None else _as_name(use)
    path = None if weights is None else str(weights)
    later, earlier = _names(after, use), _names(before, use)
    inner = tuple(specs_of(tuple(adapters)))
    return AdapterSpec(use, path, label, scale, dict(options), later, earlier, inner)


def finite_scale(scale: Any, where: str, remedy: str) -> float:
    """A scale as a number: of Python's, NumPy's, or a tensor's one value.

    Raises:
        InarchError: IA401 for what is no number, or none that is finite.
    """
    try:
        number = math.nan if isinstance(scale, bool | str | bytes) else float(scale)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        what = f"the scale of an adapter is a number and finite, not {scale!r}"
        raise InarchError("IA401", what, where=where, remedy=remedy)
    return number


def _names(told: str | Sequence[str], use: str) -> tuple[str, ...]:
    names = (told,) if isinstance(told, str) else tuple(told)
    if not all(isinstance(name, str) for name in names):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InarchError(
            "IA401",
            "`after` and `before` hold names of members",
            where=use,
            remedy=f'inarch.adapter("{use}", after=["other"])',
        )
    return tuple(dict.fromkeys(names))


def specs_of(adapters: tuple[AdapterSpec | Stack | str, ...]) -> list[AdapterSpec]:
    """The specifications in what `Model.adapt` takes.

    Raises:
        InarchError: IA401 for something that is no adapter.
    """
    specs: list[AdapterSpec] = []
    for one in adapters:
        if isinstance(one, Stack):
            specs += one.specs
        elif isinstance(one, str):
            specs.append(adapter(one))
        elif isinstance(one, AdapterSpec):  # pyright: ignore[reportUnnecessaryIsInstance]
            specs.append(one)
        else:
            raise InarchError(
                "IA401",
                f"{one!r} is no adapter",
                remedy='make one with inarch.adapter("lora", weights="...")',
            )
    return specs


def _as_name(use: str) -> str:
    """An id such as `prompt-tuning` as the identifier that names modules."""
    name = "".join(c if c.isalnum() else "_" for c in use).strip("_")
    return "_".join(part for part in name.split("_") if part)


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    use: str
    weights: str | None = None
    name: str | None = None
    scale: float = 1.0
    after: list[str] = []
    before: list[str] = []
    options: dict[str, Any] = {}
    adapter: list[_Entry] = []


class _ToldAdapter(msgspec.Struct):
    """What a picture holds of one adapter; more than is needed here."""

    use: str
    name: str
    weights: str | None = None
    scale: float = 1.0
    after: list[str] = []
    before: list[str] = []
    options: dict[str, Any] = {}
    adapters: list[_ToldAdapter] = []


class _Told(msgspec.Struct):
    model: str
    adapter: list[_ToldAdapter] = []


class _File(msgspec.Struct, forbid_unknown_fields=True):
    model: str | None = None
    adapter: list[_Entry] = []


def load_stack(path: str | Path) -> Stack:
    """Read a stack file: `model`, and an `[[adapter]]` table for each adapter.

    The keys of a table are `use`, `weights` (from the file's folder), `name`, `scale`, `after` and
    `before` (names of other members), and `options`, a table of the plugin's own. A table
    `[[adapter.adapter]]` is of an adapter in the tree that the one above it brings. A `model` that
    is a path counts from the file's folder too.

    Raises:
        InarchError: IA404 for a file that can't be read, IA405 for one that is no stack.
    """
    from inarch.plugins.tomlfile import read_toml

    path = Path(path)
    file = read_toml(path, _File, unreadable="IA404", malformed="IA405")
    specs = [_spec(entry, path, f"adapter[{i}]") for i, entry in enumerate(file.adapter)]
    beside = path.parent / (file.model or "")
    return Stack(specs, str(beside) if file.model and beside.exists() else file.model)


def stack_of_picture(path: str | Path) -> Stack:
    """The stack in the picture that `inarch run` made with it.

    Raises:
        InarchError: IA404 for a file that can't be read, IA405 for one that holds no stack, IA509
            without Pillow.
    """
    try:
        from PIL import Image
    except ImportError:
        raise InarchError(
            "IA509", "reading pictures needs Pillow", where=str(path), remedy="pip install pillow"
        ) from None
    try:
        with Image.open(path) as file:
            text = file.info.get("inarch", "{}")
        told = msgspec.json.decode(text, type=_Told)
    except OSError as error:
        why = error.strerror or str(error)
        what = f"`{Path(path).name}` can't be read"
        raise InarchError(
            "IA404", what, where=str(path), why=why, remedy="check the path"
        ) from None
    except msgspec.MsgspecError as error:
        raise InarchError(
            "IA405",
            f"`{Path(path).name}` does not hold the stack that made it",
            where=str(path),
            why=str(error),
            remedy="pass a PNG that `inarch run ... --out` wrote, as it wrote it",
        ) from None
    return Stack([_again(one, str(path)) for one in told.adapter], told.model)


def _again(told: _ToldAdapter, where: str) -> AdapterSpec:
    spec = adapter(
        told.use,
        weights=told.weights,
        name=told.name,
        scale=told.scale,
        after=told.after,
        before=told.before,
        adapters=[_again(one, where) for one in told.adapters],
    )
    return replace(spec, options=told.options, where=where)


def _spec(entry: _Entry, path: Path, place: str) -> AdapterSpec:
    spec = adapter(
        entry.use,
        weights=None if entry.weights is None else path.parent / entry.weights,
        name=entry.name,
        scale=entry.scale,
        after=entry.after,
        before=entry.before,
        adapters=[_spec(e, path, f"{place}.adapter[{i}]") for i, e in enumerate(entry.adapter)],
    )
    return replace(spec, options=entry.options, where=f"{path}: {place}", folder=str(path.parent))


def stack_text(stack: Stack) -> str:
    """A stack as the text of a stack file, which may lie anywhere: paths are written whole."""
    import tomli_w

    tables = [_table(spec) for spec in stack.specs]
    model = {} if stack.model is None else {"model": stack.model}
    if stack.model is not None and Path(stack.model).exists():
        model["model"] = str(Path(stack.model).resolve())
    return tomli_w.dumps({**model, "adapter": tables})


def _table(spec: AdapterSpec) -> dict[str, Any]:
    table: dict[str, Any] = {"use": spec.use, "name": spec.name, "scale": spec.scale}
    if spec.weights is not None:
        table["weights"] = str(Path(spec.weights).resolve())
    table |= {k: list(v) for k, v in (("after", spec.after), ("before", spec.before)) if v}
    options = {name: _whole(value, spec.folder) for name, value in spec.options.items()}
    table |= {"options": options} if options else {}
    return table | ({"adapter": [_table(one) for one in spec.adapters]} if spec.adapters else {})


def _whole(value: Any, folder: str) -> Any:
    """An option that is the path of something there is, whole."""
    is_path = isinstance(value, str) and "/" in value and Path(folder, value).exists()
    return str(Path(folder, value).resolve()) if is_path else value
