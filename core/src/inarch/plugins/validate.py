"""Whether a package's manifest holds: against its entry points, its files, and itself."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from inarch.errors import InarchError
from inarch.plugins import entry_points
from inarch.plugins.index import Finding, Index
from inarch.plugins.manifest import AdapterEntry, Manifest, ModelEntry, read_manifest

_CODE = re.compile(r"[A-Z]{2,6}\d{3}")
_ROLE = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_*]+)*|\*")
_GROUPS = (("inarch.models", "model"), ("inarch.adapters", "adapter"), ("inarch.formats", "format"))


@dataclass
class Package:
    """A package to look at, installed or in its folder.

    Attributes:
        name: of the distribution.
        manifests: where its `inarch.manifest` entry points lead; None where nowhere.
        points: its other entry points by group and name.
        roots: folders its modules are found in; empty for what is installed.
    """

    name: str
    manifests: dict[str, Path | None] = field(default_factory=dict[str, "Path | None"])
    points: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    roots: tuple[Path, ...] = ()


def packages_of(_listed: Index) -> list[Package]:
    """All installed packages that have a manifest's entry point."""
    return [
        Package(d.name, {v: entry_points.manifest_path(v) for v in d.manifests}, d.objects)
        for d in entry_points.installed()
    ]


def source_package(folder: Path) -> Package:
    """A package in its folder, as its pyproject.toml describes it.

    Raises:
        InarchError: IA809 where there is no pyproject.toml that can be read.
    """
    file = folder / "pyproject.toml"
    try:
        project = tomllib.loads(file.read_text("utf-8"))["project"]
    except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
        raise InarchError(
            "IA809",
            f"`{folder.name}` is no package: it has no pyproject.toml with a [project]",
            where=str(file),
            why=str(error),
            remedy="inarch new adapter NAME",
        ) from None
    points: dict[str, dict[str, str]] = project.get("entry-points", {})
    roots = (folder / "src", folder)
    manifests = {
        value: next(
            (p for r in roots for p in [_below(r, value)] if p.is_file()),
            None,
        )
        for value in points.get(entry_points.MANIFESTS, {}).values()
    }
    others = {group: points.get(group, {}) for group in entry_points.GROUPS}
    return Package(str(project.get("name", folder.name)), manifests, others, roots)


def validated(package: Package, listed: Index) -> Iterator[Finding]:
    """Everything that is wrong with one package; nothing of it is imported."""
    if not package.manifests:
        yield _wrong(
            package,
            "IA809",
            "it has no `inarch.manifest` entry point",
            "pyproject.toml",
            '[project.entry-points."inarch.manifest"] name = "package:inarch.toml"',
        )
    for value, path in package.manifests.items():
        if path is None:
            what = f"its manifest `{value}` is not where its entry point says"
            yield _wrong(package, "IA304", what, value, "ship the file inside of the package")
            continue
        try:
            manifest = read_manifest(path)
        except InarchError as error:
            what = f"{error.what}: {error.why}" if error.why else error.what
            yield _wrong(package, error.code, what, error.where, error.remedy)
            continue
        yield from _points(package, manifest, path)
        yield from _entries(package, manifest, path, listed)


def _points(package: Package, manifest: Manifest, path: Path) -> Iterator[Finding]:
    for group, table in _GROUPS:
        ids = {entry.id for entry in getattr(manifest, table)}
        points = package.points.get(group, {})
        for name in sorted(ids ^ set(points)):
            side = f"entry point in `{group}`" if name in ids else f"[[{table}]] in the manifest"
            yield _wrong(package, "IA307", f"`{name}` has no {side}", str(path), "add it")
        for name, value in sorted(points.items()):
            module = value.partition(":")[0]
            if not _there(package, module):
                what = f"the entry point `{name}` names the module `{module}`, which isn't there"
                yield _wrong(package, "IA809", what, f"{group}: {value}", "correct the entry point")


def _entries(package: Package, manifest: Manifest, path: Path, listed: Index) -> Iterator[Finding]:
    for code in manifest.code:
        if not _CODE.fullmatch(code.id):
            what = f"`{code.id}` is no error code, such as IA101"
            yield _wrong(package, "IA809", what, str(path), "capitals, then three digits")
        elif not code.explain.strip() or not code.summary:
            what = f"the code {code.id} is not explained"
            cure = 'summary = "..." and explain = """..."""'
            yield _wrong(package, "IA809", what, str(path), cure)
    for model in manifest.model:
        yield from _model(package, model, path)
    for adapter in manifest.adapter:
        known = {*listed.adapters, *(entry.id for entry in manifest.adapter)}
        yield from _adapter(package, adapter, path, known)
    for weights in manifest.weights:
        if not (path.parent / weights.path).exists():
            what = f"the weights `{weights.id}` are not at `{weights.path}`"
            yield _wrong(package, "IA310", what, str(path), "ship the file inside of the package")


def _model(package: Package, model: ModelEntry, path: Path) -> Iterator[Finding]:
    for role, pattern in model.roles.items():
        wrong = "" if _ROLE.fullmatch(role) else f"`{role}` is no role, such as attention.query"
        if not pattern or pattern != pattern.strip(".") or ".." in pattern or "**" in pattern:
            wrong = f"the role `{role}` has no address pattern: `{pattern}`"
        if wrong:
            yield _wrong(package, "IA809", wrong, str(path), "names, `*` for one level")


def _adapter(
    package: Package, adapter: AdapterEntry, path: Path, known: set[str]
) -> Iterator[Finding]:
    if not adapter.kinds:
        what = f"the adapter `{adapter.id}` doesn't say which kinds of edit it makes"
        yield _wrong(package, "IA809", what, str(path), 'kinds = ["add"]')
    for role in adapter.roles:
        if not _ROLE.fullmatch(role):
            what = f"`{role}` is no role, such as attention.query"
            yield _wrong(package, "IA809", what, str(path), "lower case, joined by dots")
    for model, told in adapter.models.items():
        from packaging.specifiers import InvalidSpecifier, SpecifierSet

        try:
            SpecifierSet(told)
        except InvalidSpecifier:
            what = f"`{told}` is no version specifier for {model}"
            yield _wrong(package, "IA809", what, str(path), f'models = {{ {model} = ">=0.1" }}')
    both = sorted(set(adapter.after) & set(adapter.before))
    both += sorted(set(adapter.requires) & set(adapter.conflicts))
    for other in both:
        what = f"the adapter `{adapter.id}` declares both of two opposites about `{other}`"
        yield _wrong(package, "IA809", what, str(path), "keep one of the two")
    for key in ("after", "before", "requires", "conflicts"):
        for other in getattr(adapter, key):
            if other == adapter.id:
                what = f"the adapter `{adapter.id}` declares {key} itself"
                yield _wrong(package, "IA809", what, str(path), "leave it out")
            elif other not in known and package.roots == ():
                what = f"`{adapter.id}` declares {key} `{other}`, which no installed package has"
                yield _wrong(package, "IA812", what, str(path), f"pip install inarch-{other}")


def _there(package: Package, module: str) -> bool:
    parts = module.split(".")
    if package.roots:
        bases = [root.joinpath(*parts) for root in package.roots]
        return any(b.with_suffix(".py").is_file() or (b / "__init__.py").is_file() for b in bases)
    try:
        spec = importlib.util.find_spec(parts[0])
    except (ImportError, ValueError):
        return False
    if spec is None or len(parts) == 1:
        return spec is not None
    inner = Path(*parts[1:])
    return any(
        Path(folder, inner).with_suffix(".py").is_file() or Path(folder, inner).is_dir()
        for folder in spec.submodule_search_locations or ()
    )


def _below(root: Path, value: str) -> Path:
    package, _, name = value.partition(":")
    return root.joinpath(*package.split("."), name)


def _wrong(package: Package, code: str, what: str, where: str, remedy: str) -> Finding:
    return Finding(code, package.name, what, where, remedy)
