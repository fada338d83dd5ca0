"""Which model a word means, and whether an adapter fits it, answered from manifests alone."""

from __future__ import annotations

from collections.abc import Iterable

from inarch.errors import InarchError
from inarch.plugins import Index
from inarch.plugins.manifest import AdapterEntry, ModelEntry, WeightsEntry

_WILD = frozenset("*?[")


def model_named(name: str, listed: Index) -> ModelEntry:
    """The foundation model that an id, a checkpoint's id or a checkpoint folder means.

    Raises:
        InarchError: IA702.
    """
    if name in listed.models:
        return listed.models[name]
    if name in listed.checkpoints:
        return listed.models[listed.checkpoints[name].model]
    import json
    from pathlib import Path

    for config in (Path(name) / "model_index.json", Path(name) / "config.json"):
        if config.is_file():
            told = json.loads(config.read_text("utf-8"))
            if "_class_name" in told:  # diffusers' word for it
                told.setdefault("architectures", [told["_class_name"]])
            return listed.model_for(told, str(config))
    known = [*listed.models, *listed.checkpoints]
    import difflib

    near = difflib.get_close_matches(name, known, 2, 0.5)
    raise InarchError(
        "IA702",
        f"`{name}` is no installed model, checkpoint or checkpoint folder",
        why=f"installed are: {', '.join(known) or 'none'}",
        remedy=f"did you mean: {', '.join(near)}" if near else "inarch models",
    )


def misfit(entry: AdapterEntry, model: ModelEntry) -> str:
    """Why an adapter does not fit a model; empty where it does."""
    roles = model.roles
    unmet = [r for r in entry.roles if r not in roles]
    if not unmet and not entry.models:
        return ""
    lacking = [r for r in unmet if not _is_met(r, roles)]
    if lacking:
        return f"{model.id} has no role {', '.join(lacking)}"
    return version_misfit(entry, model)


def _is_met(wanted: str, roles: Iterable[str]) -> bool:
    """Whether a model has a role of a pattern; most patterns are as `attention.*`."""
    start = wanted.removesuffix("*")
    if _WILD.isdisjoint(start):
        return start != wanted and any(role.startswith(start) for role in roles)
    from fnmatch import fnmatchcase  # whose first look compiles an expression

    return any(fnmatchcase(role, wanted) for role in roles)


def version_misfit(entry: AdapterEntry, model: ModelEntry) -> str:
    """Why the version of a model's package is none an adapter is for; empty where it is one."""
    told = entry.models.get(model.id)
    if told is None:
        return ""
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    try:
        fits = SpecifierSet(told).contains(model.version, prereleases=True)
    except InvalidSpecifier:
        return f"it is for {model.id} `{told}`, which is no version specifier of PEP 440"
    here = f"{model.distribution} {model.version} is installed"
    return "" if fits else f"it is for {model.id} {told}, and {here}"


def weights_misfit(entry: WeightsEntry, model: ModelEntry, listed: Index) -> str:
    """Why trained weights do not fit a model; empty where they do."""
    if entry.model != model.id:
        return f"trained for {entry.model}"
    if entry.adapter not in listed.adapters:
        return f"needs the adapter {entry.adapter}: pip install inarch-{entry.adapter}"
    return misfit(listed.adapters[entry.adapter], model)
