"""`inarch new`"""

from __future__ import annotations

import keyword
import re
from importlib.resources import files
from pathlib import Path

import click

import inarch
from inarch.cli.output import Output, json_option
from inarch.errors import InarchError


@click.command()
@click.argument("kind", type=click.Choice(["adapter", "model"]))
@click.argument("name")
@click.option("--in", "parent", default=".", type=click.Path(path_type=Path), help="A folder.")
@json_option
def new(kind: str, name: str, parent: Path, as_json: bool) -> None:
    """Begin a package for an adapter or a foundation model, with tests that pass.

    \b
    inarch new adapter gain
    cd inarch-gain && tox
    """
    ident = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", ident) or keyword.iskeyword(ident) or "__" in ident:
        raise InarchError(
            "IA705",
            f"`{name}` can't name a package",
            why="lower-case letters, digits and single hyphens, a letter first",
            remedy=f"inarch new {kind} my-{kind}",
        )
    dashed = ident.replace("_", "-")
    folder = parent / f"inarch-{dashed}"
    if folder.exists():
        raise InarchError(
            "IA705",
            f"there is a `{folder.name}` already",
            where=str(folder),
            why="nothing is written over",
            remedy=f"inarch new {kind} another-name",
        )
    names = {
        "@name@": dashed,
        "@ident@": ident,
        "@Class@": "".join(part.capitalize() for part in ident.split("_")),
        "@version@": inarch.__version__,
    }
    written = _write(kind, folder, names)
    if as_json:
        Output(True, "new").envelope({"folder": str(folder), "files": written})
        return
    for path in written:
        click.echo(path)
    click.echo(f"\nnext: cd {folder} && python -m pip install -q tox && tox", err=True)


def _write(kind: str, folder: Path, names: dict[str, str]) -> list[str]:
    """Fill in every template of a kind; `@ident@` in a path is a name too."""
    root = files("inarch.cli") / "templates" / kind
    written: list[str] = []
    for template in sorted(str(p) for p in Path(str(root)).rglob("*.tmpl")):
        path = str(Path(template).relative_to(str(root))).removesuffix(".tmpl")
        text = Path(template).read_text("utf-8")
        for mark, value in names.items():
            path, text = path.replace(mark, value), text.replace(mark, value)
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, "utf-8")
        written.append(str(target))
    return written
