"""Writes docs/adapters: a page for each adapter, of what its package and the table of pairs say.

python tests/adapter_pages.py        after a manifest, a README or docs/composition.md has changed
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

import inarch
from inarch import InarchError
from inarch.plugins import index, load_object
from inarch.plugins.manifest import AdapterEntry
from inarch.testing.tiny import tiny_models

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "adapters"
# What of a package's README belongs on the page; the rest is a click away.
SECTIONS = ("Inputs", "Files", "What is read", "Adapters of the ControlNet itself")
HEAD = "<!-- Made by tests/adapter_pages.py; change the manifest, the options or the README. -->"


def pages() -> dict[str, str]:
    """The text of each page by its file's name."""
    own = {
        kind: entry
        for kind, entry in sorted(index().adapters.items())
        if ROOT in Path(entry.manifest).parents
    }
    tables = {kind: found for kind in own if (found := composition(kind))}
    made = {f"{kind}.md": page(entry, tables.get(kind, {})) for kind, entry in own.items()}
    return {**made, "README.md": overview(own)}


def overview(own: dict[str, AdapterEntry]) -> str:
    rows = [f"| [{kind}]({kind}.md) | {entry.summary} |" for kind, entry in own.items()]
    return "\n".join(
        [
            HEAD,
            "# Adapters, a page each",
            "",
            "What each takes and asks for, the files it reads and writes, what it does to a tree,",
            "and what it composes with; [the table of pairs](../composition.md) has the reasons.",
            "",
            "| adapter | |",
            "| --- | --- |",
            *rows,
            "",
            "Five stacks of those for images, ready to run, are in",
            "[examples/scenes](../../examples/scenes/README.md); two trained ones for SmolLM2 in",
            "[inarch-smollm2-voices](../../plugins/smollm2_voices/README.md).",
            "",
        ]
    )


def page(entry: AdapterEntry, table: dict[str, dict[str, str]]) -> str:
    package = Path(entry.manifest).parents[2]
    readme = (package / "README.md").read_text("utf-8")
    link = f"../../{package.relative_to(ROOT).as_posix()}/README.md"
    parts = [HEAD, f"# {entry.id}", "", f"{entry.summary}."]
    if entry.paper:
        parts.append(f"Source: {entry.paper}.")
    parts += ["", f'`inarch.adapter("{entry.id}", ...)`, of [{entry.distribution}]({link}), which']
    parts += ["tells how to use it.", "", *options(entry.id), *added(entry.id)]
    parts += [line for name in SECTIONS for line in section(readme, name)]
    parts += ["## What it does to a tree", "", f"- kinds of edit: {', '.join(entry.kinds)}"]
    if entry.roles:
        parts.append(f"- sites: {', '.join(f'`{role}`' for role in entry.roles)}")
    parts.append(f"- files: {', '.join(entry.formats) or 'none: it has no weights'}")
    parts.append(f"- {'it can be trained' if entry.trainable else 'it is not trained'}")
    if entry.initial_effect:
        parts.append(f"- untrained: {entry.initial_effect}")
    return "\n".join([*parts, "", *composed(table)])


def options(kind: str) -> Iterator[str]:
    """The plugin's own options as a table, from its struct and what that says of them."""
    struct = load_object("inarch.adapters", kind).Options
    fields = msgspec.structs.fields(struct)
    if not fields:
        return
    told = {n: t for cls in struct.__mro__ for n, t in described(cls.__doc__ or "").items()}
    yield from ("## Options", "", "| option | default | |", "| --- | --- | --- |")
    for one in fields:
        default = one.default_factory() if callable(one.default_factory) else one.default
        shown = "" if default is msgspec.NODEFAULT else f"`{default!r}`"
        yield f"| `{one.name}` | {_cell(shown)} | {_cell(told.get(one.name, ''))} |"
    yield ""


def described(doc: str) -> dict[str, str]:
    """What the `Attributes:` of a docstring say of each name."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in doc.partition("Attributes:")[2].splitlines():
        match = re.match(r" {8}([\w, ]+): (.+)", line)
        if match:
            names = [name.strip() for name in match[1].split(",")]
            found |= dict.fromkeys(names, match[2].strip())
        elif line.startswith(" " * 12):
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def added(kind: str) -> Iterator[str]:
    """The inputs that it adds to a model, under the name `name`."""
    rows: dict[str, str] = {}
    for tiny in (one for one in tiny_models() if one.first):
        try:
            model = tiny.build().adapt(inarch.adapter(kind, name="name"))
        except InarchError:
            continue
        rows |= {one.name: one.shape for one in model.adapters["name"].adapter.inputs()}
    if rows:
        yield from ('## What a model with it asks for, `name="name"`', "")
        yield from ("| input | |", "| --- | --- |")
        yield from (f"| `{name}` | {_cell(shape)} |" for name, shape in rows.items())
        yield ""


def section(readme: str, name: str) -> Iterator[str]:
    match = re.search(rf"^## {re.escape(name)}\n(.*?)(?=^## |\Z)", readme, re.M | re.S)
    if match:  # without its own table of options, which stands on the page
        text = re.sub(r"^\| option \|.*\n(\|.*\n)*\n?", "", match[1], flags=re.M)
        yield from (f"## {name}", "", text.strip(), "")


def composition(kind: str) -> dict[str, dict[str, str]]:
    """For each model, what the table of pairs says of it and each other adapter."""
    label = kind.replace("-", "_")
    found: dict[str, dict[str, str]] = {}
    text = (ROOT / "docs" / "composition.md").read_text("utf-8")
    for part in re.split(r"^## ", text, flags=re.M)[1:]:
        model = part.partition("\n")[0].strip()
        lines = [re.split(r" ?\| ?", line) for line in part.splitlines() if line.startswith("|")]
        columns = [cell for cell in lines[0] if cell] if lines else []
        row = next((line[1:-1] for line in lines if line[1] == f"**{label}**"), None)
        if row is not None:
            found[model] = dict(zip(columns, row[1:], strict=True))
    return found


def composed(table: dict[str, dict[str, str]]) -> Iterator[str]:
    if not table:
        return
    others = sorted({name for row in table.values() for name in row})
    yield from ("## What it composes with", "")
    yield "*free*: any order is the same model; *name first*: a manifest orders them; *your word*:"
    yield "say which is meant; a code: refused, and [the table](../composition.md) says why."
    yield from ("", f"| beside | {' | '.join(table)} |", "| --- " * (len(table) + 1) + "|")
    for name in others:
        yield f"| {name} | {' | '.join(row.get(name, '-') for row in table.values())} |"
    yield ""


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def write() -> None:
    FOLDER.mkdir(exist_ok=True)
    made = pages()
    for old in FOLDER.glob("*.md"):
        if old.name not in made:
            old.unlink()
    for name, text in made.items():
        (FOLDER / name).write_text(text, "utf-8")


if __name__ == "__main__":
    write()
